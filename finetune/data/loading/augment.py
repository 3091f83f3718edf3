"""Augmentation of training pictures as a pure function of (picture, seed, epoch, sample)."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for a newer release
import cv2

cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork, and squares of 224 pixels gain nothing from them

from finetune.errors import FinetuneError  # noqa: E402


class Augment:
    """Albumentations transforms in the order of their names' mapping; always gives image_size x image_size uint8.

    Albumentations forks one random state unchanged into every worker, so that workers repeat each other and epochs
    repeat themselves. Here the state is set anew for each picture from (seed, epoch, sample): the result does not
    depend on workers, ranks, order, or on what was augmented before.
    """

    def __init__(self, image_size: int, transforms: Mapping[str, Any] | None = None):
        self.image_size = image_size
        # A null entry switches off a transform that a preset brings: transforms.transforms.flip=null.
        self.transforms = {name: t for name, t in (transforms or {}).items() if t is not None}
        for name, transform in self.transforms.items():
            if not (callable(transform) and hasattr(transform, "set_random_state")):
                raise FinetuneError(f"transforms.{name}={transform!r} is not an albumentations transform.")
        self._bits = np.random.PCG64(0)
        self._generator = np.random.Generator(self._bits)
        self._python = random.Random(0)

    def __call__(self, picture: np.ndarray, seed: tuple[int, int, int]) -> np.ndarray:
        """(S, S[, 3]) -> (image_size, image_size[, 3]); `seed` is (seed, epoch, sample)."""
        self._reseed(seed)
        out = picture
        for transform in self.transforms.values():
            transform.set_random_state(self._generator, self._python)
            out = transform(image=out)["image"]
        side = self.image_size
        if out.shape[:2] != (side, side):
            out = self._centre(out)
        if out.dtype != np.uint8 or out.ndim != picture.ndim:
            raise FinetuneError(
                f"transforms {[*self.transforms]} turn {picture.dtype} {picture.shape} into {out.dtype} {out.shape}: "
                "they must keep uint8 and the channels (normalising comes later, by itself)."
            )
        return out

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

    def _centre(self, picture: np.ndarray) -> np.ndarray:
        top, left = ((length - self.image_size) // 2 for length in picture.shape[:2])
        if top < 0 or left < 0:
            raise FinetuneError(
                f"transforms {list(self.transforms)} give pictures of {picture.shape[0]} x {picture.shape[1]}, smaller "
                f"than data.image_size={self.image_size}."
            )
        return picture[top : top + self.image_size, left : left + self.image_size]
