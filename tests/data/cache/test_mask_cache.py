"""Masks are decoded once, lie where their image lies, and are counted; a wrong one is wrong with its image."""

import os
import pickle

import albumentations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.annotations import Layer, MaskFile, Regions
from finetune.data.audit.audit import audit_images, audit_table
from finetune.data.cache import mask_cache
from finetune.data.cache.image_cache import ImageCache
from finetune.data.cache.mask_cache import MaskCache
from finetune.data.loading.augment import Augment
from finetune.data.loading.module import ImageData
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.data.making import noise, save
from tests.data.test_regions import CHEST, LUNGS, masked

P = Preprocessing(image_size=8)


def made(root, n=4, regions=LUNGS, splits="train"):
    """n images of 16 x 24 with masks of which the first marks nothing and the last is not known."""
    rng = np.random.default_rng(0)
    for i in range(n):
        save(noise(16, 24, seed=i), root / f"{i:04d}.png")
        pixels = rng.integers(0, 3, (16, 24), dtype=np.uint8) * (i > 0)
        save(pixels.astype(np.uint8), root / f"m/{i}.png")
    table = masked([*(MaskFile(f"m/{i}.png") for i in range(n - 1)), None], regions, root)
    return table.with_split([splits] * n).check()


@pytest.fixture
def reads(monkeypatch):
    """Counts how often a mask is decoded."""
    seen = []
    decode = MaskCache._decode
    monkeypatch.setattr(MaskCache, "_decode", lambda self, row: seen.append(row) or decode(self, row))
    return seen


@pytest.mark.parametrize("directory", ["auto", "off"])
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_every_way_gives_the_mask_of_the_square(tmp_path, directory, fit):
    table, p = made(tmp_path), Preprocessing(image_size=8, fit=fit, crop_fraction=0.8 if fit == "crop" else 1.0)
    masks = ImageCache.build(table, p, directory).masks
    assert (masks.npy is None) == (directory == "off")
    assert len(masks) == 4
    for row in range(3):
        pixels = table.annotations["mask"][row].read(table.root)
        np.testing.assert_array_equal(masks[row], p.cached_placement(16, 24).mask_to_square(pixels))
        np.testing.assert_array_equal(masks.pixels[row], [(masks[row] == k).sum() for k in range(3)])
    assert not masks[3].any()
    assert masks.known.tolist() == [[True] * 3] * 3 + [[False] * 3]
    assert masks.shown.tolist() == [[False] * 3, [False, True, True], [False, True, True], [False] * 3]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(masks))[1], masks[1])


def test_masks_are_decoded_once_and_again_where_they_or_the_regions_change(tmp_path, reads):
    table, said = made(tmp_path / "data"), []
    first = ImageCache.build(table, P, tmp_path / "cache", say=said.append).masks
    assert reads == [0, 1, 2, 3]
    assert said[-1] == "Masks of background, left, right: 3 known, 1 of them empty."
    again = ImageCache.build(table, P, tmp_path / "cache").masks
    assert len(reads) == 4
    np.testing.assert_array_equal(again[2], first[2])
    assert again.pixels.tolist() == first.pixels.tolist()
    file = tmp_path / "data/m/2.png"
    info = file.stat()
    save(np.full((16, 24), 2, np.uint8), file)
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert (ImageCache.build(table, P, tmp_path / "cache").masks[2] == 2).all()
    other = made(tmp_path / "data", regions=Regions(["background", "left", "right", "more"]))
    assert ImageCache.build(other, P, tmp_path / "cache").masks.pixels.shape == (4, 4)
    keys = {MaskCache(table, p, first.sizes).key() for p in (P, Preprocessing(image_size=9))}
    keys |= {MaskCache(table, Preprocessing(image_size=8, fit="pad"), first.sizes).key()}
    keys |= {MaskCache(other, P, first.sizes).key(), MaskCache(table, P, first.sizes + 1).key()}
    assert len(keys) == 5


@pytest.mark.parametrize("directory", ["auto", "off"])
def test_a_mask_that_does_not_fit_is_a_bad_image(tmp_path, directory):
    table = made(tmp_path, 6)
    save(np.zeros((16, 25), np.uint8), tmp_path / "m/1.png")
    save(np.full((16, 24), 9, np.uint8), tmp_path / "m/2.png")
    (tmp_path / "m/4.png").write_bytes(b"no image")
    (tmp_path / "0003.png").unlink()
    for _ in range(2):  # from the files, then from the cache
        with pytest.raises(FinetuneError) as caught:
            ImageCache.build(table, P, directory)
        text = str(caught.value)
        assert text.startswith("4 of 6 images or their masks cannot be read, first:")
        assert "0001.png: its mask m/1.png has 16 x 25 pixels, the image 16 x 24" in text
        assert "0002.png: its mask m/2.png holds 9, which is no region of background, left, right" in text
        assert "0003.png: is missing" in text
        assert "0004.png: its mask m/4.png cannot be read as a mask" in text
    cache = ImageCache.build(table, P, directory, on_bad="skip")
    assert sorted(cache.bad) == [1, 2, 3, 4]
    assert sorted(cache.unreadable) == [3]
    cache[1]  # its image is as good as any: near copies are looked for among all
    assert ImageData(table, cache, P, None, batch_size=2).rows("train").tolist() == [0, 5]


