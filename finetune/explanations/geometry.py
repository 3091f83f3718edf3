"""Boxes in pixels of a network's input, and the pixels that they cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.preprocessing import Preprocessing

Corners = tuple[float, float, float, float]
"""left, top, right, bottom"""


def to_input(
    boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int], preprocessing: Preprocessing
) -> list[Corners]:
    """Boxes (left, top, width, height) in pixels of a stored image of `size` (height, width) -> their corners in the
    network's input, cut at its border; a box that lies outside (cut away by fit=crop) is left out."""
    stored = np.array([(left, top, left + width, top + height) for left, top, width, height in boxes])
    return as_corners(preprocessing.boxes_to_input(stored, *size).corners)


def as_corners(boxes: np.ndarray) -> list[Corners]:  # (N, 4)
    """left, top, right, bottom of each."""
    return [(left, top, right, bottom) for left, top, right, bottom in boxes.tolist()]


def mask(boxes: Sequence[Corners], side: int) -> np.ndarray:  # -> bool (side, side)
    """The pixels whose centre lies in one of the boxes; of a box smaller than a pixel, the pixel of its centre."""
    inside = np.zeros((side, side), bool)
    for x0, y0, x1, y1 in boxes:
        columns, rows = (slice(_up(low), max(_up(high), _up(low))) for low, high in ((x0, x1), (y0, y1)))
        if columns.start == columns.stop:
            columns = _pixel((x0 + x1) / 2, side)
        if rows.start == rows.stop:
            rows = _pixel((y0 + y1) / 2, side)
        inside[rows, columns] = True
    return inside


def _up(edge: float) -> int:
    """The first pixel whose centre is not before the edge."""
    return int(np.ceil(edge - 0.5))


def _pixel(position: float, side: int) -> slice:
    pixel = min(int(position), side - 1)
    return slice(pixel, pixel + 1)
