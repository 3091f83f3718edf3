"""The mean shape: the one mask that is most like those of the training images, laid over every image as a baseline.

A region's pixels are those of the network's square where most training masks have it: the most frequent region of each
pixel where regions exclude each other, else those that at least half of the masks mark. Where a region is always in
much the same place, as lungs and hearts are, such a mask already has a high Dice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.errors import FinetuneError
from finetune.evaluation.segmentation.cases import UNKNOWN
from finetune.evaluation.segmentation.collect import HALF, read_regions
from finetune.evaluation.segmentation.folders import read_mask


class MeanShape:
    """Adds up masks one by one: what it keeps is a number per pixel and region, however many masks there are.

    Args:
        names: of the K regions; exclusive ones begin with background.
        side: of the square, in pixels.

    Example:
        >>> shape = MeanShape(["background", "lung"], overlapping=False, side=224)
        >>> shape.add(mask, np.array([True, True]))  # uint8 (224, 224)
        >>> shape.label_map().shape
        (224, 224)
    """

    def __init__(self, names: Sequence[str], overlapping: bool, side: int):
        read_regions(names, overlapping)
        self.overlapping, self.masks = overlapping, 0
        self.marked = np.zeros((len(names), side, side), np.int32)
        """(K, S, S) masks that have the region there."""
        self.known = np.zeros(len(names), np.int64)
        """(K,) masks that say anything of the region."""

    def add(self, mask: np.ndarray, known: np.ndarray) -> None:
        """Add the mask (S, S) of an image, of which the regions `known` (K,) are known. Unknown pixels count for no
        region."""
        if not known.any():
            return
        self.masks += 1
        self.known += known
        if self.overlapping:
            for k in np.flatnonzero(known).tolist():
                self.marked[k] += (mask >> k) & 1
            return
        for k in np.flatnonzero(np.bincount(mask.ravel(), minlength=len(self.marked))).tolist():  # few regions occur
            if k != UNKNOWN:
                self.marked[k] += mask == k

    def label_map(self) -> np.ndarray | None:
        """uint8 (S, S): the number of each pixel's region, or the bits of its regions; None where no mask was added."""
        if not self.masks:
            return None
        if not self.overlapping:
            return self.marked.argmax(axis=0).astype(np.uint8)
        label_map = np.zeros(self.marked.shape[1:], np.uint8)
        for k, number in enumerate(self.known.tolist()):
            if number:
                label_map |= (self.marked[k] >= HALF * number).astype(np.uint8) << k
        return label_map


def write(label_map: np.ndarray, path: Path, palette: list[int]) -> None:
    """A PNG whose pixel values are those of the label map."""
    image = Image.fromarray(label_map)
    image.putpalette(palette)
    image.save(path)


def read(path: Path, names: Sequence[str], overlapping: bool, side: int) -> np.ndarray | None:
    """The label map that `write` wrote; None where there is no such file.

    Raises:
        FinetuneError: it is of another size, or has values that are no regions.
        BadImage: it cannot be read.
    """
    if not path.is_file():
        return None
    label_map = read_mask(path).astype(np.uint8)
    most = 2 ** len(names) if overlapping else min(len(names), UNKNOWN)
    if label_map.shape != (side, side) or label_map.max() >= most:
        raise FinetuneError(
            f"{path} is not the mean shape of this model: it must be {side} x {side} pixels with values below {most}. "
            "Delete it: scores then have no such baseline."
        )
    return label_map
