import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from finetune.data.loading.augment import Augment
from finetune.errors import FinetuneError
from tests.data.making import noise

albumentations = pytest.importorskip("albumentations")
CONF = Path(__file__).resolve().parents[3] / "conf" / "transforms"
SIZE, SIDE = 24, 96


def preset(name: str) -> Augment:
    """The augmentation of conf/transforms/NAME.yaml, built as the command line does."""
    from hydra.utils import instantiate

    config = OmegaConf.create({"data": {"image_size": SIZE}, "transforms": OmegaConf.load(CONF / f"{name}.yaml")})
    return instantiate(OmegaConf.to_container(config, resolve=True)["transforms"], image_size=SIZE)  # type: ignore


@pytest.fixture(params=["light", "natural"])
def augment(request) -> Augment:
    return preset(request.param)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (SIZE, SIZE, 3), (32, 32), (32, 32, 3)])
def test_size_and_channels_are_kept(augment, shape):
    image = noise(*shape)
    image.flags.writeable = False  # as it comes from the cache
    out = augment(image, (0, 0, 0))
    assert out.shape == (SIZE, SIZE, *shape[2:])
    assert out.dtype == np.uint8


def test_the_result_depends_on_seed_epoch_and_sample_alone(augment):
    image = noise(SIZE, SIZE, 3)
    seeds = [(s, e, i) for s in (0, 1) for e in (0, 1, 2) for i in (0, 1, 5)]
    first = {seed: augment(image, seed) for seed in seeds}
    twin = pickle.loads(pickle.dumps(augment))  # what a spawned worker gets
    for seed in reversed(seeds):  # in another order, after other images, in another process
        np.testing.assert_array_equal(augment(image, seed), first[seed])
        np.testing.assert_array_equal(twin(image, seed), first[seed])
    assert len({out.tobytes() for out in first.values()}) == len(seeds)


def test_the_global_random_state_is_neither_used_nor_changed(augment):
    import random

    random.seed(1)
    np.random.seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    image = noise(SIZE, SIZE)
    copy = image.copy()
    out = augment(image, (0, 0, 0))
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    np.testing.assert_array_equal(image, copy)
    random.seed(2)
    np.random.seed(2)
    np.testing.assert_array_equal(augment(image, (0, 0, 0)), out)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Posterize", "Solarize"])
def test_the_image_of_the_cache_is_not_written_to(name):
    """albumentations 2.0.8 replaces values of a gray image in place."""
    image = noise(SIZE, SIZE) // 2 + 60
    copy = image.copy()
    image.flags.writeable = False
    out = Augment(SIZE, {"change": getattr(albumentations, name)(p=1)})(image, (0, 0, 0))
    np.testing.assert_array_equal(image, copy)
    assert not np.array_equal(out, copy)


def test_one_in_two_is_flipped():
    flip = Augment(4, {"flip": albumentations.HorizontalFlip(p=0.5)})
    image = noise(4, 4)
    flipped = [not np.array_equal(flip(image, (0, 0, i)), image) for i in range(400)]
    assert 160 < sum(flipped) < 240  # 200 +- 4 standard deviations
    assert any(a != b for a, b in pairwise(flipped))


def test_light_is_light():
    light, image = preset("light"), np.full((SIZE, SIZE), 128, np.uint8)
    image[8:16, 8:16] = 200
    for i in range(20):
        out = light(image, (0, 0, i))
        assert (
            abs(int(out[12, 12]) - 200) < 60
        )  # the square stays in the middle, within 10 % of brightness and contrast


