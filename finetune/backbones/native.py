"""norm_kernels.c, compiled when first needed. Without a compiler, torch's operators do the same in more passes.

It runs on the OpenMP threads of torch.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import c_extensions
from finetune.backbones.maps import Normalisation

SOURCE = Path(__file__).with_name("norm_kernels.c")
INTEGER, POINTER = ctypes.c_longlong, ctypes.c_void_p


@cache
def library() -> ctypes.CDLL | None:
    loaded = c_extensions.load(SOURCE)
    if loaded is None:
        return None
    i, p, norm = INTEGER, POINTER, ctypes.POINTER(CNorm)
    loaded.statistics.argtypes = [i, i, p, i, p, p, i]
    loaded.normalise.argtypes = [i, i, p, i, norm, p, i, p, i, i]
    loaded.gradient_sums.argtypes = [i, i, p, i, p, i, norm, p, p, p, i, i]
    loaded.correction.argtypes = [i, i, norm, p, p, p, p, p, p]
    loaded.gradient.argtypes = [i, i, p, i, p, i, norm, p, p, p, i, i]
    for name in ("statistics", "normalise", "gradient_sums", "correction", "gradient"):
        getattr(loaded, name).restype = None
    return loaded


class CNorm(ctypes.Structure):
    """`Norm` of norm_kernels.c."""

    _fields_ = (
        *((name, POINTER) for name in ("mean", "var", "weight", "bias")),
        ("eps", ctypes.c_double),
        ("relu", INTEGER),
    )


def pointers(norm: Normalisation) -> CNorm:
    values = (norm.mean, norm.var, norm.weight, norm.bias)
    return CNorm(*(vector(value) for value in values), norm.eps, norm.relu)


def supports(x: Tensor) -> bool:
    """Whether the library is available and can compute with x: float32 on a CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and library() is not None


def statistics(x: Tensor, mean: Tensor, var: Tensor) -> None:  # (M, C) -> (C,), (C,)
    """Mean and variance of each column, into two vectors."""
    call("statistics", x, *matrix(x), vector(mean), vector(var), parts(x))


def normalise(x: Tensor, norm: Normalisation, out: Tensor, add: Tensor | None = None) -> Tensor:  # (M, C) -> (M, C)
    """Write z, or relu(z + add), into `out`."""
    added = (None, 0) if add is None else matrix(add)
    call("normalise", x, *matrix(x), pointers(norm), *added, *matrix(out), parts(x))
    return out


def gradient_sums(dz: Tensor, x: Tensor, norm: Normalisation, sums: Tensor, dx: Tensor | None = None) -> None:
    """With t = dz where z is not zero: sums[0] += sum t, sums[1] += sum t * (x - mean); dx += t * scale."""
    added = (None, 0) if dx is None else matrix(dx)
    call("gradient_sums", x, *matrix(dz), *matrix(x), pointers(norm), *pair(sums), *added, parts(x))


def correction(count: int, norm: Normalisation, sums: Tensor, p: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dweight, dL/dbias) from those sums over `count` rows. Adds to p and r of dx = t * scale + p * x + r."""
    dweight, dbias = p.new_empty(2, len(p)).unbind(0)
    outputs = (vector(dweight), vector(dbias), vector(p), vector(r))
    functions().correction(count, len(p), pointers(norm), *pair(sums), *outputs)
    return dweight, dbias


def gradient(dz: Tensor, x: Tensor, norm: Normalisation, p: Tensor, r: Tensor, dx: Tensor) -> Tensor:  # (M, C)
    """dx = t * scale + p * x + r; it may be written over x."""
    call("gradient", x, *matrix(dz), *matrix(x), pointers(norm), vector(p), vector(r), *matrix(dx), parts(x))
    return dx


def functions() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None
    return loaded


def call(name: str, x: Tensor, *arguments: Any) -> None:
    getattr(functions(), name)(*x.shape, *arguments)


def matrix(x: Tensor) -> tuple[int, int]:
    """Address, and the distance between rows."""
    assert x.dtype == torch.float32
    assert x.stride(1) == 1 or x.shape[1] == 1
    return x.data_ptr(), x.stride(0)


def vector(x: Tensor) -> int:
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    return x.data_ptr()


def pair(sums: Tensor) -> tuple[int, int]:  # (2, C)
    assert sums.dtype == torch.float64
    assert sums.is_contiguous()
    return sums.data_ptr(), sums[1].data_ptr()


def parts(x: Tensor) -> int:
    """All threads or one: a team that changes its size costs more than it helps."""
    return torch.get_num_threads() if x.numel() >= 1 << 15 else 1
