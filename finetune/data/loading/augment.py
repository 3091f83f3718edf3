"""Augmentation of training images, with their masks and boxes, as a pure function of (image, seed, epoch, sample)."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for a newer release
import cv2

cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork, and squares of 224 pixels gain nothing from them

from finetune.errors import FinetuneError  # noqa: E402
from finetune.placement import PlacedBoxes, cut_boxes  # noqa: E402


class Augmented(NamedTuple):
    """What `Augment.together` gives: all three in the same image_size x image_size square."""

    image: np.ndarray
    """uint8 (image_size, image_size[, 3])"""
    mask: np.ndarray | None
    """uint8 (image_size, image_size)"""
    boxes: PlacedBoxes | None
    """In pixels of the square, cut at its border."""


class Augment:
    """Albumentations transforms in the order of their names' mapping; always gives image_size x image_size uint8.

    Albumentations forks one random state unchanged into every worker, so that workers repeat each other and epochs
    repeat themselves. Here the state is set anew for each image from (seed, epoch, sample): the result does not
    depend on workers, ranks, order, or on what was augmented before.
    """

    def __init__(self, image_size: int, transforms: Mapping[str, Any] | None = None):
        self.image_size = image_size
        # A null entry switches off a transform that a preset brings: transforms.transforms.flip=null.
        self.transforms = {name: t for name, t in (transforms or {}).items() if t is not None}
        for name, transform in self.transforms.items():
            if not (callable(transform) and hasattr(transform, "set_random_state")):
                raise FinetuneError(f"transforms.{name}={transform!r} is not an albumentations transform.")
        self._mixing = [name for name, transform in self.transforms.items() if _mixes_masks(transform)]
        self._bits = np.random.PCG64(0)
        self._generator = np.random.Generator(self._bits)
        self._python = random.Random(0)

    def __call__(self, image: np.ndarray, seed: tuple[int, int, int]) -> np.ndarray:
        """(S, S[, 3]) -> (image_size, image_size[, 3]); `seed` is (seed, epoch, sample)."""
        return self.together(image, seed).image

    def together(
        self,
        image: np.ndarray,
        seed: tuple[int, int, int],
        *,
        mask: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
    ) -> Augmented:
        """The image (S, S[, 3]) with its uint8 mask (S, S) and its boxes (N, 4) left, top, right, bottom in pixels, all
        three moved alike. The image is the same with and without them.

        Raises:
            FinetuneError: a transform cannot move masks or boxes, mixes the values of masks, or gives another size or
                type.
        """
        self._reseed(seed)
        if mask is not None and self._mixing:
            name = self._mixing[0]
            raise FinetuneError(
                f"transforms.{name} ({type(self.transforms[name]).__name__}) mixes neighbouring values of masks, which "
                f"are names of regions: set transforms.transforms.{name}.mask_interpolation={cv2.INTER_NEAREST}."
            )
        if mask is not None and (mask.shape != image.shape[:2] or mask.dtype != np.uint8):
            raise FinetuneError(f"a mask of {mask.dtype} {mask.shape} does not fit an image of {image.shape}.")
        # albumentations' AutoContrast writes into a gray image; that of the cache is read-only
        out: dict[str, Any] = {"image": image.copy() if self.transforms else image}
        out |= {} if mask is None else {"mask": mask}
        number = 0
        if boxes is not None:
            number = len(boxes)
            out["bboxes"] = np.column_stack([boxes, np.arange(number)]).astype(np.float64)
        for name, transform in self.transforms.items():
            transform.set_random_state(self._generator, self._python)
            out = _apply(name, transform, out)
        side = self.image_size
        if out["image"].shape[:2] != (side, side):
            out = self._centre(out)
        result = out["image"]
        if result.dtype != np.uint8 or result.ndim != image.ndim:
            raise FinetuneError(
                f"transforms {[*self.transforms]} turn {image.dtype} {image.shape} into {result.dtype} {result.shape}: "
                "they must keep uint8 and the channels (normalising comes later)."
            )
        return Augmented(result, out.get("mask"), None if boxes is None else _cut(out["bboxes"], side, number))

    def _reseed(self, seed: tuple[int, int, int]) -> None:
        """Set both random states from a hash of the seed; a sixth of the time of albumentations' set_random_seed."""
        digest = hashlib.blake2b(struct.pack("<3q", *seed), digest_size=40).digest()
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {
                "state": int.from_bytes(digest[:16], "little"),
                "inc": int.from_bytes(digest[16:32], "little") | 1,
            },
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._python.seed(int.from_bytes(digest[32:], "little"))

    def _centre(self, out: dict[str, Any]) -> dict[str, Any]:
        height, width = out["image"].shape[:2]
        top, left = ((length - self.image_size) // 2 for length in (height, width))
        if top < 0 or left < 0:
            raise FinetuneError(
                f"transforms {list(self.transforms)} give images of {height} x {width}, smaller "
                f"than data.image_size={self.image_size}."
            )
        moved = {
            key: value[top : top + self.image_size, left : left + self.image_size]
            for key, value in out.items()
            if key != "bboxes"
        }
        if "bboxes" in out:
            moved["bboxes"] = out["bboxes"] - np.array([left, top, left, top, 0])
        return moved


def _mixes_masks(transform: Any) -> bool:
    """Whether a transform, or one within it, takes anything but the nearest pixel of a mask."""
    nearest = (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
    mixes = getattr(transform, "mask_interpolation", cv2.INTER_NEAREST) not in nearest
    return mixes or any(_mixes_masks(inner) for inner in getattr(transform, "transforms", ()))


def _apply(name: str, transform: Any, out: dict[str, Any]) -> dict[str, Any]:
    """One transform of image, mask and boxes; albumentations takes boxes as parts of the image's sides."""
    if "bboxes" in out:
        height, width = out["image"].shape[:2]
        out = {**out, "bboxes": out["bboxes"] / np.array([width, height, width, height, 1])}
    try:
        out = transform(**out)
    except NotImplementedError as error:
        raise FinetuneError(
            f"transforms.{name} ({type(transform).__name__}) cannot move {' and '.join(out)} alike: {error}. "
            f"Leave it out (transforms.transforms.{name}=null)."
        ) from None
    if "mask" in out and out["mask"].shape != out["image"].shape[:2]:
        raise FinetuneError(
            f"transforms.{name} ({type(transform).__name__}) moves the image but not its mask. "
            f"Leave it out (transforms.transforms.{name}=null)."
        )
    if "bboxes" in out:
        height, width = out["image"].shape[:2]
        out["bboxes"] = np.asarray(out["bboxes"], np.float64).reshape(-1, 5) * [width, height, width, height, 1]
    return out


def _cut(boxes: np.ndarray, side: int, number: int) -> PlacedBoxes:  # (M, 5), the last column the box's number
    placed = cut_boxes(boxes[:, :4], side)
    numbers = boxes[:, 4].astype(int)
    visible = np.zeros(number)
    np.maximum.at(visible, numbers, placed.visible)
    return PlacedBoxes(placed.corners, numbers[placed.numbers], visible)
