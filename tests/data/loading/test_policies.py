"""RandAugment and TrivialAugment: operations equal to torchvision's, draws from (seed, epoch, sample) alone."""

import math
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as F

from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.data.loading.augment import Augment
from finetune.data.loading.policies import (
    LEVELS,
    OPERATIONS,
    RAND_STRENGTHS,
    SIGNED,
    TRIVIAL_STRENGTHS,
    RandAugment,
    TrivialAugment,
)
from finetune.errors import FinetuneError
from tests.data.making import noise

SIDE = 64
LINEAR = InterpolationMode.BILINEAR
PRESETS = ("randaugment", "xray_randaugment", "trivialaugment", "natural_erasing")
TORCHVISIONS = {
    "identity": "Identity", "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
    "translate_y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "color": "Color",
    "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
    "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


def smooth(*shape: int) -> np.ndarray:
    image = cv2.GaussianBlur(noise(*shape), (9, 9), 3).astype(float)
    return ((image - image.min()) / (image.max() - image.min()) * 200 + 20).astype(np.uint8)


def preset(name: str, side: int = 24) -> Augment:
    words = [f"transforms={name}", "data=folder", "data.root=x", f"data.image_size={side}"]
    return build.augment(parse(compose.plain(compose.compose(words))))


def torchvisions(image: Image.Image, name: str, strength: float) -> Image.Image:
    if name.startswith("shear"):  # about the centre, as here
        angle = math.degrees(math.atan(strength))
        return F.affine(image, 0, [0, 0], 1, [angle, 0] if name == "shear_x" else [0, angle], LINEAR)
    scaled = {"translate_x": strength * SIDE, "translate_y": strength * SIDE, "posterize": 8 - round(strength)}
    scaled["solarize"] = 255 * (1 - strength)
    return autoaugment._apply_op(image, TORCHVISIONS[name], scaled.get(name, strength), LINEAR, None)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("table", [RAND_STRENGTHS, TRIVIAL_STRENGTHS], ids=["rand", "trivial"])
def test_operations_are_torchvisions(name, table):
    colored, gray = smooth(SIDE, SIDE, 3), smooth(SIDE, SIDE)
    for level in (0, 12, 30):
        for sign in (1, -1) if name in SIGNED else (1,):
            strength = sign * table[name] * level / LEVELS
            for image in (colored, gray) if name != "color" else (colored,):
                ours = OPERATIONS[name](strength)(image=image)["image"].astype(int)
                theirs = np.asarray(torchvisions(Image.fromarray(image), name, strength)).astype(int)
                difference = np.abs(ours - theirs)
                moved = name.startswith(("shear", "rotate"))
                inner = theirs[16:-16, 16:-16] > 0  # away from the borders that the filters treat differently
                assert (difference[16:-16, 16:-16][inner] if moved else difference).max(initial=0) <= 2
                if moved:
                    assert difference.mean() < 4


def test_strengths_are_torchvisions():
    theirs = autoaugment.RandAugment()._augmentation_space(31, (331, 331))
    wide = autoaugment.TrivialAugmentWide()._augmentation_space(31)
    for ours, table, side in ((RAND_STRENGTHS, theirs, 331), (TRIVIAL_STRENGTHS, wide, 224)):
        assert {TORCHVISIONS[name] for name in ours} == set(table)
        for name, largest in ours.items():
            values, signed = table[TORCHVISIONS[name]]
            assert signed == (name in SIGNED)
            if values.ndim:
                levels = np.arange(31) * largest / LEVELS
                scaled = levels * side if name.startswith("translate") else levels
                scaled = 255 * (1 - levels) if name == "solarize" else scaled
                scaled = 8 - levels.round() if name == "posterize" else scaled
                np.testing.assert_allclose(scaled, values.numpy(), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(24, 24), (32, 32, 3)])
