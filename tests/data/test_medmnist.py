import numpy as np
import pytest

from finetune.data.audit.audit import audit_table
from finetune.data.cache.image_cache import ImageCache
from finetune.data.sources.chestxray import FINDINGS
from finetune.data.sources.medmnist import CLASSES, MedMnist
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.data.making import noise


def write(root, name="pneumoniamnist", *, size=28, labels=1, classes=2, colour=False, suffix=""):
    arrays = {}
    for seed, (split, count) in enumerate({"train": 6, "val": 2, "test": 3}.items()):
        arrays[f"{split}_images"] = noise(count, size, size, *([3] if colour else []), seed=seed)
        numbers = np.random.default_rng(seed).integers(0, classes, (count, labels))
        arrays[f"{split}_labels"] = numbers.astype(np.uint8)
    np.savez_compressed(root / f"{name}{suffix}.npz", **arrays)
    return arrays


def test_a_set_with_its_published_split(tmp_path):
    arrays = write(tmp_path)
    table = MedMnist(tmp_path, "pneumoniamnist").table()
    assert (table.classes, table.kind, table.name) == (["normal", "pneumonia"], "multiclass", "pneumoniamnist")
    assert table.frame["split"].tolist() == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    assert table.paths[6] == "pneumoniamnist.npz::val_images/0"
    assert not table.has_patients
    expected = np.concatenate([arrays[f"{split}_labels"][:, 0] for split in ("train", "val", "test")])
    np.testing.assert_array_equal(table.targets().argmax(axis=1), expected)
    cache = ImageCache.build(table, Preprocessing(image_size=28))
    np.testing.assert_array_equal(cache[7], arrays["val_images"][1])


def test_several_labels_and_colours(tmp_path):
    arrays = write(tmp_path, "chestmnist", labels=14)
    table = MedMnist(tmp_path, "chestmnist").table()
    assert (table.classes, table.kind) == (FINDINGS, "multilabel")  # so that a model of data=chestxray goes with it
    np.testing.assert_array_equal(table.targets()[:6], arrays["train_labels"])
    arrays = write(tmp_path, "retinamnist", classes=5, colour=True)
    table = MedMnist(tmp_path, "retinamnist").table()
    assert (table.classes, table.kind) == (["0", "1", "2", "3", "4"], "multiclass")
    cache = ImageCache.build(table, Preprocessing(image_size=28))
    np.testing.assert_array_equal(cache[0], arrays["train_images"][0])


def test_the_largest_file_or_the_size_named(tmp_path):
    write(tmp_path)
    write(tmp_path, size=64, suffix="_64")
    assert MedMnist(tmp_path, "pneumoniamnist").table().paths[0] == "pneumoniamnist_64.npz::train_images/0"
    assert MedMnist(tmp_path, "pneumoniamnist", size=28).table().notes[0].startswith("pneumoniamnist.npz is read.")
    with pytest.raises(FinetuneError, match=r"has no pneumoniamnist_224.npz. There is pneumoniamnist_64.npz, pneu"):
        MedMnist(tmp_path, "pneumoniamnist", size=224).table()
    with pytest.raises(FinetuneError, match=r"data.size=32 is not known. .*28, 64, 128, 224"):
        MedMnist(tmp_path, "pneumoniamnist", size=32).table()


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(FinetuneError, match=r"data=medmnist needs data.name=NAME: choose from bloodmnist, "):
        MedMnist(tmp_path).table()
    with pytest.raises(FinetuneError, match=r"data.name=pneumonia is not known. Did you mean pneumoniamnist"):
        MedMnist(tmp_path, "pneumonia").table()
    with pytest.raises(FinetuneError, match=r"data=medmnist needs data.root=DIR.*zenodo"):
        MedMnist(None, "pneumoniamnist").table()
    with pytest.raises(FinetuneError, match=r"has no pneumoniamnist.npz. Get it at .*data.download=true"):
        MedMnist(tmp_path, "pneumoniamnist").table()
    (tmp_path / "pneumoniamnist.npz").write_bytes(b"text")
    with pytest.raises(FinetuneError, match="is not a MedMNIST file, or damaged"):
        MedMnist(tmp_path, "pneumoniamnist").table()
    write(tmp_path, classes=9)
    with pytest.raises(FinetuneError, match="pneumoniamnist has 2 classes"):
        MedMnist(tmp_path, "pneumoniamnist").table()
    write(tmp_path, labels=14)
    with pytest.raises(FinetuneError, match=r"train_labels has the shape \(6, 14\)"):
        MedMnist(tmp_path, "pneumoniamnist").table()


def test_fetching_without_a_network_is_one_error(tmp_path, monkeypatch):
    medmnist = pytest.importorskip("medmnist")

    def offline(*args, **kwargs):
        raise RuntimeError("\n   Automatic download failed! Please\n more\n")

    monkeypatch.setattr(medmnist, "PneumoniaMNIST", offline)
    with pytest.raises(FinetuneError, match="cannot be fetched: Automatic download failed! Please Get it by hand at "):
        MedMnist(tmp_path / "new", "pneumoniamnist", download=True).table()

    def fetched(split, root, size, download):
        assert (split, size, download) == ("test", 28, True)
        write(tmp_path / "new")

    monkeypatch.setattr(medmnist, "PneumoniaMNIST", fetched)
    assert len(MedMnist(tmp_path / "new", "pneumoniamnist", download=True).table()) == 11


def test_the_classes_are_those_of_the_package():
    info = pytest.importorskip("medmnist").INFO
    assert set(CLASSES) == {name for name in info if "3d" not in name}
    for name, classes in CLASSES.items():
        assert len(classes.split("|")) == len(info[name]["label"]), name
        theirs = [info[name]["label"][str(k)].lower() for k in range(len(info[name]["label"]))]
        if name not in ("dermamnist", "bloodmnist", "breastmnist", "chestmnist"):
            assert classes.lower().split("|") == theirs
    assert [c.lower()[:7] for c in FINDINGS] == [v[:7] for v in info["chestmnist"]["label"].values()]


def test_the_real_file(shared_data):
    table = MedMnist(shared_data / "medmnist", "pneumoniamnist").table()
    assert {split: len(table.rows(split)) for split in ("train", "val", "test")} == {
        "train": 4708,
        "val": 524,
        "test": 624,
    }
    assert table.targets()[table.rows("test")].sum(axis=0).tolist() == [234, 390]
    assert not audit_table(table).leaks
