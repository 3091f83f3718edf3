"""The passes of norm_kernels.c for GPUs: each is a function that torch.compile makes one to three kernels of.

They read a map less often than torch's operators do, and make no copies in 32 bits of a map in 16.
Sizes are symbols to the compiler, so that it compiles a pass once per type of numbers, not for every map.

FINETUNE_NATIVE=0 disables them, and so do deterministic algorithms, whose order of sums torch then decides.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from finetune.backbones.maps import Normalisation

DEVICES = {"cuda"}
"""Types of devices on which these passes are used."""


def supports(x: Tensor) -> bool:
    """Whether the passes can be used for x: on a GPU for which torch can compile."""
    kind = x.device.type
    return kind in DEVICES and not torch.are_deterministic_algorithms_enabled() and available(kind)


def statistics(x: Tensor, mean: Tensor, var: Tensor) -> None:  # (M, C) -> (C,), (C,)
    """Mean and variance of each column, into two vectors."""
    computed_var, computed_mean = call(_statistics, x)
    mean.copy_(computed_mean)
    var.copy_(computed_var)


def normalise(x: Tensor, norm: Normalisation, out: Tensor, add: Tensor | None = None) -> Tensor:  # (M, C) -> (M, C)
    """Write z, or relu(z + add), into `out`, which may be x."""
    if add is None:
        call(_normalise_relu if norm.relu else _normalise, x, out, *vectors(norm))
    else:
        call(_normalise_sum_relu if norm.relu else _normalise_sum, x, add, out, *vectors(norm))
    return out


def gradient_sums(dz: Tensor, x: Tensor, norm: Normalisation, sums: Tensor, dx: Tensor | None = None) -> None:
    """With t = dz where z is not zero: sums[0] += sum t, sums[1] += sum t * (x - mean); dx += t * scale."""
    if dx is None:
        call(_sums_relu if norm.relu else _sums, dz, x, sums, *vectors(norm))
    else:
        call(_sums_and_dx_relu if norm.relu else _sums_and_dx, dz, x, sums, dx, *vectors(norm))


def correction(count: int, norm: Normalisation, sums: Tensor, p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dweight, dL/dbias) from those sums over `count` rows. Adds to p and r of dx = t * scale + p * x + r."""
    return call(_correction, sums, p, r, count, *vectors(norm))


def gradient(dz: Tensor, x: Tensor, norm: Normalisation, p: Tensor, r: Tensor, dx: Tensor) -> Tensor:  # (M, C)
    """dx = t * scale + p * x + r; it may be written over x."""
    call(_gradient_relu if norm.relu else _gradient, dz, x, p, r, dx, *vectors(norm))
    return dx


# -- what is compiled: a function for each combination of flags, as the compiler counts variants by function ----------


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.var_mean(x.to(wide(x)), 0, correction=0)


def _normalise(x: Tensor, out: Tensor, *norm: Any) -> None:
    out.copy_(affine(x, *norm))


def _normalise_relu(x: Tensor, out: Tensor, *norm: Any) -> None:
    out.copy_(affine(x, *norm).relu())


def _normalise_sum(x: Tensor, add: Tensor, out: Tensor, *norm: Any) -> None:
    out.copy_(affine(x, *norm) + add)


def _normalise_sum_relu(x: Tensor, add: Tensor, out: Tensor, *norm: Any) -> None:
    out.copy_((affine(x, *norm) + add).relu())


def _sums(dz: Tensor, x: Tensor, sums: Tensor, *norm: Any) -> None:
    add_sums(dz.to(wide(x)), x, sums, norm[0])


def _sums_relu(dz: Tensor, x: Tensor, sums: Tensor, *norm: Any) -> None:
    add_sums(rectified(dz, x, norm), x, sums, norm[0])


def _sums_and_dx(dz: Tensor, x: Tensor, sums: Tensor, dx: Tensor, *norm: Any) -> None:
    t = dz.to(wide(x))
    add_sums(t, x, sums, norm[0])
    dx.copy_(dx + t * scale_of(*norm))


