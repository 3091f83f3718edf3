"""From images of any kind to batches of a network's inputs, each image whole or in tiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
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

Images = Sequence[Any]
"""Paths, Pillow images, uint8 arrays, or a BadImage for what is known to be unreadable."""


class TileBatch(NamedTuple):
    """Some tiles of one image, in the order of the grid."""

    grid: Grid
    tiles: list[Tile]
    is_last: bool
    """Whether these are the last of the image."""


class Input(NamedTuple):
    """One image, read."""

    square: np.ndarray | None
    """uint8 (S, S[, 3]): what the network sees of the whole image, before normalising."""
    pixels: np.ndarray | None
    """All of an image that is cut into tiles."""
    placement: Placement


def read_input(
    image: Any, preprocessing: Preprocessing, tiling: Tiling | None = None, needs_size: bool = False
) -> Input | BadImage:
    """An image as the network needs it, or why it cannot be read."""
    try:
        pixels, (height, width) = read_pixels(image, preprocessing.min_decode_side, tiling, needs_size)
    except BadImage as error:
        return error
    if tiling is not None and tiling.is_needed(height, width):
        return Input(None, pixels, tiling.grid(height, width).whole)
    return Input(preprocessing.crop(preprocessing.resize(pixels)), None, preprocessing.placement(height, width))


def list_batches(
    lists: Iterable[Sequence[Any] | None],
    preprocessing: Preprocessing,
    size: int,
    *,
    tiling: Tiling | None = None,
    needs_size: bool = False,
    workers: int = 0,
    normalise: bool = True,
) -> Iterator[dict[str, Any]]:
    """Of each list of images the batches {image (N, C, S, S), row, placement, tiles, pixels}, and after its last one
    {image: None, images, bad}.

    A batch has N images of one list and no tiles, or up to N tiles of one image, in the order of the images. `pixels`
    are the N squares (S, S[, 3]) before normalising. `bad` has the reasons why images cannot be read, by number.

    Args:
        lists: of paths, Pillow images, uint8 arrays, or a BadImage for what is known to be unreadable. A None among
            them says that there is nothing to read for now: it is asked again once all images so far are done.
        size: N at most.
        tiling: how images larger than a tile are cut; None for whole images.
        needs_size: whether placements must be in pixels of the image as stored, though a JPEG may be decoded smaller.
        workers: threads that read images before they are needed; 0 reads each when it is needed.
        normalise: False leaves whole images as uint8 (N, S, S[, 3]).
    """
    read = partial(read_input, preprocessing=preprocessing, tiling=tiling, needs_size=needs_size)
    ahead = 3 * size + workers if tiling is None else workers + 1
    for images, inputs in read_ahead(lists, read, workers, ahead):
        bad: dict[int, str] = {}
        for batch in image_batches(inputs, preprocessing, size, tiling=tiling, bad=bad, normalise=normalise):
            yield {**batch, "images": images}
        yield {"image": None, "images": images, "bad": bad}


def image_batches(
    inputs: Iterable[Input | BadImage],
    preprocessing: Preprocessing,
    size: int,
    *,
    tiling: Tiling | None = None,
    bad: dict[int, str],
    normalise: bool = True,
) -> Iterator[dict[str, Any]]:
    """The batches of one list of images; `bad` takes the reasons why images cannot be read, by number."""
    pending: list[tuple[int, Input]] = []
    for row, read in enumerate(inputs):
        if isinstance(read, BadImage):
            bad[row] = read.reason
            continue
        if read.pixels is None:
            pending.append((row, read))
        if pending and (read.pixels is not None or len(pending) == size):
            yield whole_images(pending, preprocessing, normalise)
            pending = []
        if tiling is not None and read.pixels is not None:
            yield from tile_batches(read.pixels, row, tiling, preprocessing, size)
    if pending:
        yield whole_images(pending, preprocessing, normalise)


def read_ahead(
    lists: Iterable[Sequence[Any] | None], read: Callable[[Any], Input | BadImage], workers: int, ahead: int
) -> Iterator[tuple[Sequence[Any], Iterator[Input | BadImage]]]:
    """Each list with what is read of its images, in their order; threads read up to `ahead` images beforehand."""
    if not workers:
        yield from ((images, map(read, images)) for images in lists if images is not None)
        return
    opened: deque[tuple[Sequence[Any], deque[Future[Input | BadImage]]]] = deque()
    in_flight, is_paused, is_finished = 0, False, False

    def submissions() -> Iterator[bool]:
        for images in lists:
            if images is None:
                yield False
                continue
            futures: deque[Future[Input | BadImage]] = deque()
            opened.append((images, futures))
            for image in images:
                futures.append(threads.submit(read, image))
                yield True

    def refill() -> None:
        nonlocal in_flight, is_paused, is_finished
        while in_flight < ahead and not (is_paused or is_finished):
            submitted = next(source, None)
            is_paused, is_finished = submitted is False, submitted is None
            in_flight += submitted is True

    def take(images: Sequence[Any], futures: deque[Future[Input | BadImage]]) -> Iterator[Input | BadImage]:
        nonlocal in_flight
        for _ in images:
            refill()
            result = futures.popleft().result()
            in_flight -= 1
            yield result

    threads = ThreadPoolExecutor(workers)
    source = submissions()
    try:
        while not is_finished or opened:
            is_paused = is_paused and bool(opened)
            refill()
            if opened:
                images, futures = opened.popleft()
                yield images, take(images, futures)
    finally:
        threads.shutdown(cancel_futures=True)


def read_pixels(
    image: Any, min_side: int | None, tiling: Tiling | None, needs_size: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of an image, and its height and width as it is stored.

    A JPEG may be decoded smaller, but not where it is cut into tiles. Its size is then read if it is needed.
    """
    if isinstance(image, BadImage):
        raise image
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


def whole_images(
    pending: Sequence[tuple[int, Input]], preprocessing: Preprocessing, normalise: bool = True
) -> dict[str, Any]:
    """The batch of some images."""
    squares = [read.square for _, read in pending if read.square is not None]
    return {
        "image": torch.stack([preprocessing.to_tensor(square) for square in squares])
        if normalise
        else as_bytes(squares),
        "row": [row for row, _ in pending],
        "placement": [read.placement for _, read in pending],
        "tiles": None,
        "pixels": squares,
    }


def as_bytes(squares: Sequence[np.ndarray]) -> torch.Tensor:  # -> uint8 (N, S, S), or (N, S, S, 3) if one is coloured
    """Gray images beside coloured ones have three equal channels, which is no difference to the network's input."""
    if any(square.ndim == 3 for square in squares):
        squares = [s if s.ndim == 3 else np.repeat(s[..., None], 3, axis=2) for s in squares]
    return torch.from_numpy(np.stack(squares))


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
        yield {"image": inputs, "row": [row], "placement": [grid.whole], "tiles": about, "pixels": None}


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
