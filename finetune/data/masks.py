"""Pixels of masks from what data sets write: image files, runs of pixels (RLE), COCO counts, polygons.

Polygons are filled as COCO's own tools do (cocodataset/cocoapi, common/maskApi.c): equal to pycocotools to the pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data.decoding import containers
from finetune.errors import BadImage, FinetuneError

FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP")  # not all that Pillow knows: some run other programs
LOSSY = (".jpg", ".jpeg")
HALF = 128  # a JPEG's values are not exact: from here on a pixel of a single region is marked
SCALE = 5  # points per pixel along a polygon's edge, as in COCO's tools


def read_mask(file: Path) -> np.ndarray:  # -> uint8 (H, W)
    """The stored values of a mask: gray, palette (its numbers, not its colours), 1-bit, gray stored as RGB, or an array
    in a container.

    Raises:
        BadImage: the file cannot be read, or holds colours or more than 8 bits.
    """
    if (member := containers.member(file)) is not None:
        mask = containers.read(member)
    else:
        try:
            with Image.open(file, formats=FORMATS) as opened:
                mask = _gray(opened) if opened.mode == "RGB" else np.array(opened)
                if opened.mode not in ("1", "L", "P") and mask.ndim != 2:
                    raise BadImage(file, f"is no mask: it must be gray, palette or 1-bit, not of mode {opened.mode}")
        except FileNotFoundError:
            raise BadImage(file, "cannot be read as a mask: it is missing") from None
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # the second: a broken header
            raise BadImage(file, f"cannot be read as a mask: {error}") from None
        mask = mask.astype(np.uint8) if mask.dtype == np.bool_ else mask
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise BadImage(file, f"is no mask: it must be uint8 (H, W), not {mask.dtype} {mask.shape}")
    return mask


def read_region(file: Path) -> np.ndarray:  # -> bool (H, W)
    """The mask of a single region: 0 and one other value. Of a JPEG, whose values are not exact, all from 128 on.

    Raises:
        BadImage: as `read_mask`, or more values than two.
    """
    mask = read_mask(file)
    if file.suffix.lower() in LOSSY:
        return mask >= HALF
    values = stored_values(mask)
    if len(others := [value for value in values if value]) > 1:
        shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
        raise BadImage(file, f"holds {shown}: the mask of a single region has 0 and one other value")
    return mask > 0 if others else np.zeros(mask.shape, bool)


def stored_values(mask: np.ndarray) -> list[int]:
    """The different values of a uint8 mask, ascending."""
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()


def decode_rle(rle: str, height: int, width: int) -> np.ndarray:  # -> uint8 (H, W) of 0 and 1
    """Pixels from `start length start length ...`, numbered from 1 down the columns first.

    Raises:
        FinetuneError: no pairs of whole numbers, or runs beyond the image.
    """
    try:
        numbers = np.array(rle.split(), np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        raise FinetuneError(f"rle={rle[:40]!r} must be pairs of whole numbers: start length start length ...") from None
    starts, lengths = numbers[:, 0] - 1, numbers[:, 1]
    wrong = (starts < 0) | (lengths < 0) | (starts > height * width - lengths)
    if wrong.any():
        start, length = numbers[wrong][0].tolist()
        raise FinetuneError(f"rle: the run of {length} pixels from {start} lies outside {height} x {width} pixels.")
    steps = np.zeros(height * width + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return _columns(np.cumsum(steps[:-1]) > 0, height, width).astype(np.uint8)


def decode_counts(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:  # -> bool (H, W)
    """A mask as COCO's RLE: lengths of runs of 0 and 1 in turn, down the columns first, as numbers or as COCO's
    compressed text.

    Raises:
        FinetuneError: text of another kind, or lengths that do not add up to the image.
    """
    numbers = _numbers(counts) if isinstance(counts, str) else list(counts)
    if any(number < 0 for number in numbers) or sum(numbers) != height * width:
        raise FinetuneError(
            f"the RLE counts add up to {sum(numbers):,} pixels, the image has {height} x {width} = {height * width:,}."
        )
    return _columns(np.repeat(np.arange(len(numbers)) % 2 == 1, numbers), height, width)


def fill_polygons(polygons: Iterable[Sequence[float]], height: int, width: int) -> np.ndarray:  # -> bool (H, W)
    """The union of polygons, each `x, y, x, y, ...` in pixels of the image, as COCO's tools fill them.

    Raises:
        FinetuneError: fewer than three points, an odd number of values, or one that is not finite.
    """
    mask = np.zeros(height * width, bool)
    for polygon in polygons:
        points = np.asarray(polygon, np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise FinetuneError(
                f"a polygon must be x, y, x, y, ... of three or more points, not {str(list(polygon))[:60]}."
            )
        mask |= _filled(points.reshape(-1, 2), height, width)
    return _columns(mask, height, width)


def _filled(points: np.ndarray, height: int, width: int) -> np.ndarray:  # (P, 2) -> bool (H * W,), columns first
    """maskApi.c, rleFrPoly: where the outline crosses a column of pixels, inside and outside change."""
    corners = np.trunc(SCALE * points + 0.5).astype(np.int64)
    dense = [_edge(start, end) for start, end in itertools.pairwise([*corners, corners[0]])]
    x, y = np.concatenate(dense).T
    moved = np.flatnonzero(x[1:] != x[:-1]) + 1
    before, after = x[moved - 1], x[moved]
    column = (np.where(after < before, after, after - 1) + 0.5) / SCALE - 0.5
    row = (np.minimum(y[moved], y[moved - 1]) + 0.5) / SCALE - 0.5
    whole = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    row = np.ceil(np.clip(row[whole], 0, height)).astype(np.int64)
    changes = np.bincount(column[whole].astype(np.int64) * height + row, minlength=height * width + 1)
    return np.cumsum(changes[: height * width]) % 2 == 1


def _edge(start: np.ndarray, end: np.ndarray) -> np.ndarray:  # (2,), (2,) -> (L, 2)
    """All points of an edge at SCALE points per pixel, from start to end."""
    (dx, dy), flipped = np.abs(end - start), False
    along, across = (0, 1) if dx >= dy else (1, 0)
    if start[along] > end[along]:
        start, end, flipped = end, start, True
    length = int(max(dx, dy))
    steps = np.arange(length + 1)
    points = np.empty((length + 1, 2), np.int64)
    points[:, along] = start[along] + steps
    slope = (end[across] - start[across]) / length if length else 0.0
    points[:, across] = np.trunc(start[across] + slope * steps + 0.5)
    return points[::-1] if flipped else points


def _numbers(text: str) -> list[int]:
    """maskApi.c, rleFrString: groups of 5 bits in characters from `0` on, each number from the third on the difference
    to the one before the last."""
    numbers: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64:
            raise FinetuneError(f"RLE counts {text[:40]!r} are not COCO's compressed text.")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        value = shift = 0
    if shift:
        raise FinetuneError(f"RLE counts {text[-40:]!r} end within a number.")
    return numbers


def _columns(flat: np.ndarray, height: int, width: int) -> np.ndarray:  # (H * W,) -> (H, W)
    """Pixels numbered down the columns as an image."""
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _gray(opened: Image.Image) -> np.ndarray:
    """An RGB image whose channels are equal as gray; else as it is."""
    pixels = np.array(opened)
    equal = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    return np.ascontiguousarray(pixels[..., 0]) if equal else pixels
