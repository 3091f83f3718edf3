"""RandAugment and TrivialAugment: operations drawn anew for each image, as entries of `Augment.transforms`.

Albumentations 2.0 has neither. The operations and their strengths are those of torchvision's RandAugment and
TrivialAugmentWide, made of albumentations transforms. Three things differ:

- An image is sheared about its centre; torchvision and the papers shear about its top left corner.
- Pixels that move are interpolated linearly, not taken from the nearest. Those of masks are the nearest.
- The longest shift of TrivialAugment is 32 pixels of 224, a seventh of the side, at every size.

Nothing is flipped or cropped here. `without` leaves operations out by name: on X-rays, for example, `solarize` inverts
bright tissue, `posterize` removes the gray levels that findings consist of, and `equalize` the exposure.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for a newer release
import albumentations

from finetune.errors import FinetuneError, one_of

LEVELS = 30
"""Magnitudes are whole numbers from 0 to this, in equal steps."""


class Sharpness(albumentations.ImageOnlyTransform):
    """Pillow's ImageEnhance.Sharpness: factor 0 is a smoothed image, 1 the image, 2 twice its difference from it."""

    def __init__(self, factor: float, p: float = 1.0):
        super().__init__(p=p)
        self.factor = factor

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
        smooth = img.copy()  # Pillow leaves the border as it is
        smooth[1:-1, 1:-1] = cv2.filter2D(img, -1, kernel)[1:-1, 1:-1]
        return cv2.addWeighted(img, self.factor, smooth, 1 - self.factor, 0)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("factor",)


class Equalize(albumentations.ImageOnlyTransform):
    """Pillow's ImageOps.equalize, channel by channel; that of albumentations counts a level's own pixels as darker."""

    def __init__(self, p: float = 1.0):
        super().__init__(p=p)

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        channels = [img] if img.ndim == 2 else np.moveaxis(img, -1, 0)
        return np.stack([_equalized(channel) for channel in channels], axis=-1).reshape(img.shape)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ()


