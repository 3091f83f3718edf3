import builtins
import threading
import time
import zipfile

import numpy as np
import pytest

from finetune.data.cache.image_cache import ImageCache, cache_key
from finetune.data.decoding import containers
from finetune.data.decoding.containers import Member, length, member
from finetune.data.decoding.images import BadImage, read_image
from finetune.data.sources.csv_table import CsvTable
from finetune.data.sources.listing import present
from finetune.errors import MissingExtra
from finetune.preprocessing import Preprocessing
from tests.data.making import make_table, noise, save

P = Preprocessing(image_size=8)
GRAY, COLOUR = noise(5, 8, 9), noise(4, 8, 9, 3)


@pytest.fixture(params=["packed.npz", "stored.npz", "x.h5"])
def box(request, tmp_path):
    """A container with gray and coloured images, of each kind."""
    path = tmp_path / request.param
    arrays = {"gray": GRAY, "colour": COLOUR, "deep/er": GRAY.astype(np.uint16) * 257, "mask": GRAY > 100}
    arrays |= {"single": GRAY[..., None], "float": GRAY / 255, "number": np.array(3), "flat": GRAY[0]}
    if path.suffix == ".npz":
        (np.savez_compressed if path.stem == "packed" else np.savez)(path, **arrays)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for key, values in arrays.items():
                file[key] = values
    return path


def test_the_form_of_a_path():
    assert member("a/b.npz::train_images/12") == Member(containers.Path("a/b.npz"), "train_images", 12)
    assert member("a.h5::group/x/3") == Member(containers.Path("a.h5"), "group/x", 3)
    assert member("a.H5::x/3").path == "a.H5::x/3"
    assert member("IM001::frame/3").is_frame
    for path in ("a/b.png", "a.npz", "a.npz::x", "a.npz::x/y", "a.npz::/1", "odd::name/3", "a.npz::x/-1"):
        assert member(path) is None


def test_images_come_out_as_they_were_put_in(box):
    for row in range(4):
        np.testing.assert_array_equal(read_image(f"{box}::gray/{row}"), GRAY[row])
        np.testing.assert_array_equal(read_image(f"{box}::colour/{row}"), COLOUR[row])
        np.testing.assert_array_equal(read_image(f"{box}::deep/er/{row}"), GRAY[row])  # 257 v / 65535 = v / 255
        np.testing.assert_array_equal(read_image(f"{box}::single/{row}"), GRAY[row])
        np.testing.assert_array_equal(read_image(f"{box}::mask/{row}"), (GRAY[row] > 100) * np.uint8(255))
    assert length(box, "gray") == 5


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("gray/5", "is missing: gray has 5 images, counted from 0"),
        ("grey/0", "is missing: the file has the arrays "),
        ("float/0", "holds float64 values, which have no fixed range"),
        ("flat/0", r"has the shape \(8, 9\); wanted is \(N, H, W\)"),
        ("number/0", "is a single number"),
    ],
)
def test_the_error_names_what_is_no_image(box, place, reason):
    with pytest.raises(BadImage, match=reason):
        read_image(f"{box}::{place}")


def test_the_error_names_a_damaged_or_missing_file(box):
    content = box.read_bytes()
    box.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImage, match="is damaged or cut short"):
        read_image(f"{box}::gray/0")
    box.write_bytes(b"text")
    with pytest.raises(BadImage, match="is damaged or cut short"):
        read_image(f"{box}::gray/0")
    box.unlink()
    with pytest.raises(BadImage, match=f"is missing: there is no file {box.name}"):
        read_image(f"{box}::gray/0")


def test_a_flipped_bit_in_a_packed_array_is_noticed(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=GRAY)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(BadImage, match="is damaged or cut short"):
        read_image(f"{path}::a/0")


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}, {}], dtype=object))
    with pytest.raises(BadImage, match="Python objects, which are not read"):
        read_image(f"{tmp_path}/x.npz::a/0")


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "x.npz"
    for values in (GRAY, 255 - GRAY):
        np.savez(tmp_path / "new.npz", a=values)
        (tmp_path / "new.npz").rename(path)
        np.testing.assert_array_equal(read_image(f"{path}::a/1"), values[1])


