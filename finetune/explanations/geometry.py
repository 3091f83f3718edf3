"""From pixels of a stored image to pixels of a network's input, as `Preprocessing` moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.preprocessing import LONGEST_ASPECT, Preprocessing

Corners = tuple[float, float, float, float]
"""left, top, right, bottom"""


@dataclass(frozen=True)
class Placement:
    """x -> x * scale_x + left, y -> y * scale_y + top."""

    scale_x: float
    scale_y: float
    left: float
    top: float


def placement(preprocessing: Preprocessing, height: int, width: int) -> Placement:
    """How an image of that size lies in the input square, after `Preprocessing.resize` and `crop`."""
    size = preprocessing.stored_size
    if preprocessing.fit == "squash":
        return Placement(size / width, size / height, 0.0, 0.0)
    if preprocessing.fit == "pad":
        scale = size / max(height, width)
        inner_h, inner_w = max(1, round(height * scale)), max(1, round(width * scale))
        return Placement(inner_w / width, inner_h / height, (size - inner_w) // 2, (size - inner_h) // 2)
    # crop: a strip is cut first, then the shorter side is scaled, then the centre square is kept
    kept_h, kept_w = min(height, LONGEST_ASPECT * width), min(width, LONGEST_ASPECT * height)
    cut_top, cut_left = (height - kept_h) // 2, (width - kept_w) // 2
    if kept_h <= kept_w:
        scaled_h, scaled_w = size, int(size * kept_w / kept_h)
    else:
        scaled_h, scaled_w = int(size * kept_h / kept_w), size
    scale_y, scale_x = scaled_h / kept_h, scaled_w / kept_w
    top = round((scaled_h - preprocessing.image_size) / 2)
    left = round((scaled_w - preprocessing.image_size) / 2)
    return Placement(scale_x, scale_y, -cut_left * scale_x - left, -cut_top * scale_y - top)


def to_input(
    boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int], preprocessing: Preprocessing
) -> list[Corners]:
    """Boxes (left, top, width, height) in pixels of a stored image of `size` (height, width) -> their corners in the
    network's input, cut at its border; a box that lies outside (cut away by fit=crop) is left out."""
    placed, side = placement(preprocessing, *size), float(preprocessing.image_size)
    corners = []
    for left, top, width, height in boxes:
        x0, x1 = (min(max(x * placed.scale_x + placed.left, 0.0), side) for x in (left, left + width))
        y0, y1 = (min(max(y * placed.scale_y + placed.top, 0.0), side) for y in (top, top + height))
        if x1 > x0 and y1 > y0:
            corners.append((x0, y0, x1, y1))
    return corners


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