def test_batches_say_what_is_known(tmp_path):
    table = made(tmp_path)
    layered = [
        MaskFile(layers=((0, Layer("m/1.png")), (1, Layer(rle="1 160")))),
        MaskFile(layers=((1, Layer(rle="")),), unknown=(0,)),
        None,
        None,
    ]
    save(np.ones((16, 24), np.uint8), tmp_path / "m/1.png")
    table = masked(layered, CHEST, tmp_path).with_split(["train"] * 4).check()
    cache = ImageCache.build(table, P, "off")
    batch = next(iter(ImageData(table, cache, P, None, batch_size=4).eval_loader("train")))
    assert batch["mask"].shape == (4, 8, 8)
    assert batch["mask"].dtype == torch.uint8
    assert batch["mask_known"].tolist() == [[True, True], [False, True], [False, False], [False, False]]
    assert sorted(batch["mask"][0].unique().tolist()) == [1, 3]
    assert not batch["mask"][1:].any()


def test_the_augmented_mask_of_a_sample_is_the_same_whoever_asks(tmp_path):
    table = made(tmp_path)
    augment = Augment(8, {"move": albumentations.Affine(rotate=(-40, 40), scale=(0.5, 1.5), p=1)})
    stored, decoded = (ImageCache.build(table, P, directory) for directory in ("auto", "off"))
    first, other = (ImageData(table, cache, P, augment, batch_size=4, seed=1) for cache in (stored, decoded))
    batch = first.train_dataset.__getitems__([(2, row) for row in range(4)])
    again = other.train_dataset.__getitems__([(2, row) for row in (3, 1)])
    assert torch.equal(batch["mask"][[3, 1]], again["mask"])
    assert torch.equal(batch["image"][[3, 1]], again["image"])
    assert not torch.equal(batch["mask"][1], first.train_dataset[(3, 1)]["mask"])


def test_the_audit_counts_regions(tmp_path):
    table = made(tmp_path, 12).with_split(["train"] * 8 + ["val"] * 4)
    for row in range(8, 11):
        save(np.full((16, 24), row % 2, np.uint8), tmp_path / f"m/{row}.png")  # of val: none, left, none
    cache = ImageCache.build(table, P, "off")
    audit = audit_images(audit_table(table), table, cache)
    counts = audit.counts["val"]["targets"]["mask"]
    assert counts == {
        "type": "mask", "known": 3, "unknown": 1, "empty": 2,
        "regions": {"left": {"known": 3, "images": 1, "share": pytest.approx(1 / 3)},
                    "right": {"known": 3, "images": 0, "share": 0.0}},
    }  # fmt: skip
    assert audit.counts["train"]["targets"]["mask"]["regions"]["left"]["images"] == 7
    assert "val has no image with the region right: it has no score there." in audit.warnings
    assert "val has fewer than 10 images with the region left (1): their scores say little." in audit.warnings
    assert any("train has fewer than 10 images with the region left (7), right (7)" in w for w in audit.warnings)


def test_masks_that_mark_nothing_in_train_stop(tmp_path):
    table = made(tmp_path, 4)
    for row in range(3):
        save(np.zeros((16, 24), np.uint8), tmp_path / f"m/{row}.png")
    cache = ImageCache.build(table, P, "off")
    with pytest.raises(FinetuneError, match="no train image shows left, right: of 4 train images 3 have a known mask"):
        audit_images(audit_table(table), table, cache)
    alone = table.with_split(["test"] * 4)  # to evaluate on: said, not stopped
    assert "test has no image with the region left, right" in str(audit_images(audit_table(alone), alone, cache))


def test_a_full_disk_is_no_end(tmp_path, monkeypatch):
    table, said = made(tmp_path / "data"), []
    ImageCache.build(table, P, tmp_path / "cache")
    monkeypatch.setattr(mask_cache, "VERSION", -1)  # the images are there, the masks are not
    monkeypatch.setattr("finetune.data.cache.store.shutil.disk_usage", lambda _: Disk)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    masks = ImageCache.build(table, P, "auto", say=said.append).masks
    assert masks.npy is None
    assert any(sentence.startswith("Masks are not cached: ") for sentence in said)
    with pytest.raises(FinetuneError, match=r"data.cache=.*Choose another folder or data.cache=off"):
        ImageCache.build(table, P, tmp_path / "cache")


class Disk:
    free = 1


sides = st.integers(8, 60)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from(["squash", "pad"]), st.integers(0, 255), st.data())
def test_a_mask_goes_to_the_square_and_back(height, width, fit, value, data):
    """In a square that is no smaller, each pixel of the image keeps its bits, and comes back from its centre."""
    p = Preprocessing(image_size=max(height, width) * data.draw(st.integers(1, 3)), fit=fit)
    mask = np.random.default_rng(height).integers(0, 256, (height, width), dtype=np.uint8)
    mask[0, 0] = value
    square = p.mask_to_input(mask)
    rows, columns = np.mgrid[:height, :width]
    centres = p.placement(height, width).to_square(np.stack([columns + 0.5, rows + 0.5], axis=-1))
    x, y = np.floor(centres).astype(int).transpose(2, 0, 1)
    np.testing.assert_array_equal(square[y, x], mask)
    assert set(np.unique(square)) <= {*np.unique(mask), 0}
