import hashlib
import pickle

import numpy as np
import pytest
from torchvision import datasets

from finetune.data.decoding.images import read_image
from finetune.data.sources.torchvision_sets import SETS, TorchvisionSet
from finetune.errors import FinetuneError
from tests.data.making import noise, save


def cifar10(root, monkeypatch):
    """Tiny batches in CIFAR-10's own files, and their checksums in torchvision's lists."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = noise(4, 32, 32, 3)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    rows = images.transpose(0, 3, 1, 2).reshape(4, -1)
    train = write("data_batch_1", {"data": rows[:3], "labels": [2, 0, 1]})
    test = write("test_batch", {"data": rows[3:], "labels": [1]})
    meta = write("batches.meta", {"label_names": ["airplane", "automobile", "bird"]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [train])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [test])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return images


def test_arrays_are_written_once_as_an_npz(tmp_path, monkeypatch):
    images = cifar10(tmp_path, monkeypatch)
    table = TorchvisionSet(tmp_path, "cifar10").table()
    assert (table.name, table.classes, table.kind) == ("cifar10", ["airplane", "automobile", "bird"], "multiclass")
    assert table.frame["split"].tolist() == ["train"] * 3 + ["test"]
    assert table.targets().argmax(axis=1).tolist() == [2, 0, 1, 1]
    for row in range(4):
        np.testing.assert_array_equal(read_image(table.file(row)), images[row])
    for file in (tmp_path / "cifar-10-batches-py").iterdir():
        file.unlink()
    again = TorchvisionSet(tmp_path, "cifar10").table()  # torchvision's files are not needed any more
    assert again.hash() == table.hash()
    (tmp_path / "cifar10.npz").write_bytes(b"text")
    with pytest.raises(FinetuneError, match=r"cifar10.npz is damaged .*remove it"):
        TorchvisionSet(tmp_path, "cifar10").table()


def test_fashion_mnist_holds_tensors(tmp_path, monkeypatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = noise(3, 28, 28)
    for name, images in (("train", pixels[:2]), ("t10k", pixels[2:])):
        head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = bytes([0, 0, 8, 1]) + len(images).to_bytes(4, "big")
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + bytes([9] * len(images)))
    table = TorchvisionSet(tmp_path, "fashion_mnist").table()
    assert len(table.classes) == 10
    np.testing.assert_array_equal(read_image(table.file(2)), pixels[2])
    assert table.targets().argmax(axis=1).tolist() == [9, 9, 9]


def test_pets_are_read_where_they_lie(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    lists = {"trainval": ["Abyssinian_100 1 1 1", "beagle_1 2 2 1"], "test": ["beagle_2 2 2 1"]}
    for name, rows in lists.items():
        (base / "annotations").mkdir(parents=True, exist_ok=True)
        (base / "annotations" / f"{name}.txt").write_text("\n".join(rows) + "\n")
        for row in rows:
            save(noise(8, 8, 3), base / "images" / f"{row.split()[0]}.jpg")
    # torchvision takes the classes of a part from its own rows
    (base / "annotations" / "test.txt").write_text("Abyssinian_9 1 1 1\nbeagle_2 2 2 1\n")
    save(noise(8, 8, 3), base / "images" / "Abyssinian_9.jpg")
    table = TorchvisionSet(tmp_path, "pets").table()
    assert table.classes == ["Abyssinian", "Beagle"]
    assert table.paths[0] == "oxford-iiit-pet/images/Abyssinian_100.jpg"
    assert table.frame["split"].tolist() == ["train", "train", "test", "test"]
    assert table.targets().argmax(axis=1).tolist() == [0, 1, 0, 1]
    assert all(table.file(row).is_file() for row in range(4))


def test_eurosat_has_no_split(tmp_path):
    for name in ("Forest", "River"):
        save(noise(8, 8, 3), tmp_path / "eurosat" / "2750" / name / f"{name}_1.jpg")
    table = TorchvisionSet(tmp_path, "eurosat").table()
    assert table.classes == ["Forest", "River"]
    assert table.paths == ["eurosat/2750/Forest/Forest_1.jpg", "eurosat/2750/River/River_1.jpg"]
    assert table.frame["split"].isna().all()


def test_flowers_and_textures(tmp_path, monkeypatch):
    scipy = pytest.importorskip("scipy.io")
    base = tmp_path / "flowers-102"
    for number in range(1, 7):
        save(noise(4, 4, 3), base / "jpg" / f"image_{number:05d}.jpg")
    scipy.savemat(base / "imagelabels.mat", {"labels": [3, 1, 102, 3, 2, 2]})
    scipy.savemat(base / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *args: True)
    table = TorchvisionSet(tmp_path, "flowers102").table()
    assert table.frame["split"].tolist() == ["train", "train", "val", "val", "test", "test"]
    assert table.targets().argmax(axis=1).tolist() == [2, 0, 101, 2, 1, 1]
    assert len(table.classes) == 102
    for split in ("train1", "val1", "test1"):
        (tmp_path / "dtd" / "dtd" / "labels").mkdir(parents=True, exist_ok=True)
        (tmp_path / "dtd" / "dtd" / "labels" / f"{split}.txt").write_text(f"banded/{split}.jpg\nwoven/{split}.jpg\n")
        save(noise(4, 4, 3), tmp_path / "dtd" / "dtd" / "images" / "banded" / f"{split}.jpg")
        save(noise(4, 4, 3), tmp_path / "dtd" / "dtd" / "images" / "woven" / f"{split}.jpg")
    table = TorchvisionSet(tmp_path, "dtd").table()
    assert table.classes == ["banded", "woven"]
    assert len(table) == 6


@pytest.mark.parametrize("name", SETS)
def test_what_is_not_there_names_the_way(tmp_path, name):
    with pytest.raises(FinetuneError, match=f"does not hold {name} as torchvision.*data.download=true fetches it"):
        TorchvisionSet(tmp_path, name).table()


def test_what_is_wrong_is_named(tmp_path, monkeypatch):
    with pytest.raises(FinetuneError, match=r"data=torchvision needs data.name=NAME: choose from cifar10, cifar100"):
        TorchvisionSet(tmp_path).table()
    with pytest.raises(FinetuneError, match=r"data.name=cifar is not known. Did you mean cifar10\?"):
        TorchvisionSet(tmp_path, "cifar").table()
    with pytest.raises(FinetuneError, match=r"data=torchvision needs data.root=DIR"):
        TorchvisionSet(None, "pets").table()

    def offline(**kwargs):
        assert kwargs["download"]
        raise OSError("<urlopen error [Errno -2] Name or service not known>\nmore")

    monkeypatch.setattr(datasets, "OxfordIIITPet", offline)
    with pytest.raises(FinetuneError, match=r"pets cannot be fetched into data.root=.*Name or service not known>$"):
        TorchvisionSet(tmp_path / "new", "pets", download=True).table()
