"""Progressive resizing: training images are small at first and grow to full size, as a function of the epoch alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.errors import FinetuneError

SMALLEST_SIDE = 8
"""Pixels, as of data.image_size."""


@dataclass(frozen=True)
class Progressive:
    """The side of training images grows evenly from `start` times the full side to all of it (Howard et al., 2018, and
    Tan and Le, 2021, who also strengthen the augmentation meanwhile, which is not done here)."""

    epochs: int
    """The first epoch (from 0) at full size; 1 or more."""
    start: float = 0.5
    """Side in epoch 0, as a part of the full side."""
    multiple: int = 32
    """Sides below the full one are rounded to multiples of it, in pixels."""

    def side(self, epoch: int, full: int) -> int:
        """Pixels of the side in `epoch` (from 0), at most `full`."""
        if epoch >= self.epochs:
            return full
        exact = full * (self.start + (1 - self.start) * epoch / self.epochs)
        rounded = int(exact / self.multiple + 0.5) * self.multiple  # halves up
        return min(full, max(self.multiple, rounded))

    def check(self, full: int, max_epochs: int) -> None:
        """Raise a FinetuneError where no epoch has full size, none has less, or one has too little."""
        if self.epochs >= max_epochs:
            raise FinetuneError(
                f"data.progressive.epochs={self.epochs} leaves no epoch at data.image_size={full}: "
                f"trainer.max_epochs={max_epochs}. Give at most {max_epochs - 1}, or train longer."
            )
        first = self.side(0, full)
        if not SMALLEST_SIDE <= first < full:
            raise FinetuneError(
                f"data.progressive.start={self.start} and multiple={self.multiple} give images of {first} px in epoch "
                f"0: at least {SMALLEST_SIDE} and less than data.image_size={full} are needed."
            )

    def sentence(self, full: int) -> str:
        return (
            f"Training images grow from {self.side(0, full)} px in epoch 0 to {full} px from epoch {self.epochs} on; "
            f"validation is at {full} px throughout."
        )


def shrink(images: np.ndarray, side: int) -> np.ndarray:  # (N, S, S[, 3]) -> (N, side, side[, 3])
    """Every pixel becomes the mean of the area that it covers; uint8 stays uint8."""
    import cv2  # settings read this module too, and need no images

    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images])
