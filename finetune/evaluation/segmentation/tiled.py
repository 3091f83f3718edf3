"""Label maps of images that are predicted in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetune.placement import Placement
from finetune.tiles import Blend, Grid, Tile


@dataclass(frozen=True)
class StoredMap:
    """The answer for an image, on its own pixels."""

    label_map: np.ndarray
    """uint8 (H, W), the region of each pixel or the bits of its regions."""


class TiledMap:
    """Averages probabilities of tiles and marks regions, rows of tiles at a time: a label map and a band of
    probabilities as high as a tile are all that stays in memory.

    Probabilities are averaged, not logits: thresholds are of probabilities, and one tile that is extremely sure counts
    as much as one that is very sure.

    Args:
        channels: K, of the logits.
        probabilities: logits (K, S, S) and a placement -> probabilities (K, H, W) of what is placed.
        mark: probabilities (K, H, W) -> uint8 (H, W).
    """

    def __init__(
        self,
        grid: Grid,
        channels: int,
        probabilities: Callable[[np.ndarray, Placement], np.ndarray],
        mark: Callable[[np.ndarray], np.ndarray],
    ):
        self.grid, self.probabilities, self.mark = grid, probabilities, mark
        self.label_map = np.zeros((grid.height, grid.width), np.uint8)
        self._blend = Blend(grid, channels, self._receive)

    def add(self, tile: Tile, output: np.ndarray) -> None:
        """The logits (K, S, S) of a tile."""
        size, side = (self.grid.side, self.grid.side), output.shape[-1]
        of_tile = Placement(size, (0, 0, *size), (side, side), 0, 0, side)
        self._blend.add(tile, self.probabilities(output, of_tile))

    def result(self) -> StoredMap:
        """The label map of the image."""
        self._blend.close()
        return StoredMap(self.label_map)

    def _receive(self, top: int, values: np.ndarray) -> None:
        self.label_map[top : top + values.shape[1]] = self.mark(values)