def test_masks_and_boxes_move_with_the_pixels(augment):
    """A bright square on black, its mask and its box: after any movement each still lies on the others."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[30:60, 20:70] = 255
    mask = (image > 0).astype(np.uint8)
    kept = {name: t for name, t in augment.transforms.items() if name in ("affine", "flip")}
    large = albumentations.Affine(rotate=(-30, 30), shear=(-9, 9), p=1)
    crop = albumentations.RandomResizedCrop((SIDE, SIDE), scale=(0.6, 1), p=0.5)
    mover = Augment(SIDE, {**kept, "large": large, "crop": crop})
    for sample in range(20):
        seed = (0, 1, sample)
        moved = mover.together(image, seed, mask=mask, boxes=np.array([[20.0, 30.0, 70.0, 60.0], [0, 0, 5, 5]]))
        np.testing.assert_array_equal(moved.image, mover(image, seed))  # the same with and without them
        assert moved.mask is not None
        assert moved.boxes is not None
        bright = moved.image > 100
        assert (bright & (moved.mask == 1)).sum() / (bright | (moved.mask == 1)).sum() > 0.93
        assert moved.boxes.visible.shape == (2,)
        x0, y0, x1, y1 = moved.boxes.corners[moved.boxes.numbers.tolist().index(0)]
        rows, columns = np.nonzero(moved.mask)
        # albumentations turns pixels about their centres and boxes about their edges: half a pixel in each transform
        assert x0 - 2 <= columns.min() <= columns.max() + 1 <= x1 + 2
        assert y0 - 2 <= rows.min() <= rows.max() + 1 <= y1 + 2


@pytest.mark.parametrize("name", ["light", "natural"])
def test_each_transform_of_the_presets_moves_boxes_with_the_pixels(name):
    for key, transform in preset(name).transforms.items():
        if key == "crop":
            transform = albumentations.RandomResizedCrop(
                (SIDE, SIDE), scale=transform.scale, ratio=transform.ratio, p=1
            )
        mover = Augment(SIDE, {key: transform})
        for sample in range(30):
            x, y = 20 + sample % 7, 30 + sample % 11
            image = np.zeros((SIDE, SIDE, 3), np.uint8)
            image[y : y + 20, x : x + 30] = 255
            moved = mover.together(
                image, (0, 0, sample), mask=image[..., 0] // 255, boxes=np.array([[x, y, x + 30.0, y + 20]])
            )
            rows, columns = np.nonzero(moved.mask)
            if len(rows):  # a pixel at most: turned corners are rounded off, and resizing takes the nearest pixel
                seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                np.testing.assert_allclose(moved.boxes.corners[0], seen, atol=1.5, err_msg=key)


corner = st.integers(0, 8 * SIZE).map(lambda eighths: eighths / 8)


@settings(max_examples=30, deadline=None)
@given(boxes=st.lists(st.tuples(corner, corner, corner, corner), max_size=4))
def test_flipped_twice_is_as_before(boxes):
    corners = np.array([[min(x, u), min(y, v), max(x, u), max(y, v)] for x, y, u, v in boxes]).reshape(-1, 4)
    flips = {name: albumentations.HorizontalFlip(p=1) for name in ("one", "two")}
    once = Augment(SIZE, {"one": flips["one"]}).together(noise(SIZE, SIZE), (0, 0, 0), boxes=corners).boxes
    twice = Augment(SIZE, flips).together(noise(SIZE, SIZE), (0, 0, 0), boxes=corners).boxes
    with_area = (corners[:, 2:] - corners[:, :2] > 0).all(axis=1)
    assert twice.numbers.tolist() == once.numbers.tolist() == np.flatnonzero(with_area).tolist()
    np.testing.assert_allclose(twice.corners, corners[with_area], atol=1e-9)
    np.testing.assert_allclose(once.corners[:, 0], SIZE - corners[with_area, 2], atol=1e-9)


def test_a_turned_box_is_known_by_hand():
    flip = Augment(10, {"flip": albumentations.HorizontalFlip(p=1)})
    boxes = np.array([[1.0, 2.0, 4.0, 6.0]])
    assert flip.together(noise(10, 10), (0, 0, 0), boxes=boxes).boxes.corners.tolist() == [[6, 2, 9, 6]]
    cut = Augment(6).together(noise(10, 10), (0, 0, 0), mask=noise(10, 10), boxes=boxes)  # 2 go on each side
    assert cut.mask.shape == (6, 6)
    assert cut.boxes.corners.tolist() == [[0, 0, 2, 4]]
    assert cut.boxes.visible == pytest.approx([2 / 3])
    empty = flip.together(noise(10, 10), (0, 0, 0), boxes=np.zeros((0, 4))).boxes
    assert (empty.corners.shape, empty.numbers.shape) == ((0, 4), (0,))


def test_what_cannot_move_them_is_named():
    warp = Augment(8, {"warp": albumentations.HorizontalFlip(p=1), "odd": Still(p=1)})
    with pytest.raises(FinetuneError, match=r"transforms.odd \(Still\) cannot move image and bboxes alike"):
        warp.together(noise(8, 8), (0, 0, 0), boxes=np.array([[1.0, 1, 2, 2]]))
    with pytest.raises(FinetuneError, match="a mask of uint8 \\(4, 8\\) does not fit"):
        warp.together(noise(8, 8), (0, 0, 0), mask=noise(4, 8))


class Still(albumentations.DualTransform):
    """Moves images and says nothing of boxes."""

    _targets = albumentations.HorizontalFlip._targets

    def apply(self, img, **params):
        return img


def test_nothing_and_null():
    image = noise(4, 4)
    np.testing.assert_array_equal(Augment(4)(image, (0, 0, 0)), image)
    off = Augment(4, {"flip": None, "other": albumentations.VerticalFlip(p=1)})
    np.testing.assert_array_equal(off(image, (0, 0, 0)), image[::-1])
    np.testing.assert_array_equal(Augment(2)(image, (0, 0, 0)), image[1:3, 1:3])


def test_none_is_an_empty_group():
    assert OmegaConf.load(CONF / "none.yaml") == {}


def test_misuse_is_named():
    with pytest.raises(FinetuneError, match=r"transforms.flip=1 is not an albumentations transform"):
        Augment(4, {"flip": 1})
    with pytest.raises(FinetuneError, match=r"images of 3 x 3, smaller than data.image_size=4"):
        Augment(4, {"crop": albumentations.CenterCrop(3, 3)})(noise(4, 4), (0, 0, 0))
    with pytest.raises(FinetuneError, match="must keep uint8"):
        Augment(4, {"float": albumentations.ToFloat(p=1)})(noise(4, 4), (0, 0, 0))


@pytest.mark.parametrize("fraction", [1.0, 0.75])
def test_bit_fields_keep_their_bits(augment, fraction):
    """No default transform makes a value that was not there, and each region moves as if it were alone."""
    side = int(SIZE / fraction)
    image, rng = noise(side, side), np.random.default_rng(0)
    mask = rng.choice(np.array([1, 2, 5, 128, 255], np.uint8), (side // 4, side // 4)).repeat(4, 0).repeat(4, 1)
    mask = np.pad(mask, (0, side - len(mask)), mode="edge")
    for sample in range(30):
        seed = (0, 1, sample)
        moved = augment.together(image, seed, mask=mask).mask
        assert moved.dtype == np.uint8
        assert moved.shape == (SIZE, SIZE)
        assert set(np.unique(moved)) <= {*np.unique(mask), 0}  # 0 comes in from outside
        for bit in (0, 2, 7):
            alone = augment.together(image, seed, mask=mask >> bit & 1).mask
            np.testing.assert_array_equal(alone, moved >> bit & 1)


def test_transforms_that_mix_values_of_masks_are_named():
    import cv2

    mixing = albumentations.Affine(rotate=(-9, 9), mask_interpolation=cv2.INTER_LINEAR, p=1)
    for transform in (mixing, albumentations.OneOf([albumentations.HorizontalFlip(), mixing])):
        augment = Augment(8, {"turn": transform})
        augment(noise(8, 8), (0, 0, 0))  # of images alone nothing is wrong with it
        with pytest.raises(FinetuneError, match=r"transforms.turn \(.*\) mixes neighbouring values of masks"):
            augment.together(noise(8, 8), (0, 0, 0), mask=noise(8, 8))
