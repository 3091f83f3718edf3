"""Feature maps as matrices: one row per pixel, one column per channel, and what batch norm needs to know of them.

A map (N, C, H, W) that is stored channels last is the matrix (M, C) with M = N * H * W, without a copy. A 1x1
convolution is then a product of matrices, a concatenation of maps is a range of columns, and an elementwise pass may go
through a few rows at a time, so that what one operator wrote still lies in the cache when the next one reads it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 1 << 17
"""Numbers per tile and thread: half a MiB in float32, so that the three or four operands of a pass fit in the cache."""


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


@dataclass
class Statistics:
    """Mean and variance of each channel of one map."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,), divided by M: what normalises
    unbiased: Tensor  # (C,), divided by M - 1: what the running variance takes

    def rstd(self, eps: float) -> Tensor:
        return torch.rsqrt(self.var + eps)


def statistics(x: Tensor) -> Statistics:  # of a map (N, C, H, W)
    """In at least float32, with the deviations taken from the mean."""
    count = x.numel() // x.shape[1]
    if count == 1:  # in torch's words
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.device.type not in ("cpu", "cuda"):
        var, mean = torch.var_mean(x.to(dtype), (0, 2, 3), correction=0)
        return Statistics(mean, var, var * (count / (count - 1)))
    running = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    mean, var = torch.batch_norm_update_stats(x, running[0], running[1], 1.0)  # at momentum 1 nothing old is left
    return Statistics(mean, var, running[1])