def _equalized(channel: np.ndarray) -> np.ndarray:  # (H, W) -> (H, W)
    pixels = np.bincount(channel.ravel(), minlength=256)
    step = (pixels.sum() - pixels[pixels.nonzero()[0][-1]]) // 255
    if not step:
        return channel
    table = np.minimum((step // 2 + np.cumsum(pixels) - pixels) // step, 255).astype(np.uint8)
    return table[channel]


def affine(**moves: Any) -> Any:
    return albumentations.Affine(**moves, p=1.0)


def jitter(**factors: float) -> Any:
    """Brightness, contrast or saturation times a factor."""
    parts = {name: (factors.get(name, 1.0),) * 2 for name in ("brightness", "contrast", "saturation")}
    return albumentations.ColorJitter(**parts, hue=(0.0, 0.0), p=1.0)


def along(axis: str, value: float) -> dict[str, tuple[float, float]]:
    """`value` along one axis, nothing along the other."""
    return {name: (value, value) if name == axis else (0, 0) for name in ("x", "y")}


def posterize(bits_less: float) -> Any:
    bits = 8 - round(bits_less)
    return albumentations.Posterize(num_bits=bits, p=1.0) if bits < 8 else albumentations.NoOp()


OPERATIONS: Mapping[str, Callable[[float], Any]] = {
    "identity": lambda v: albumentations.NoOp(),
    "shear_x": lambda v: affine(shear=along("x", math.degrees(math.atan(v)))),
    "shear_y": lambda v: affine(shear=along("y", math.degrees(math.atan(v)))),
    "translate_x": lambda v: affine(translate_percent=along("x", v)),
    "translate_y": lambda v: affine(translate_percent=along("y", v)),
    "rotate": lambda v: affine(rotate=(v, v)),
    "brightness": lambda v: jitter(brightness=1 + v),
    "color": lambda v: jitter(saturation=1 + v),
    "contrast": lambda v: jitter(contrast=1 + v),
    "sharpness": lambda v: Sharpness(1 + v),
    "posterize": posterize,
    "solarize": lambda v: albumentations.Solarize(threshold_range=(1 - v, 1 - v), p=1.0),
    "autocontrast": lambda v: albumentations.AutoContrast(method="pil", p=1.0),
    "equalize": lambda v: Equalize(),
}
"""Name -> strength -> transform. A grey image has no color to change."""

SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
"""Operations of which half the images get the negative strength."""

RAND_STRENGTHS = {
    "identity": 0.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331, "translate_y": 150 / 331,
    "rotate": 30.0, "brightness": 0.9, "color": 0.9, "contrast": 0.9, "sharpness": 0.9, "posterize": 4.0,
    "solarize": 1.0, "autocontrast": 0.0, "equalize": 0.0,
}  # fmt: skip
"""Strengths of RandAugment at the largest magnitude."""

TRIVIAL_STRENGTHS = {
    **RAND_STRENGTHS, "shear_x": 0.99, "shear_y": 0.99, "translate_x": 32 / 224, "translate_y": 32 / 224,
    "rotate": 135.0, "brightness": 0.99, "color": 0.99, "contrast": 0.99, "sharpness": 0.99, "posterize": 6.0,
}  # fmt: skip
"""Strengths of TrivialAugment (Wide) at the largest magnitude."""


class Policy:
    """Draws operations from a table of strengths, from the random state that `Augment` sets for each image."""

    def __init__(self, strengths: Mapping[str, float], without: Sequence[str]):
        if isinstance(without, str):
            raise FinetuneError(f"without={without} must be a list of names: without=[{without}].")
        for name in without:
            if name not in strengths:
                raise one_of("without", name, strengths)
        self.strengths = {name: value for name, value in strengths.items() if name not in without}
        if not self.strengths:
            raise FinetuneError("without leaves out every operation; transforms=none changes nothing.")
        self.set_random_state(np.random.default_rng(0), random.Random(0))
        self._built: dict[tuple[str, float], Any] = {}

    def set_random_state(self, generator: np.random.Generator, python: random.Random) -> None:
        """As that of an albumentations transform."""
        self._generator, self._python = generator, python

    def draw(self) -> list[tuple[str, float]]:
        """Names and strengths of the operations for one image."""
        raise NotImplementedError

    def __call__(self, **targets: Any) -> dict[str, Any]:
        """Image, and mask and bboxes where there are any, moved alike."""
        for name, strength in self.draw():
            transform = self._transform(name, strength)
            transform.set_random_state(self._generator, self._python)
            targets = transform(**targets)
        return targets

    def draw_one(self, magnitude: int) -> tuple[str, float]:
        names = [*self.strengths]
        name = names[int(self._generator.integers(len(names)))]
        strength = self.strengths[name] * magnitude / LEVELS
        return name, -strength if name in SIGNED and self._generator.random() < 0.5 else strength

    def _transform(self, name: str, strength: float) -> Any:
        key = (name, strength)
        if key not in self._built:  # a millisecond each, so all of them would delay the start of a worker
            self._built[key] = OPERATIONS[name](strength)
        return self._built[key]


class RandAugment(Policy):
    """`n` operations after one another, each with the same magnitude (Cubuk et al., 2020).

    Args:
        n: operations of each image; the same one may come twice.
        magnitude: whole number from 0 (nearly nothing) to 30.
        without: names of `OPERATIONS` to leave out.
    """

    def __init__(self, n: int = 2, magnitude: int = 9, without: Sequence[str] = ()):
        if n < 1:
            raise FinetuneError(f"n={n} must be 1 or more operations; transforms=none changes nothing.")
        if not 0 <= magnitude <= LEVELS:
            raise FinetuneError(f"magnitude={magnitude} must be a whole number from 0 to {LEVELS}.")
        super().__init__(RAND_STRENGTHS, without)
        self.n, self.magnitude = n, magnitude

    def draw(self) -> list[tuple[str, float]]:
        return [self.draw_one(self.magnitude) for _ in range(self.n)]


class TrivialAugment(Policy):
    """One operation of any magnitude: nothing to tune (Müller and Hutter, 2021, the "Wide" strengths).

    Args:
        without: names of `OPERATIONS` to leave out.
    """

    def __init__(self, without: Sequence[str] = ()):
        super().__init__(TRIVIAL_STRENGTHS, without)

    def draw(self) -> list[tuple[str, float]]:
        return [self.draw_one(int(self._generator.integers(LEVELS + 1)))]
