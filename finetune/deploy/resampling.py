"""Pillow's antialiased resizing and the placement in the network's square, as products of matrices in a graph.

Pillow resizes 8-bit images by two passes with weights of 22 bits, each rounded to whole gray levels. The same numbers
come out here: sums of whole numbers below 2^53 are exact in 64-bit floats. The formulas of `Preprocessing.placement`
are repeated on tensors, so that height and width may differ from call to call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.preprocessing import LONGEST_ASPECT, Preprocessing

PRECISION = 1 << 22
"""Pillow's weights are multiples of 1 / 2^22."""
BICUBIC = -0.5
"""Pillow's parameter of the cubic filter."""


class Line(NamedTuple):
    """One direction of a placement: pixels `start` to `start + part` of `stored` become `scaled` pixels, the first of
    which lies at `left` of the square. Each is (1,) in float64: an exporter of torch takes
    tensors without an axis for numbers of 32 bits."""

    stored: Tensor
    start: Tensor
    part: Tensor
    scaled: Tensor
    left: Tensor

    @property
    def scale(self) -> Tensor:
        """Pixels of the square per stored pixel."""
        return self.scaled / self.part

    @property
    def offset(self) -> Tensor:
        """Place of the stored image's edge in the square."""
        return self.left - self.start * self.scale


def pixel_numbers(length: int) -> Tensor:
    """0 to length - 1 in float64."""
    return torch.arange(length, dtype=torch.float64)


def placed(preprocessing: Preprocessing, height: Tensor, width: Tensor) -> tuple[Line, Line]:
    """The two directions of `Preprocessing.placement`, rows first, for an image of that size, (1,) each."""
    size, inner, zero = preprocessing.stored_size, preprocessing.image_size, torch.zeros_like(height)
    if preprocessing.fit == "squash":
        full = zero + size
        return Line(height, zero, height, full, zero), Line(width, zero, width, full, zero)
    if preprocessing.fit == "pad":
        scale = size / torch.maximum(height, width)
        lines = []
        for length in (height, width):
            scaled = torch.round(length * scale).clamp(min=1)
            lines.append(Line(length, zero, length, scaled, torch.floor((size - scaled) / 2)))
        return lines[0], lines[1]
    parts = torch.minimum(height, LONGEST_ASPECT * width), torch.minimum(width, LONGEST_ASPECT * height)
    shorter = torch.minimum(*parts)
    lines = []
    for length, part in zip((height, width), parts, strict=True):
        scaled = torch.floor(size * part / shorter)
        lines.append(Line(length, torch.floor((length - part) / 2), part, scaled, -torch.round((scaled - inner) / 2)))
    return lines[0], lines[1]


def triangle(x: Tensor) -> Tensor:
    """Pillow's bilinear filter, of support 1."""
    return (1 - x.abs()).clamp(min=0)


def cubic(x: Tensor) -> Tensor:
    """Pillow's bicubic filter, of support 2."""
    x, a = x.abs(), BICUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {"bilinear": (triangle, 1), "bicubic": (cubic, 2)}
"""Name -> filter and its support in output pixels."""


def filter_weights(
    outputs: Tensor, inputs: Tensor, scale: Tensor, begin: Tensor | float, length: Tensor, interpolation: str
) -> Tensor:
    """Pillow's weights (O, I) of resizing: output o is the sum of the inputs i times weight [o, i].

    Args:
        outputs: (O,) numbers of the outputs; inputs: (I,) numbers of the inputs, those outside 0 to length - 1 count
            nothing.
        scale: inputs per output.
        begin: where output 0 begins, in inputs.
    """
    kernel, support = FILTERS[interpolation]
    widened = scale.clamp(min=1)
    centre = (begin + (outputs + 0.5) * scale)[:, None]
    first = torch.floor((centre - support * widened + 0.5).clamp(min=0))
    end = torch.minimum(torch.floor(centre + support * widened + 0.5), length)
    weights = kernel((inputs - centre + 0.5) * (1 / widened))
    weights = torch.where((inputs >= first) & (inputs < end), weights, torch.zeros_like(weights))
    total = weights.cumsum(1)[:, -1:]  # in Pillow's order, to the last bit
    return weights / torch.where(total == 0, torch.ones_like(total), total)


