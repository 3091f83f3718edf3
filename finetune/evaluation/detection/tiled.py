"""Boxes of images that are predicted in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from finetune.evaluation.detection.boxes_file import in_stored_image
from finetune.evaluation.detection.detections import DetectedArrays
from finetune.tiles import Grid, Tile

EDGE = 2.0
"""Pixels of the network's square: a box that comes so near to an edge of its tile is cut by it."""

Suppress = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
"""Boxes (M, 4), scores (M,), labels (M,) and how many squares the image fills -> the numbers of those that stay."""


class TiledBoxes:
    """Puts the boxes of tiles together, in pixels of the stored image.

    A box at an inner edge of its tile is of a part of an object. It is left out where another tile has all of it within
    its own inner edges: that tile saw at least as much of the object. What stays is suppressed as the head does in one
    image.

    Args:
        side: of the network's square, in pixels.
        suppress: chooses among overlapping boxes.
    """

    def __init__(self, grid: Grid, side: int, suppress: Suppress):
        self.grid, self.side, self.suppress = grid, side, suppress
        self._boxes: list[DetectedArrays] = []

    def add(self, tile: Tile, output: Any) -> None:
        """Boxes (D, 4) in pixels of the square that shows the tile, scores (D,) and labels (D,)."""
        boxes, scores, labels = in_stored_image(output, self.grid.placement(tile, self.side))
        row, column = self.fitting(boxes)
        is_whole = row[:, tile.row] & column[:, tile.column]
        stays = is_whole | ~(row.any(axis=1) & column.any(axis=1))
        self._boxes.append((boxes[stays], scores[stays], labels[stays]))

    def fitting(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (M, 4) -> bool (M, rows) and (M, columns) of tiles in which they lie, and touch no inner edge."""
        margin = EDGE * self.grid.side / self.side
        axes = ((self.grid.tops, self.grid.height, 1), (self.grid.lefts, self.grid.width, 0))
        fits = []
        for starts, length, axis in axes:
            low, high = boxes[:, axis, None], boxes[:, axis + 2, None]  # (M, 1)
            first = np.array(starts)
            end = first + self.grid.side
            fits.append(((first <= 0) | (low - first >= margin)) & ((end >= length) | (end - high >= margin)))
        return fits[0], fits[1]

    def result(self) -> DetectedArrays:
        """Boxes (M, 4) in pixels of the stored image, scores (M,) and labels (M,), the highest score first."""
        boxes, scores, labels = (np.concatenate(parts) for parts in zip(*self._boxes, strict=True))
        area = math.ceil(self.grid.height * self.grid.width / self.grid.side**2)
        stays = self.suppress(boxes, scores, labels, area)
        return boxes[stays], scores[stays], labels[stays]
