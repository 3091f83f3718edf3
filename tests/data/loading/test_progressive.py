"""Training images that grow: sides by hand, areas, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.data.loading.augment import Augment
from finetune.data.loading.module import ImageData
from finetune.data.loading.progressive import Progressive, shrink
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.data.making import noise
from tests.training import tiny

albumentations = pytest.importorskip("albumentations")


def test_sides_by_hand():
    sides = [Progressive(4, 0.5, 32).side(epoch, 224) for epoch in range(6)]
    assert sides == [128, 128, 160, 192, 224, 224]  # exactly 112, 140, 168, 196, 224
    assert [Progressive(2, 0.5, 1).side(epoch, 100) for epoch in range(3)] == [50, 75, 100]
    assert [Progressive(2, 0.5, 32).side(epoch, 100) for epoch in range(3)] == [64, 64, 100]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.floats(0.01, 0.99), st.integers(1, 64), st.integers(8, 600))
def test_sides_grow_to_the_full_one(epochs, start, multiple, full):
    progressive = Progressive(epochs, start, multiple)
    sides = [progressive.side(epoch, full) for epoch in range(epochs + 3)]
    assert sides == sorted(sides)
    assert sides[epochs:] == [full] * 3
    assert all(side == full or side % multiple == 0 for side in sides)
    assert all(abs(s - full * (start + (1 - start) * e / epochs)) <= multiple for e, s in enumerate(sides[:epochs]))


def test_a_pixel_is_the_mean_of_its_area():
    images = np.array([[[0, 10, 100, 100], [20, 30, 100, 100], [1, 1, 7, 7], [1, 1, 7, 7]]], np.uint8)
    assert shrink(images, 2).tolist() == [[[15, 100], [1, 7]]]
    assert shrink(noise(12, 12, 3)[None], 8).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("crop_fraction", [1.0, 0.75])
def test_training_images_shrink_after_their_augmentation_and_validation_images_do_not(crop_fraction):
    table, images = tiny.table(8)
    fit = {"fit": "crop", "crop_fraction": crop_fraction} if crop_fraction < 1 else {}
    full = int(tiny.SIZE * crop_fraction)
    p = Preprocessing(image_size=full, in_channels=1, mean=(0.5,), std=(0.25,), **fit)
    augment = Augment(full, {"flip": albumentations.HorizontalFlip(p=0.5)})
    for change in (augment, None):
        data = ImageData(table, images, p, change, batch_size=4, progressive=Progressive(2, 0.5, 2))
        plain = ImageData(table, images, p, change, batch_size=4)
        for epoch, side in ((0, full // 2), (1, int(full * 0.75 / 2 + 0.5) * 2), (2, full)):
            keys = [(epoch, row) for row in range(8)]
            small, large = (
                data.train_dataset.__getitems__(keys)["image"],
                plain.train_dataset.__getitems__(keys)["image"],
            )
            assert small.shape == (8, 1, side, side)
            pixels = ((large * 0.25 + 0.5) * 255).round().byte().numpy()[:, 0]
            expected = (small * 0.25 + 0.5) * 255
            np.testing.assert_allclose(shrink(pixels, side) if side < full else pixels, expected[:, 0], atol=1e-3)
        assert next(iter(data.val_dataloader()))["image"].shape[-1] == full


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.progressive.epochs=20", "trainer.max_epochs=20"],
            "leaves no epoch at data.image_size=224: trainer.max",
        ),
        (["data.progressive.epochs=5", "data.progressive.start=1.5"], "data.progressive.start=1.5 must lie between 0"),
        (["data.progressive.epochs=-1"], "data.progressive.epochs=-1 must be 0 or more"),
        (["data.progressive.epochs=5", "data.image_size=32"], "give images of 32 px in epoch 0: at least 8 and less"),
        (
            ["data.progressive.epochs=5", "data.progressive.multiple=1", "data.progressive.start=0.01"],
            "give images of 2 px in epoch 0",
        ),
        (["data.progressive.epoch=5"], "there is no key data.progressive.epoch"),
        (["data.progressive.epochs=5", "task=detect"], "are for classes and findings, not for data.target=boxes"),
    ],
)
def test_misuse_is_named(words, message):
    with pytest.raises(FinetuneError, match=message):
        build.check(compose.plain(compose.compose(["trainer.max_epochs=20", *words])))


def test_it_is_off_by_default_and_on_with_one_word():
    assert parse(compose.plain(compose.compose([]))).data.progressive.schedule is None
    chosen = parse(compose.plain(compose.compose(["data.progressive.epochs=5"]))).data.progressive.schedule
    assert chosen == Progressive(5)
