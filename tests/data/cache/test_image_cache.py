import multiprocessing
import os
import pickle
import shutil
import threading
import time

import numpy as np
import pytest

from finetune.data.audit.near_duplicates import Pair
from finetune.data.cache import image_cache as caches
from finetune.data.cache import store as stores
from finetune.data.cache.image_cache import ImageCache, cache_key
from finetune.data.decoding.images import BadImage, read_image
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.data.making import make_images, noise, save

P = Preprocessing(image_size=4)


@pytest.fixture
def reads(monkeypatch):
    """Counts how often an image is decoded."""
    seen = []
    monkeypatch.setattr(caches, "read_image", lambda path, min_side: seen.append(path.name) or read_image(path))
    return seen


@pytest.mark.parametrize("directory", ["auto", "off", "here"])
@pytest.mark.parametrize("colour", [(), (0,), (5,), (0, 3)])
def test_every_way_gives_the_same_images(tmp_path, directory, colour):
    table = make_images(tmp_path / "data", 6, colour=colour)
    directory = tmp_path / "here" if directory == "here" else directory
    cache = ImageCache.build(table, P, directory, workers=2)
    assert len(cache) == 6
    assert cache.channels == (3 if colour else 1)
    assert (cache.npy is None) == (directory == "off")
    for row in range(6):
        expected = P.resize(read_image(table.file(row)))
        if colour and row not in colour:
            expected = np.stack([expected] * 3, axis=-1)
        np.testing.assert_array_equal(cache[row], expected)
    np.testing.assert_array_equal(cache.take([4, 0, 4]), np.stack([cache[4], cache[0], cache[4]]))
    taken = cache.take([1, 2])
    taken[:] = 0  # a copy
    assert cache[1].any()
    assert not cache.bad


def test_images_are_decoded_once(tmp_path, reads):
    table = make_images(tmp_path, 5)
    first = ImageCache.build(table, P, workers=2)
    assert sorted(reads) == table.paths
    second = ImageCache.build(table, P, workers=2)
    assert len(reads) == 5
    np.testing.assert_array_equal(first[3], second[3])
    assert (first.digests, first.extremes.tolist()) == (second.digests, second.extremes.tolist())
    ImageCache.build(table, Preprocessing(image_size=4, mean=(0.5,) * 3), workers=2)  # not part of the resizing
    assert len(reads) == 5


def test_whatever_changes_a_image_changes_the_key(tmp_path):
    table = make_images(tmp_path, 3)
    files = [table.file(row) for row in range(3)]
    keys = {cache_key(files, P), cache_key(files[:2], P), cache_key(files[::-1], P)}
    keys |= {cache_key(files, Preprocessing(image_size=s)) for s in (4, 5)}
    keys |= {cache_key(files, Preprocessing(image_size=4, fit="pad")), cache_key(files, P.with_channels(1))}
    keys.add(cache_key(files, Preprocessing(image_size=4, interpolation="bicubic")))
    assert len(keys) == 6  # with_channels and size 4 give the first one again
    before, info = cache_key(files, P), files[1].stat()
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    os.utime(files[1], ns=(info.st_atime_ns, info.st_mtime_ns))  # same size, same date: the change is still seen
    assert cache_key(files, P) != before
    files[1].unlink()
    assert cache_key(files, P) != before


def test_digests_are_of_the_decoded_pixels(tmp_path):
    table = make_images(tmp_path, 3)
    save(noise(8, 9, seed=0), tmp_path / "0001.png", compress_level=0)  # the pixels of 0000.png in another file
    cache = ImageCache.build(table, P)
    assert cache.digests[0] == cache.digests[1] != cache.digests[2]
    image = read_image(table.file(2))
    assert cache.extremes[2].tolist() == [image.min(), image.max()]


def test_unreadable_images_stop_with_one_message(tmp_path):
    table = make_images(tmp_path, 8)
    for row in range(1, 8):
        table.file(row).write_bytes(b"" if row == 1 else b"text")
    with pytest.raises(FinetuneError, match=r"(?s)7 of 8 images cannot be read.*0001.png: is empty.*0005") as caught:
        ImageCache.build(table, P)
    assert "0006" not in str(caught.value)
    assert str(caught.value).endswith("data.on_bad=skip leaves them out.")


@pytest.mark.parametrize("directory", ["auto", "off"])
def test_unreadable_images_can_be_skipped(tmp_path, directory):
    table = make_images(tmp_path, 3)
    table.file(1).unlink()
    messages = []
    cache = ImageCache.build(table, P, directory, on_bad="skip", say=messages.append)
    assert cache.bad == {1: "is missing"}
    assert cache.digests[1] == ""
    assert messages[-1].startswith("1 of 3 images cannot be read and are left out")
    with pytest.raises(BadImage, match="is missing"):
        cache[1]
    with pytest.raises(BadImage, match="is missing"):
        cache.take([0, 1])
    with pytest.raises(FinetuneError, match="on_bad=ignore"):
        ImageCache.build(table, P, directory, on_bad="ignore")


def test_not_one_readable_image(tmp_path):
    table = make_images(tmp_path, 2)
    for row in range(2):
        table.file(row).write_bytes(b"x")
    for _ in range(2):  # from the files, then from the cache
        with pytest.raises(FinetuneError, match="2 of 2 images cannot be read"):
            ImageCache.build(table, P, on_bad="skip")


