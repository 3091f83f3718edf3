"""Feature maps as matrices: one row per pixel, one column per channel.

A map (N, C, H, W) that is stored channels last is the matrix (M, C) with M = N * H * W, without a copy. A 1x1
convolution is then a product of matrices, a concatenation of maps is a range of columns, and an elementwise pass may go
through a few rows at a time, so that the output of one operator is still in the cache when the next one reads it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 1 << 17
"""Numbers per tile and thread: half a MiB in float32; the three or four operands of a pass then fit in the cache."""


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def as_rows(x: Tensor) -> Tensor:  # (N, C, H, W) -> (N * H * W, C), a view where x is stored channels last
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(rows: Tensor, like: Tensor) -> Tensor:  # (M, C) -> (N, C, H, W) with N, H, W of `like`
    n, _, h, w = like.shape
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def tiles(x: Tensor) -> Iterator[slice]:
    """Ranges of the rows of x, each small enough for a processor's cache; elsewhere all rows at once."""
    rows, columns = x.shape
    step = rows if x.device.type != "cpu" else max(1, TILE * torch.get_num_threads() // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


@dataclass(frozen=True)
class Normalisation:
    """A batch norm with the statistics that it normalises by, and whether a ReLU follows it."""

    mean: Tensor  # (C,), and so the next three
    var: Tensor
    weight: Tensor
    bias: Tensor
    eps: float
    relu: bool

    def rstd(self) -> Tensor:
        return torch.rsqrt(self.var + self.eps)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Such that z = relu(x * scale + shift)."""
        scale = self.weight * self.rstd()
        return scale, torch.addcmul(self.bias, self.mean, scale, value=-1)
