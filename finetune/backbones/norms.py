"""Batch norm in parts: the statistics of a map, normalising by given statistics, and the backward pass.

x^ = (x - mean) * rstd, z = weight * x^ + bias, over M pixels per channel. With t = dL/dz (0 where a ReLU gave 0),

    dbias = sum t,    dweight = sum t * x^,    dx = weight * rstd * (t - dbias / M - x^ * dweight / M),

and where the statistics are fixed numbers (a norm in eval mode) the two terms with M are absent. In either case
dx = t * scale + p * x + r, with two numbers p and r per channel that are known once the sums are.

Maps are matrices here (see maps.py). Each function has three implementations: norm_kernels.c on a CPU, passes compiled
by torch on a GPU (see fused.py), and torch's operators.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.backbones import fused, native
from finetune.backbones.maps import Normalisation, tiles

aten = torch.ops.aten

GROUPED = 1 << 14
"""Number of sums that torch accumulates at the same time for statistics: 64 KiB in float32."""


def passes(x: Tensor) -> Any:
    """The module with compiled passes for maps such as x: native, fused, or None for torch's operators."""
    return native if native.supports(x) else fused if fused.supports(x) else None


@dataclass(frozen=True)
class Statistics:
    """Mean and variance (divided by M) of each channel of a map of M pixels."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,)
    pixels: int


def statistics(x: Tensor, mean: Tensor | None = None, var: Tensor | None = None) -> Statistics:  # (M, C)
    """Mean and variance of each column, in at least float32; written into `mean` and `var` if they are given."""
    pixels, channels = x.shape
    if pixels == 1:  # the message of torch
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    if mean is None or var is None:
        mean, var = x.new_empty(2, channels, dtype=torch.promote_types(x.dtype, torch.float32)).unbind(0)
    if (kernels := passes(x)) is not None:
        kernels.statistics(x, mean, var)
    elif x.device.type == "cpu":
        grouped_statistics(x, mean, var)
    else:
        var[:], mean[:] = torch.var_mean(x.to(mean.dtype), 0, correction=0)
    return Statistics(mean, var, pixels)


def grouped_statistics(x: Tensor, mean: Tensor, var: Tensor) -> None:
    """Statistics of short columns first, then of all.

    torch adds up the pixels of a channels-last map one after the other, which in float32 loses one to two digits more
    than its sum over a contiguous map does; lost digits move inputs of a ReLU across zero. Read as a matrix of which
    each row holds a group of pixels, the map has shorter columns, whose errors average out.
    """
    pixels, channels = x.shape
    groups = next(g for g in range(max(1, GROUPED // channels), 0, -1) if pixels % g == 0)  # pixels per row
    wide = x.reshape(1, pixels // groups, 1, groups * channels).permute(0, 3, 1, 2)  # (1, groups * C, M / groups, 1)
    running = mean.new_zeros(2, groups * channels)  # unused, but that the results take its dtype
    means, variances = torch.batch_norm_update_stats(wide, running[0], running[1], 0.0)
    means, variances = means.view(groups, channels), variances.view(groups, channels)
    torch.mean(means, 0, out=mean)
    torch.add(variances.mean(0), (means - mean).square_().mean(0), out=var)


def normalise(x: Tensor, norm: Normalisation, out: Tensor, add: Tensor | None = None) -> Tensor:  # (M, C) -> (M, C)
    """Write z, or z + add, into `out`; the ReLU is applied to the sum."""
    if (kernels := passes(x)) is not None:
        return kernels.normalise(x, norm, out, add)
    scale, shift = norm.scale_and_shift()
    for rows in tiles(x):
        z = torch.addcmul(shift, x[rows], scale, out=out[rows])
        if add is not None:
            z.add_(add[rows])
        if norm.relu:
            z.relu_()
    return out


def norm_backward(
    dz: Tensor, x: Tensor, z: Tensor | None, norm: Normalisation, *, fixed: bool, needs_x: bool, inplace: bool = False
) -> tuple[Tensor | None, Tensor, Tensor]:  # (M, C) -> (M, C), (C,), (C,)
    """(dx, dweight, dbias); z may be passed if it is available.

    `fixed`: the statistics are not those of x. `inplace`: x is not needed afterwards, and dx may be written over it.
    """
    if (kernels := passes(x)) is not None:
        sums = ReaderSums(norm, x)
        sums.add(dz, x, None)
        p, r = torch.zeros_like(norm.mean), torch.zeros_like(norm.mean)
        dweight, dbias = sums.finish(len(x), fixed, p, r)
        dx = kernels.gradient(dz, x, norm, p, r, x if inplace else x.new_empty(x.shape)) if needs_x else None
        return dx, dweight, dbias
    if norm.relu:
        dz = aten.threshold_backward(dz, normalise(x, norm, torch.empty_like(x)) if z is None else z, 0)
    dz, x = (t.view(1, len(t), 1, -1).permute(0, 3, 1, 2) for t in (dz, x))  # (1, C, M, 1), channels last
    known = (norm.mean, norm.var, None, None) if fixed else (None, None, norm.mean, norm.rstd())
    dx, dweight, dbias = aten.native_batch_norm_backward(
        dz, x, norm.weight, *known, not fixed, norm.eps, [needs_x, True, True]
    )
    return dx.permute(0, 2, 3, 1).flatten(0, 2) if needs_x else None, dweight, dbias


class ReaderSums:
    """The sums that one reader of a map (a norm, and the ReLU after it) needs in backward, a few rows at a time."""

    def __init__(self, norm: Normalisation, like: Tensor):
        self.norm, self.kernels = norm, passes(like)
        dtype = norm.mean.dtype if self.kernels is None else torch.float64
        self.sums = norm.mean.new_zeros(2, len(norm.mean), dtype=dtype)  # of t, and of t * (x - mean)

    def add(self, dz: Tensor, x: Tensor, z: Tensor | None, dx: Tensor | None = None) -> None:
        """Add some rows of dL/dz, x and z; dx += t * scale. Without compiled passes z is needed, and dz changes."""
        if self.kernels is not None:
            self.kernels.gradient_sums(dz, x, self.norm, self.sums, dx)
            return
        if self.norm.relu:
            aten.threshold_backward.grad_input(dz, z, 0, grad_input=dz)
        self.sums[0] += dz.sum(0, dtype=self.sums.dtype)
        self.sums[1] += (x - self.norm.mean).mul_(dz).sum(0)
        if dx is not None:
            dx.addcmul_(dz, self.norm.weight * self.norm.rstd())

    def finish(self, pixels: int, fixed: bool, p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """(dweight, dbias). Adds to p and r, unless the statistics are fixed."""
        norm = self.norm
        if self.kernels is not None and not fixed:
            return self.kernels.correction(pixels, norm, self.sums, p, r)
        rstd = norm.rstd()
        dbias, dot = self.sums.to(p.dtype).unbind(0)
        if not fixed:
            slope = -norm.weight * rstd.pow(3) * dot / pixels
            p += slope
            r -= norm.weight * rstd * dbias / pixels + slope * norm.mean
        return rstd * dot, dbias