def _sums_and_dx_relu(dz: Tensor, x: Tensor, sums: Tensor, dx: Tensor, *norm: Any) -> None:
    t = rectified(dz, x, norm)
    add_sums(t, x, sums, norm[0])
    dx.copy_(dx + t * scale_of(*norm))


def _correction(
    sums: Tensor, p: Tensor, r: Tensor, count: int, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    rstd = torch.rsqrt(var + eps)
    dbias, dot = sums.to(p.dtype).unbind(0)
    slope = -weight * rstd * rstd * rstd * dot / count
    p.add_(slope)
    r.sub_(weight * rstd * dbias / count + slope * mean)
    return rstd * dot, dbias.clone()


def _gradient(dz: Tensor, x: Tensor, p: Tensor, r: Tensor, dx: Tensor, *norm: Any) -> None:
    dx.copy_(dz.to(wide(x)) * scale_of(*norm) + x * p + r)


def _gradient_relu(dz: Tensor, x: Tensor, p: Tensor, r: Tensor, dx: Tensor, *norm: Any) -> None:
    dx.copy_(rectified(dz, x, norm) * scale_of(*norm) + x * p + r)


def wide(x: Tensor) -> torch.dtype:
    """The type to compute in: at least 32 bits."""
    return torch.promote_types(x.dtype, torch.float32)


def scale_of(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return weight * torch.rsqrt(var + eps)


def affine(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """z before the ReLU."""
    scale = scale_of(mean, var, weight, bias, eps)
    return x.to(wide(x)) * scale + (bias - mean * scale)


def rectified(dz: Tensor, x: Tensor, norm: tuple[Any, ...]) -> Tensor:
    """dz where z, as it was stored, is not zero. A NaN in z does not hide the gradient."""
    t = dz.to(wide(x))
    return torch.where(affine(x, *norm).to(x.dtype) <= 0, torch.zeros_like(t), t)


def add_sums(t: Tensor, x: Tensor, sums: Tensor, mean: Tensor) -> None:
    sums.add_(torch.stack([t.sum(0), (t * (x - mean)).sum(0)]))


# -- compiling ---------------------------------------------------------------------------------------------------------


def vectors(norm: Normalisation) -> tuple[Any, ...]:
    return norm.mean, norm.var, norm.weight, norm.bias, norm.eps


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The compiled function, with tensors outside of autograd: parameters would be compiled for each shape."""
    detached = {id(a): a.detach() for a in arguments if isinstance(a, Tensor)}  # x twice stays the same tensor twice
    with torch.no_grad():
        return compiled(function)(*(detached.get(id(a), a) for a in arguments))


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


@cache
def available(device_type: str) -> bool:
    """Whether torch can compile for that type of device; otherwise a warning says why not."""
    if os.environ.get("FINETUNE_NATIVE") == "0":
        return False
    try:
        check(device_type)
    except Exception as error:  # of Triton, of the C compiler that starts its kernels, of a GPU unknown to it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"memory=lean and minimal use more passes: torch cannot compile here ({reason}).", stacklevel=2)
        return False
    return True


def check(device_type: str) -> None:
    """Compile a pass with sums and one without, and compare both with torch's operators.

    Raises:
        ArithmeticError: the results differ.
    """
    x = torch.linspace(-1, 2, 24 * 40, device=device_type).view(40, 24)
    ones = torch.ones_like(x[0])
    norm = Normalisation(0.5 * ones, ones, ones, 0 * ones, 0.0, relu=True)
    mean, var, out = torch.empty_like(ones), torch.empty_like(ones), torch.empty_like(x)
    statistics(x, mean, var)
    normalise(x, norm, out)
    pairs = ((mean, x.mean(0)), (var, x.var(0, correction=0)), (out, (x - 0.5).relu()))
    if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs):
        raise ArithmeticError("compiled passes give other results")