def test_a_killed_run_leaves_nothing_that_counts(tmp_path, monkeypatch):
    table = make_images(tmp_path / "data", 4)
    base = tmp_path / "cache"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores.ImageStore, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            ImageCache.build(table, P, base)
    key = cache_key([table.file(row) for row in range(4)], P)
    assert [path.name for path in base.iterdir()] == [f"{key}.lock"]
    (base / f"{key}.part-1-ab").mkdir()  # what a process leaves that was killed without a word
    cache = ImageCache.build(table, P, base)
    assert sorted(path.name for path in base.iterdir()) == [key, f"{key}.lock"]
    assert cache[0].any()


@pytest.mark.parametrize("damage", ["facts.json", "pictures.npy", "cut"])
def test_a_damaged_cache_is_built_again(tmp_path, damage):
    table = make_images(tmp_path / "data", 4)
    first = ImageCache.build(table, P, tmp_path / "cache")
    expected = first[2].copy()
    if damage == "cut":
        with first.npy.open("r+b") as file:
            file.truncate(150)
    else:
        (first.npy.parent / damage).unlink()
    np.testing.assert_array_equal(ImageCache.build(table, P, tmp_path / "cache")[2], expected)


def test_two_runs_at_once_share_the_work(tmp_path, reads, monkeypatch):
    table = make_images(tmp_path / "data", 4)
    messages, built = [], []
    slow = stores.ImageStore.finish
    monkeypatch.setattr(stores.ImageStore, "finish", lambda *a: (time.sleep(0.2), slow(*a))[1])

    def run():
        built.append(ImageCache.build(table, P, tmp_path / "cache", 1, say=messages.append))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 4
    assert sum("Waiting for another process" in sentence for sentence in messages) == 2
    assert len({cache[0].tobytes() for cache in built}) == 1


def test_without_locks_the_rename_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "fcntl", None)
    table = make_images(tmp_path / "data", 4)
    keep = stores.ImageStore.finish

    def overtaken(self, facts):
        monkeypatch.setattr(stores.ImageStore, "finish", keep)
        ImageCache.build(table, P, tmp_path / "cache")  # another run is faster
        keep(self, facts)

    monkeypatch.setattr(stores.ImageStore, "finish", overtaken)
    cache = ImageCache.build(table, P, tmp_path / "cache")
    assert cache[0].any()
    assert not list((tmp_path / "cache").glob("*.part-*"))


def disk(free: int):
    return lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free)


@pytest.mark.parametrize(("free", "colour", "kept"), [(129, (), True), (127, (), False), (300, (3,), False)])
def test_auto_takes_at_most_half_of_the_free_disk(tmp_path, monkeypatch, free, colour, kept):
    table = make_images(tmp_path, 4, colour=colour)  # 4 x 16 bytes, three times that in colour
    monkeypatch.setattr(stores.shutil, "disk_usage", disk(free))
    messages = []
    cache = ImageCache.build(table, P, "auto", say=messages.append)
    assert (cache.npy is not None) == kept
    assert messages[0].startswith("Decoding 4 images once: 0.0 MB in ")
    assert kept or "more than half of the" in messages[1]
    assert cache.channels == (3 if colour else 1)
    np.testing.assert_array_equal(cache[0], ImageCache.build(table, P, "off")[0])
    assert not cache.bad


def test_a_folder_without_room_is_an_error(tmp_path, monkeypatch):
    table = make_images(tmp_path / "data", 4)
    monkeypatch.setattr(stores.shutil, "disk_usage", disk(63))
    with pytest.raises(FinetuneError, match=r"data.cache=.*need 0.0 MB, more than the .* free .*or data.cache=off"):
        ImageCache.build(table, P, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.part-*"))


def test_a_place_that_cannot_be_written_to(tmp_path, monkeypatch):
    table = make_images(tmp_path / "data", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(FinetuneError, match=r"data.cache=.*file"):
        ImageCache.build(table, P, tmp_path / "file")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file"))
    messages = []
    cache = ImageCache.build(table, P, say=messages.append)
    assert cache.npy is None
    assert "are decoded each time" in messages[0]


def test_progress_and_long_waits_are_reported(tmp_path, monkeypatch):
    table = make_images(tmp_path, 5)
    monkeypatch.setattr(caches, "CHUNK", 2)
    monkeypatch.setattr(caches, "PROGRESS_SECONDS", -1)
    steps, messages = [], []
    ImageCache.build(table, P, "off", say=messages.append, progress=lambda *a: steps.append(a))
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert messages[0] == "Decoding images: 2 of 5."


def other_process(cache, queue):
    queue.put(cache.take([1, 0]))


@pytest.mark.parametrize("directory", ["auto", "off"])
def test_a_cache_travels_to_a_spawned_process(tmp_path, directory):
    table = make_images(tmp_path, 2)
    cache = ImageCache.build(table, P, directory)
    expected = cache.take([1, 0])
    assert len(pickle.dumps(cache)) < 10_000
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=other_process, args=(cache, queue))
    process.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    process.join()


def test_crops_are_stored_whole(tmp_path):
    table = make_images(tmp_path, 2)
    p = Preprocessing(image_size=4, fit="crop", crop_fraction=0.5)
    assert ImageCache.build(table, p)[0].shape == (8, 8)


def test_near_copies_are_looked_for_once_and_are_the_same_for_all(tmp_path, monkeypatch):
    table = make_images(tmp_path / "data", 3)
    cache = ImageCache.build(table, P, tmp_path / "cache")
    pair = Pair(0, 2, 0.97, 0.91, "certain")
    (cache.npy.parent / "near.json").write_text("[[0, 1, 0.95]]")  # of an older search
    monkeypatch.setattr(caches, "near_duplicates", lambda *a: [pair])
    assert cache.near_copies() == [pair]
    monkeypatch.setattr(caches, "near_duplicates", lambda *a: 1 / 0)
    assert ImageCache.build(table, P, tmp_path / "cache").near_copies() == [pair]
