"""Tiles with overlap for an image that is larger than what a network is shown at once: where they lie, how they blend.

A tile is a square of stored pixels. It is resized to the network's square; the image itself is not scaled. Values of
overlapping tiles are averaged with a triangular weight (sliding-window inference, as of nnU-Net, Isensee et al., 2021,
which has a Gaussian): where two tiles overlap by half a side or less, one fades linearly into the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from finetune.errors import FinetuneError
from finetune.placement import Placement

MIN_TILE = 8
MAX_OVERLAP = 0.9
OVERLAP = 0.25
"""Where nothing else is chosen."""


class Tile(NamedTuple):
    """A square of the stored image, by its place in the grid."""

    row: int
    column: int
    top: int
    """Of its first pixel in the stored image; negative where the image is lower than a tile."""
    left: int
    """The same for columns."""


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    Raises:
        FinetuneError: a value is out of its bounds.
    """

    tile: int
    """Side of a tile, in pixels of the stored image."""
    overlap: float = OVERLAP
    """Least fraction of the side that neighbours share."""

    def __post_init__(self) -> None:
        if isinstance(self.tile, bool) or not isinstance(self.tile, int | np.integer) or self.tile < MIN_TILE:
            raise FinetuneError(
                f"tile={self.tile!r} must be the side of a tile in pixels of the stored image, a whole number of "
                f"{MIN_TILE} or more; leave it out to predict whole images."
            )
        if isinstance(self.overlap, bool) or not 0 <= self.overlap <= MAX_OVERLAP:
            raise FinetuneError(
                f"overlap={self.overlap!r} must lie between 0 and {MAX_OVERLAP}: the fraction of a tile's side that "
                "neighbours share."
            )

    @classmethod
    def of(cls, tile: int | None, overlap: float = OVERLAP) -> Tiling | None:
        """The tiling, None without a tile; the overlap is checked in any case."""
        checked = cls(MIN_TILE if tile is None else tile, overlap)
        return None if tile is None else checked

    def is_needed(self, height: int, width: int) -> bool:
        """Whether an image of that size is larger than a tile."""
        return max(height, width) > self.tile

    def grid(self, height: int, width: int) -> Grid:
        """The tiles of an image of that size."""
        return Grid(height, width, self.tile, *(starts(side, self.tile, self.overlap) for side in (height, width)))


def starts(length: int, tile: int, overlap: float) -> tuple[int, ...]:
    """First pixels of as few tiles as cover `length` pixels with at least that overlap, evenly spaced; of one tile that
    is longer than the image, so that the image lies in its middle."""
    if length <= tile:
        return (-((tile - length) // 2),)
    step = max(1, math.floor(tile * (1 - overlap) + 1e-9))
    gaps = math.ceil((length - tile) / step)
    return tuple(round(i * (length - tile) / gaps) for i in range(gaps + 1))


def shares(starts: tuple[int, ...], tile: int, length: int) -> np.ndarray:  # -> float32 (tiles, tile)
    """Weight of each tile at each of its pixels, along one side of the image. At each pixel of the image the weights of
    all tiles sum to 1."""
    ramp = np.minimum(np.arange(tile) + 0.5, tile - np.arange(tile) - 0.5)
    total = np.zeros(length)
    for start in starts:
        total[max(0, start) : start + tile] += ramp[max(0, -start) : length - start]
    weights = np.zeros((len(starts), tile), np.float32)
    for weight, start in zip(weights, starts, strict=True):
        inside = slice(max(0, -start), min(tile, length - start))
        weight[inside] = ramp[inside] / total[max(0, start) : start + tile]
    return weights


@dataclass(frozen=True)
class Grid:
    """The tiles of an image, row by row."""

    height: int
    """Of the stored image."""
    width: int
    side: int
    """Of each tile, in pixels of the stored image."""
    tops: tuple[int, ...]
    """First row of each row of tiles."""
    lefts: tuple[int, ...]
    """First column of each column of tiles."""

    @cached_property
    def tiles(self) -> list[Tile]:
        """All of them, from the top left, row by row."""
        return [Tile(r, c, top, left) for r, top in enumerate(self.tops) for c, left in enumerate(self.lefts)]

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the tiles in each row and in each column, (rows, side) and (columns, side): a pixel's weight in a tile is
        the product of both."""
        return shares(self.tops, self.side, self.height), shares(self.lefts, self.side, self.width)

    def inside(self, tile: Tile) -> tuple[slice, slice]:
        """Rows and columns of the tile that lie in the image."""
        return (
            slice(max(0, -tile.top), min(self.side, self.height - tile.top)),
            slice(max(0, -tile.left), min(self.side, self.width - tile.left)),
        )

    def cut(self, image: np.ndarray, tile: Tile) -> np.ndarray:  # (H, W[, 3]) -> (side, side[, 3])
        """The pixels of a tile, 0 where it reaches beyond the image."""
        part = image[max(0, tile.top) : tile.top + self.side, max(0, tile.left) : tile.left + self.side]
        if part.shape[:2] == (self.side, self.side):
            return np.ascontiguousarray(part)
        square = np.zeros((self.side, self.side, *image.shape[2:]), image.dtype)
        square[self.inside(tile)] = part
        return square

    def placement(self, tile: Tile, side: int) -> Placement:
        """Where the stored image lies in the network's square of `side` pixels, which shows the tile."""
        part = (tile.top, tile.left, self.side, self.side)
        return Placement((self.height, self.width), part, (side, side), 0, 0, side)

    @property
    def whole(self) -> Placement:
        """Of the answers of all tiles together, which are in pixels of the stored image."""
        size = (self.height, self.width)
        return Placement(size, (0, 0, *size), size, 0, 0, max(size))


class Blend:
    """The weighted mean of the values of all tiles at each pixel, a few rows of the image at a time.

    Args:
        channels: K, of the values.
        receive: takes the number of the first of some finished rows, and their values (K, rows, W).
    """

    def __init__(self, grid: Grid, channels: int, receive: Callable[[int, np.ndarray], None]):
        self.grid, self.receive = grid, receive
        self._band = np.zeros((channels, min(grid.side, grid.height), grid.width), np.float32)
        self._top = 0

    def add(self, tile: Tile, values: np.ndarray) -> None:
        """Values (K, side, side) on the pixels of a tile; tiles come in the order of the grid."""
        self._finish(max(0, tile.top))
        inside, (rows, columns) = self.grid.inside(tile), self.grid.weights
        weight = np.outer(rows[tile.row][inside[0]], columns[tile.column][inside[1]])
        left = max(0, tile.left)
        band = self._band[:, : weight.shape[0], left : left + weight.shape[1]]
        band += weight * values[(slice(None), *inside)]

    def close(self) -> None:
        """Pass on the last rows."""
        self._finish(self.grid.height)

    def _finish(self, top: int) -> None:
        """Rows above `top` get nothing more."""
        if not (number := top - self._top):
            return
        self.receive(self._top, self._band[:, :number])
        self._band[:, :-number] = self._band[:, number:].copy()
        self._band[:, -number:] = 0
        self._top = top
