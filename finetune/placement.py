"""Where a stored image lies in the square that a network sees: one rule for pixels, points, boxes and masks.

Coordinates are of pixel edges: the first pixel reaches from 0 to 1, its centre is at 0.5. "Stored" means as the file
has it, before any resizing; "square" is the network's input, or the somewhat larger square that is cached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from finetune.errors import FinetuneError


class PlacedBoxes(NamedTuple):
    """Boxes moved into a square and cut at its border."""

    corners: np.ndarray
    """(M, 4) float64 left, top, right, bottom in pixels of the square; boxes without a visible part are dropped."""
    numbers: np.ndarray
    """(M,) the index of each among the N input boxes."""
    visible: np.ndarray
    """(N,) the visible fraction of each input box's area: 0 was dropped, below 1 was cut."""


@dataclass(frozen=True)
class Placement:
    """A part of the stored image is scaled, and its corner is put at (left, top) of the square."""

    stored: tuple[int, int]
    """Height and width of the stored image."""
    part: tuple[int, int, int, int]
    """top, left, height, width of what is scaled: the whole image, except where a very long one is cut first, and for
    tiles, which may reach beyond it."""
    scaled: tuple[int, int]
    """Height and width of that part after scaling."""
    top: int
    """Row of the scaled part's first row in the square; negative where rows are cut away."""
    left: int
    """Column of the scaled part's first column in the square; negative where columns are cut away."""
    side: int
    """Of the square."""

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the square per stored pixel, in x and in y."""
        return self.scaled[1] / self.part[3], self.scaled[0] / self.part[2]

    @property
    def offset(self) -> tuple[float, float]:
        """x and y of the stored image's corner in the square: x of the square = x * scale + offset."""
        scale_x, scale_y = self.scale
        return self.left - self.part[1] * scale_x, self.top - self.part[0] * scale_y

    @property
    def visible(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom of what the square shows, in stored pixels."""
        (x0, y0), (x1, y1) = self.to_stored(np.array([[0.0, 0.0], [self.side, self.side]])).tolist()
        top, left, height, width = self.part
        bottom, right = min(top + height, self.stored[0]), min(left + width, self.stored[1])
        return max(x0, left, 0.0), max(y0, top, 0.0), min(x1, right), min(y1, bottom)

    def inner(self, start: int, side: int) -> Placement:
        """In the smaller square that begins `start` pixels from the left and from the top of this one."""
        return replace(self, top=self.top - start, left=self.left - start, side=side)

    def to_square(self, points: np.ndarray) -> np.ndarray:  # (..., 2) -> (..., 2)
        """x and y in stored pixels -> x and y in the square, outside of it too."""
        return np.asarray(points, np.float64) * self.scale + self.offset

    def to_stored(self, points: np.ndarray) -> np.ndarray:  # (..., 2) -> (..., 2)
        """The inverse of `to_square`."""
        return (np.asarray(points, np.float64) - self.offset) / self.scale

    def boxes_to_square(self, boxes: np.ndarray) -> PlacedBoxes:  # (N, 4)
        """Boxes (left, top, right, bottom) in stored pixels -> in the square, cut at its border."""
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        return cut_boxes(self.to_square(boxes.reshape(-1, 2, 2)).reshape(-1, 4), self.side)

    def boxes_to_stored(self, boxes: np.ndarray) -> np.ndarray:  # (N, 4) -> (N, 4)
        """Boxes (left, top, right, bottom) in the square -> in stored pixels."""
        return self.to_stored(np.asarray(boxes, np.float64).reshape(-1, 2, 2)).reshape(-1, 4)

    def cut(self, image: np.ndarray) -> np.ndarray:  # (H, W[, 3]) -> (h, w[, 3])
        """The part of a stored image that is scaled."""
        top, left, height, width = self.part
        return image[top : top + height, left : left + width]

    def put(self, scaled: np.ndarray) -> np.ndarray:  # (h, w[, 3]) -> (side, side[, 3])
        """The scaled part in the square, with 0 around it."""
        side = self.side
        bottom, right = self.top + scaled.shape[0], self.left + scaled.shape[1]
        visible = scaled[max(0, -self.top) : side - self.top, max(0, -self.left) : side - self.left]
        if visible.shape[:2] == (side, side):
            return np.ascontiguousarray(visible)
        square = np.zeros((side, side, *scaled.shape[2:]), scaled.dtype)
        square[max(0, self.top) : min(side, bottom), max(0, self.left) : min(side, right)] = visible
        return square

    def shown(self) -> np.ndarray:  # -> bool (side, side)
        """The pixels of the square that show the image, and not what is black beside it."""
        return self.put(np.ones(self.scaled, bool))

    def values_to_stored(self, values: np.ndarray) -> np.ndarray:  # (side, side) -> float32 (H, W)
        """Values of the square on the pixels of the stored image, bilinear; NaN where the square does not show it."""
        left, top, right, bottom = self.visible
        columns, rows = _pixels(left, right, self.stored[1]), _pixels(top, bottom, self.stored[0])
        stored = np.full(self.stored, np.nan, np.float32)
        if columns[0] >= columns[1] or rows[0] >= rows[1]:
            return stored
        corners = self.to_square(np.array([[columns[0], rows[0]], [columns[1], rows[1]]], np.float64))
        box = np.clip(corners, 0, self.side).ravel().tolist()
        image = Image.fromarray(np.ascontiguousarray(values, np.float32))
        size = (columns[1] - columns[0], rows[1] - rows[0])
        resized = image.resize(size, Image.Resampling.BILINEAR, box=tuple(box))
        stored[rows[0] : rows[1], columns[0] : columns[1]] = np.asarray(resized)
        return stored

    def mask_to_square(self, mask: np.ndarray) -> np.ndarray:  # (H, W) -> (side, side)
        """A mask of the stored image (bool or uint8) as the square shows it: nearest pixel, 0 outside the image.

        Raises:
            FinetuneError: the mask has another size than the image, or another type.
        """
        if mask.shape != self.stored or mask.dtype not in (np.bool_, np.uint8):
            raise FinetuneError(
                f"a mask of {mask.dtype} {mask.shape} does not fit an image of {self.stored[0]} x {self.stored[1]} "
                "pixels: it must be bool or uint8, of the image's height and width."
            )
        part = Image.fromarray(np.ascontiguousarray(self.cut(mask).astype(np.uint8)))
        height, width = self.scaled
        return self.put(np.array(part.resize((width, height), Image.Resampling.NEAREST))).astype(mask.dtype)

    def mask_to_stored(self, mask: np.ndarray) -> np.ndarray:  # (side, side) -> (H, W)
        """A mask of the square on the stored image's pixels: nearest pixel, 0 where the square does not show it."""
        left, top, right, bottom = self.visible
        rows = np.arange(*_pixels(top, bottom, self.stored[0]))
        columns = np.arange(*_pixels(left, right, self.stored[1]))
        places = zip((rows, columns), self.scale[::-1], self.offset[::-1], strict=True)  # y, then x
        inside = [
            np.clip(np.floor((pixels + 0.5) * scale + offset).astype(int), 0, self.side - 1)
            for pixels, scale, offset in places
        ]
        stored = np.zeros(self.stored, mask.dtype)
        stored[np.ix_(rows, columns)] = mask[np.ix_(*inside)]
        return stored


def _pixels(start: float, end: float, length: int) -> tuple[int, int]:
    """The pixels whose centres lie between two edges, as a range."""
    return max(0, math.ceil(start - 0.5)), min(length, math.floor(end - 0.5) + 1)


def cut_boxes(boxes: np.ndarray, side: int) -> PlacedBoxes:  # (N, 4)
    """Boxes (left, top, right, bottom) in pixels of a square, cut at its border."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    inside = np.clip(boxes, 0.0, float(side))
    sides, inner = boxes[:, 2:] - boxes[:, :2], inside[:, 2:] - inside[:, :2]  # (N, 2) width and height
    parts = np.divide(inner, sides, out=np.zeros_like(inner), where=inner > 0)
    visible = parts[:, 0] * parts[:, 1]
    is_visible = visible > 0
    return PlacedBoxes(inside[is_visible], np.flatnonzero(is_visible), visible)