def test_presets_depend_on_seed_epoch_and_sample_alone(name, shape):
    augment, image = preset(name), noise(*shape)
    seeds = [(0, epoch, sample) for epoch in (0, 1) for sample in range(12)]
    first = {seed: augment(image, seed) for seed in seeds}
    assert all(out.shape == (24, 24, *shape[2:]) for out in first.values())
    twin = pickle.loads(pickle.dumps(augment))
    for seed in reversed(seeds):
        np.testing.assert_array_equal(augment(image, seed), first[seed])
        np.testing.assert_array_equal(twin(image, seed), first[seed])
    assert len({out.tobytes() for out in first.values()}) > len(seeds) // 2  # identity comes now and then


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, LEVELS), st.integers(1, 4))
def test_masks_and_boxes_move_with_the_pixels(sample, magnitude, n):
    geometric = [name for name in OPERATIONS if not name.startswith(("shear", "translate", "rotate"))]
    augment = Augment(96, {"policy": RandAugment(n=n, magnitude=magnitude, without=geometric)})
    image = np.zeros((96, 96), np.uint8)
    image[40:60, 35:65] = 255
    moved = augment.together(image, (0, 0, sample), mask=image // 255 * 130, boxes=np.array([[35.0, 40, 65, 60]]))
    assert set(np.unique(moved.mask)) <= {0, 130}
    rows, columns = np.nonzero(moved.mask)
    if not len(rows):
        return
    bright, marked = moved.image > 127, moved.mask > 0
    assert (bright & marked).sum() >= 0.8 * (bright | marked).sum() - 30
    x0, y0, x1, y1 = moved.boxes.corners[0]
    assert x0 - n - 1 <= columns.min() <= columns.max() + 1 <= x1 + n + 1
    assert y0 - n - 1 <= rows.min() <= rows.max() + 1 <= y1 + n + 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_masks_and_the_image_beside_them(name):
    augment, image = preset(name), noise(24, 24, 3)
    mask = noise(24, 24) // 64
    for sample in range(20):
        moved = augment.together(image, (0, 0, sample), mask=mask, boxes=np.array([[2.0, 3, 20, 18]]))
        np.testing.assert_array_equal(moved.image, augment(image, (0, 0, sample)))
        assert set(np.unique(moved.mask)) <= {0, 1, 2, 3}


def test_every_operation_is_drawn_as_often_and_with_both_signs():
    policy, augment = TrivialAugment(without=["posterize", "solarize"]), Augment(8)
    drawn = []
    for sample in range(3000):
        augment._reseed((0, 0, sample))
        policy.set_random_state(augment._generator, augment._python)
        drawn += policy.draw()
    counts = Counter(name for name, _ in drawn)
    assert set(counts) == set(OPERATIONS) - {"posterize", "solarize"}
    assert all(180 < count < 320 for count in counts.values())  # 250 +- 4.6 standard deviations
    rotated = [strength for name, strength in drawn if name == "rotate"]
    assert 0.35 < np.mean([strength < 0 for strength in rotated]) < 0.65
    assert {round(abs(strength) / 4.5) for strength in rotated} == set(range(31))
    assert len(RandAugment(n=3).draw()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["transforms.transforms.randaugment.n=0"], "n=0 must be 1 or more operations"),
        (["transforms.transforms.randaugment.magnitude=31"], "magnitude=31 must be a whole number from 0 to 30"),
        (
            ["transforms.transforms.randaugment.without=[solarise]"],
            "without=solarise is not known. Did you mean solarize",
        ),
        (["transforms.transforms.randaugment.without=solarize"], "without=solarize"),
        ([f"transforms.transforms.randaugment.without=[{','.join(OPERATIONS)}]"], "leaves out every operation"),
    ],
)
def test_misuse_is_named(words, message):
    with pytest.raises(FinetuneError, match=message):
        build.check(compose.plain(compose.compose(["transforms=randaugment", *words])))


def test_flip_and_operations_are_left_out_by_name():
    words = ["transforms.transforms.flip=null", "transforms.transforms.randaugment.without=[posterize,solarize]"]
    augment = build.augment(build.check(compose.plain(compose.compose(["transforms=randaugment", *words]))))
    assert list(augment.transforms) == ["crop", "randaugment"]
    assert not {"posterize", "solarize"} & set(augment.transforms["randaugment"].strengths)