def test_an_array_is_unpacked_once_for_all_threads(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", a=GRAY)
    loads, real = [], containers._load_npz

    def slow(*place):
        loads.append(place)
        time.sleep(0.05)
        return real(*place)

    monkeypatch.setattr(containers, "_load_npz", slow)
    threads = [threading.Thread(target=read_image, args=[f"{tmp_path}/x.npz::a/{i}"]) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_few_arrays_stay_open(tmp_path):
    for i in range(containers.MAX_OPEN + 3):
        np.savez(tmp_path / f"{i}.npz", a=GRAY)
        read_image(f"{tmp_path}/{i}.npz::a/0")
    assert len(containers._arrays) == containers.MAX_OPEN


def test_presence_is_a_matter_of_the_file_and_the_length(box):
    root, name = box.parent, box.name
    save(noise(4, 4), root / "a.png")
    paths = [f"{name}::gray/4", f"{name}::gray/5", f"{name}::none/0", "other.npz::gray/0", "a.png", "b.png"]
    assert present(root, paths) == [True, False, False, False, True, False]
    assert present(root, ["scan.dcm::frame/7", "a.png::frame/7"]) == [False, True]
    box.write_bytes(b"text")
    assert present(root, [f"{name}::gray/4"]) == [True]  # decoding will say what is wrong with it


def test_a_table_may_name_images_in_containers(box):
    rows = [f"{box.name}::gray/{i},{'ab'[i % 2]}" for i in range(7)]
    (box.parent / "t.csv").write_text("\n".join(["path,label", *rows]))
    table = CsvTable(box.parent / "t.csv", "label").table()
    assert len(table) == 5
    assert table.notes[0].startswith("2 of 7 listed images are absent")
    cache = ImageCache.build(table, P, workers=2)
    for row in range(5):
        np.testing.assert_array_equal(cache[row], P.resize(GRAY[row]))


def test_the_key_follows_the_container_and_looks_at_it_once(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez(path, a=GRAY)
    files = [tmp_path / f"x.npz::a/{i}" for i in range(5)]
    looks, real = [], containers.state
    monkeypatch.setattr(containers, "state", lambda file: looks.append(file) or real(file))
    before = cache_key(files, P)
    assert looks == [path]
    assert cache_key(files[:4], P) != before != cache_key([tmp_path / f"x.npz::b/{i}" for i in range(5)], P)
    np.savez(path, a=GRAY[:, ::-1])
    assert cache_key(files, P) != before


def test_the_file_of_many_images_is_opened_once(tmp_path, monkeypatch):
    count = 5000
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros((count, 2, 2), np.uint8))
    paths = [f"x.npz::a/{i}" for i in range(count)]
    opened, real = [], zipfile.ZipFile.__init__
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda self, *a, **k: opened.append(a) or real(self, *a, **k))
    make_table(tmp_path, paths=paths, targets=[[1]] * count).check()
    assert all(present(tmp_path, paths))
    cache_key([tmp_path / path for path in paths], P)
    for path in paths:
        read_image(tmp_path / path)
    assert len(opened) <= 3  # for the header, for the array


def test_hdf5_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.h5").write_bytes(b"\x89HDF")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for ask in (lambda: read_image(tmp_path / "x.h5::a/0"), lambda: present(tmp_path, ["x.h5::a/0"])):
        with pytest.raises(MissingExtra, match=r'is HDF5, which needs h5py: pip install -e "\.\[h5\]"'):
            ask()


def test_a_claim_of_more_than_the_file_holds(tmp_path):
    np.savez(tmp_path / "x.npz", a=GRAY)
    header = zipfile.ZipFile(tmp_path / "x.npz").read("a.npy")
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("a.npy", header.replace(b"(5, 8, 9)", b"(5,80, 9)"))
    with pytest.raises(BadImage, match="is damaged or cut short"):
        read_image(tmp_path / "y.npz::a/0")
