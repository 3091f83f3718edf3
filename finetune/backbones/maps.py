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


def normalise_rectify(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:  # (M, C), (C,), (C,) -> (M, C)
    """relu(x * scale + shift) into `out`: a norm with known statistics, and the ReLU behind it."""
    for rows in tiles(x):
        torch.addcmul(shift, x[rows], scale, out=out[rows]).relu_()
    return out


def add_rectify(x: Tensor, other: Tensor, *, relu: bool) -> Tensor:  # two maps; x is used up
    """x + other, and the ReLU behind a residual block, while the sums lie in the cache."""
    out, more = as_rows(channels_last(x)), as_rows(other)
    for rows in tiles(out):
        out[rows].add_(more[rows])
        if relu:
            out[rows].relu_()
    return as_map(out, x)


@dataclass
class Statistics:
    """Mean and variance of each channel of one map."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,), divided by M: what normalises
    unbiased: Tensor  # (C,), divided by M - 1: what the running variance takes


def statistics(x: Tensor) -> Statistics:  # of a map (N, C, H, W)
    """In at least float32, whatever the map is stored in."""
    count = x.numel() // x.shape[1]
    if count == 1:  # in torch's words
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.device.type == "cpu":
        mean, var = grouped_statistics(x, dtype)
    else:
        var, mean = torch.var_mean(x.to(dtype), (0, 2, 3), correction=0)
    return Statistics(mean, var, var * (count / (count - 1)))


def grouped_statistics(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance of short columns first, then of all.

    torch adds up the pixels of a channels-last map one after the other, which in float32 loses one to two digits more
    than its sum over a contiguous map does; lost digits move inputs of a ReLU across zero. Read as a matrix of which
    each row holds a group of pixels, the map has columns of some fifty numbers, whose errors average out.
    """
    n, channels, h, w = x.shape
    height = max(d for d in range(1, h + 1) if h % d == 0 and (d == 1 or n * h // d >= 32))
    groups = height * w  # pixels per row
    wide = as_rows(x).reshape(1, -1, 1, groups * channels).permute(0, 3, 1, 2)  # (1, groups * C, M / groups, 1)
    running = torch.zeros(2, groups * channels, dtype=dtype)  # unused, but that the results take its dtype
    means, variances = torch.batch_norm_update_stats(wide, running[0], running[1], 0.0)
    means, variances = means.view(groups, channels), variances.view(groups, channels)
    mean = means.mean(0)
    return mean, variances.mean(0).add_((means - mean).square_().mean(0))