def to_square(line: Line, inputs: Tensor, side: int, interpolation: str) -> Tensor:
    """Whole numbers (side, I), the weights times 2^22: rows without a pixel of the image are zero."""
    outputs = pixel_numbers(side) - line.left
    weights = (
        filter_weights(outputs, inputs - line.start, line.part / line.scaled, 0.0, line.part, interpolation) * PRECISION
    )
    whole = torch.floor(weights.abs() + 0.5) * weights.sign()  # C's cast after adding or subtracting a half
    shown = ((outputs >= 0) & (outputs < line.scaled))[:, None]
    return torch.where(shown, whole, torch.zeros_like(whole))


def as_levels(sums: Tensor, precision: int = PRECISION) -> Tensor:
    """Sums of gray levels times whole weights -> whole gray levels."""
    return torch.floor((sums + precision // 2) / precision).clamp(0, 255)


def rows_last(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 (N, H, W, 3), weights (S, H) and (S, W) -> gray levels (N, 3, S, S); the passes in this order."""
    return as_levels(rows @ as_levels(images.permute(0, 3, 1, 2).double() @ columns.T))


def rows_first(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same with the passes in the other order, which rounds other sums."""
    return as_levels(as_levels(rows @ images.permute(0, 3, 1, 2).double()) @ columns.T)


@torch.jit.script_if_tracing
def either_order(is_tall: Tensor, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows_first` where `is_tall` (a bool), else `rows_last`, for the tracer of TorchScript."""
    if bool(is_tall):
        return rows_first(images, rows, columns)
    return rows_last(images, rows, columns)


@cache
def tall_rows_first() -> bool:
    """Whether this Pillow begins with the rows of images that are much higher than wide, as 13.0 does; older releases
    always begin with the columns."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 12, 3), np.uint8)
    side = Preprocessing(image_size=8)
    height, width = (torch.tensor([length], dtype=torch.float64) for length in noise.shape[:2])
    lines = placed(side, height, width)
    weights = [to_square(line, pixel_numbers(n), 8, "bilinear") for line, n in zip(lines, noise.shape, strict=False)]
    return bool(
        (rows_first(torch.from_numpy(noise)[None], *weights)[0].permute(1, 2, 0).numpy() == side.resize(noise)).all()
    )


def resized(images: Tensor, preprocessing: Preprocessing, tall_first: bool) -> tuple[Tensor, Line, Line]:
    """uint8 (N, H, W, 3) -> gray levels as float64 (N, 3, S, S), S = image_size, and where the images lie in it.

    Args:
        tall_first: see `tall_rows_first`.
    """
    side, interpolation = preprocessing.image_size, preprocessing.interpolation
    y, x = pixel_numbers(images.shape[1]), pixel_numbers(images.shape[2])
    rows, columns = placed(preprocessing, y[-1:] + 1, x[-1:] + 1)
    weights = to_square(rows, y, side, interpolation), to_square(columns, x, side, interpolation)
    if not tall_first:
        return rows_last(images, *weights), rows, columns
    # Pillow's rule, as measured on 13.0: it saves more rows than twice the columns that it saves
    is_tall = rows.part - rows.scaled > 2 * (columns.part - columns.scaled).clamp(min=0)
    if torch.jit.is_tracing():
        return either_order(is_tall, images, *weights), rows, columns
    return torch.cond(is_tall, rows_first, rows_last, (images, *weights)), rows, columns


def visible(line: Line, side: int) -> tuple[Tensor, Tensor]:
    """First and last edge of what the square shows, in stored pixels."""
    first, last = -line.offset / line.scale, (side - line.offset) / line.scale
    end = torch.minimum(line.start + line.part, line.stored)
    return torch.maximum(first, line.start).clamp(min=0), torch.minimum(last, end)


def to_stored(line: Line, pixels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Weights (O, side) of the values of the square for the stored pixels (O,), and which of them it shows (O,).

    As `Placement.values_to_stored`: bilinear.
    """
    start, end = visible(line, side)
    first = torch.ceil(start - 0.5).clamp(min=0)
    stop = torch.minimum(torch.floor(end - 0.5) + 1, line.stored)
    begin, limit = ((edge * line.scale + line.offset).clamp(0, side) for edge in (first, stop))
    scale = (limit - begin) / (stop - first)
    length = torch.full_like(scale, side)
    weights = filter_weights(pixels - first, pixel_numbers(side), scale, begin, length, "bilinear")
    shown = (pixels >= first) & (pixels < stop)
    return torch.where(shown[:, None], weights, torch.zeros_like(weights)), shown
