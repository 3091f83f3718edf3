"""From images of any kind to batches of a network's inputs, each image whole or in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from finetune.data.decoding.images import as_image, read_image, read_size
from finetune.errors import BadImage, FinetuneError
from finetune.placement import Placement
from finetune.preprocessing import Preprocessing
from finetune.tiles import Grid, Tile, Tiling

Progress = Callable[[int, int], None]
"""Takes the number of images done, and their total."""


class TileBatch(NamedTuple):
    """Some tiles of one image, in the order of the grid."""

    grid: Grid
    tiles: list[Tile]
    is_last: bool
    """Whether these are the last of the image."""


def image_batches(
    images: Sequence[Any],
    preprocessing: Preprocessing,
    size: int,
    *,
    tiling: Tiling | None = None,
    needs_size: bool = False,
    bad: dict[int, str],
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Batches {image (N, C, S, S), row, placement, tiles}: numbers and placements of N whole images and no tiles, or up
    to N tiles of one image, in the order of the images.

    Args:
        images: paths, Pillow images or uint8 arrays.
        size: N at most.
        tiling: how images larger than a tile are cut; None for whole images.
        needs_size: whether placements must be in pixels of the image as stored, though a JPEG may be decoded smaller.
        bad: takes the reasons why images cannot be read, by number.
    """
    pending: list[tuple[torch.Tensor, int, Placement]] = []
    for row, image in enumerate(images):
        try:
            pixels, (height, width) = read_pixels(image, preprocessing.min_decode_side, tiling, needs_size)
        except BadImage as error:
            bad[row] = error.reason
            continue
        is_tiled = tiling is not None and tiling.is_needed(height, width)
        if not is_tiled:
            pending.append((preprocessing(pixels), row, preprocessing.placement(height, width)))
        if pending and (is_tiled or len(pending) == size):
            yield whole_images(pending)
            pending = []
            progress(row + (not is_tiled), len(images))
        if tiling is not None and is_tiled:
            yield from tile_batches(pixels, row, tiling, preprocessing, size)
            progress(row + 1, len(images))
    if pending:
        yield whole_images(pending)
    progress(len(images), len(images))


def read_pixels(
    image: Any, min_side: int | None, tiling: Tiling | None, needs_size: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of an image, and its height and width as it is stored.

    A JPEG may be decoded smaller, but not where it is cut into tiles. Its size is then read if it is needed.
    """
    if not isinstance(image, str | Path):
        pixels = as_image(image)
        return pixels, (pixels.shape[0], pixels.shape[1])
    pixels = read_image(image, min_side)
    if tiling is None and not needs_size:
        return pixels, (pixels.shape[0], pixels.shape[1])
    height, width = stored_size(image, pixels)
    if tiling is not None and tiling.is_needed(height, width) and pixels.shape[:2] != (height, width):
        pixels = read_image(image)
    return pixels, (height, width)


def stored_size(image: str | Path, decoded: np.ndarray) -> tuple[int, int]:
    """Upright height and width of an image file: a JPEG may have been decoded at a fraction of its size."""
    size = read_size(image) if Path(image).is_file() else None  # members of archives are no files
    return size or (decoded.shape[0], decoded.shape[1])


def whole_images(pending: Sequence[tuple[torch.Tensor, int, Placement]]) -> dict[str, Any]:
    """The batch of some images."""
    inputs, rows, placements = zip(*pending, strict=True)
    return {"image": torch.stack(inputs), "row": list(rows), "placement": list(placements), "tiles": None}


def tile_batches(
    pixels: np.ndarray, row: int, tiling: Tiling, preprocessing: Preprocessing, size: int
) -> Iterator[dict[str, Any]]:
    """The tiles of one image: each is resized to the network's square, which shows all of it whatever `fit` says."""
    grid = tiling.grid(*pixels.shape[:2])
    of_tile = replace(preprocessing, fit="squash", crop_fraction=1.0)
    for start in range(0, len(grid.tiles), size):
        tiles = grid.tiles[start : start + size]
        inputs = torch.stack([of_tile(grid.cut(pixels, tile)) for tile in tiles])
        about = TileBatch(grid, tiles, is_last=start + size >= len(grid.tiles))
        yield {"image": inputs, "row": [row], "placement": [grid.whole], "tiles": about}


def check_images(images: Any) -> list[Any]:
    """The images to predict, as a list.

    Raises:
        FinetuneError: it is a single image, or holds tensors.
    """
    if isinstance(images, str | Path | np.ndarray | Image.Image):
        single = repr(str(images)) if isinstance(images, str | Path) else "image"
        raise FinetuneError(f"predict takes a list of images: put a single one into brackets, predict([{single}]).")
    images = [images] if isinstance(images, torch.Tensor) else list(images)
    if tensors := [image for image in images if isinstance(image, torch.Tensor)]:
        raise FinetuneError(
            f"predict takes paths, PIL images or uint8 arrays (H, W) or (H, W, 3), no tensors "
            f"({tensors[0].dtype} {tuple(tensors[0].shape)}): it does the preprocessing itself. For a batch that is "
            "prepared already, (N, C, H, W), the logits are model.network(batch)."
        )
    return images
