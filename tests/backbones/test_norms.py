"""The passes of batch norm: native ones, those for GPUs, torch's operators; against autograd in float64 and each other.

Those for GPUs run here uncompiled; test_fused.py compiles them.
"""

import shutil
import subprocess

import pytest
import torch

from finetune import c_extensions
from finetune.backbones import fused, native, norms
from finetune.backbones.maps import Normalisation, as_map, as_rows, tiles
from finetune.backbones.norms import ReaderSums, norm_backward, normalise, statistics


@pytest.fixture(params=["native", "fused", "torch"])
def way(request, monkeypatch):
    if request.param != "native":
        monkeypatch.setattr(native, "supports", lambda x: False)
        monkeypatch.setattr(fused, "supports", lambda x: request.param == "fused")
        monkeypatch.setattr(fused, "compiled", lambda function: function)
    elif native.library() is None:
        pytest.skip("no C compiler here")
    return request.param


def some(rows: int = 300, columns: int = 37, wider: int = 5) -> torch.Tensor:
    """A range of columns of a wider matrix, some with a mean far from zero, as in a dense block."""
    torch.manual_seed(0)
    return (torch.randn(rows, columns + wider) * torch.rand(columns + wider) + 3 * torch.randn(columns + wider))[
        :, 2:39
    ]


def norm_of(x: torch.Tensor, relu: bool = True) -> Normalisation:
    stats = statistics(x)
    return Normalisation(stats.mean, stats.var, torch.randn(x.shape[1]), torch.randn(x.shape[1]), 1e-5, relu)


@pytest.mark.parametrize("rows", [2, 7, 64, 65, 5000])
def test_statistics(way, rows):
    x = some(rows)
    result = statistics(x)
    torch.testing.assert_close(result.mean.double(), x.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.var.double(), x.double().var(0, correction=0), rtol=2e-6, atol=1e-9)
    assert result.pixels == rows


def test_statistics_are_exact_where_the_mean_is_large(way):
    """Plain float32 sums over this many rows would be off by a hundred times as much."""
    x = torch.randn(30000, 8) + 30
    result = statistics(x)
    torch.testing.assert_close(result.mean.double(), x.double().mean(0), rtol=3e-7, atol=0)
    torch.testing.assert_close(result.var.double(), x.double().var(0, correction=0), rtol=3e-6, atol=0)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_add", [True, False])
def test_normalise(way, relu, with_add):
    x, add = some(), torch.randn(300, 40)[:, 1:38]
    norm = norm_of(x, relu)
    scale = norm.weight.double() / (norm.var.double() + norm.eps).sqrt()
    wanted = (x.double() - norm.mean.double()) * scale + norm.bias.double() + (add.double() if with_add else 0)
    wanted = wanted.relu() if relu else wanted
    result = normalise(x, norm, torch.empty(x.shape), add if with_add else None)
    torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(normalise(x, norm, x, add if with_add else None), result)  # over x


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("rows", [300, 5000])
def test_the_backward_pass(way, relu, fixed, rows):
    x, dz = some(rows), torch.randn(rows, 37)
    norm = norm_of(x, relu)
    leaves = [t.double().requires_grad_() for t in (x, norm.weight, norm.bias)]
    running = (norm.mean.double(), norm.var.double()) if fixed else (None, None)
    z = torch.nn.functional.batch_norm(leaves[0], *running, leaves[1], leaves[2], not fixed, eps=norm.eps)
    z = z.relu() if relu else z
    wanted = torch.autograd.grad(z, leaves, dz.double())
    dense = x.contiguous()
    result = norm_backward(dz, dense, None, norm, fixed=fixed, needs_x=True)
    for a, b in zip(result, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    overwritten = norm_backward(dz, dense, None, norm, fixed=fixed, needs_x=True, inplace=True)
    torch.testing.assert_close(overwritten[0], result[0])
    assert norm_backward(dz, x.contiguous(), None, norm, fixed=fixed, needs_x=False)[0] is None


def test_many_readers_rows_by_rows(way):
    """Two readers of the same columns, a few rows at a time: their corrections add up."""
    x = some()
    readers = [norm_of(x), norm_of(x)]
    gradients = [torch.randn(x.shape), torch.randn(x.shape)]
    dx, p, r = torch.zeros(300, 50)[:, :37], torch.zeros(37), torch.zeros(37)
    for norm, dz in zip(readers, gradients, strict=True):
        sums, z = ReaderSums(norm, x), normalise(x, norm, torch.empty(x.shape))
        for rows in (slice(0, 100), slice(100, 300)):
            sums.add(dz[rows].clone(), x[rows], z[rows], dx[rows])
        sums.finish(len(x), False, p, r)
    leaf = x.double().requires_grad_()
    for norm, dz in zip(readers, gradients, strict=True):
        weight, bias = norm.weight.double(), norm.bias.double()
        torch.nn.functional.batch_norm(leaf, None, None, weight, bias, True, eps=norm.eps).relu().backward(dz.double())
    torch.testing.assert_close((dx + p * x + r).double(), leaf.grad, rtol=1e-3, atol=1e-3)


def test_nan_is_not_hidden_by_the_relu(way):
    x = some().clone()
    norm = norm_of(x)
    x[5, 7] = torch.nan
    assert normalise(x, norm, torch.empty(x.shape)).isnan().nonzero().tolist() == [[5, 7]]
    dx, dweight, _ = norm_backward(torch.ones(x.shape), x, None, norm, fixed=True, needs_x=True)
    assert dweight.isnan().nonzero().tolist() == [[7]]
    assert not dx.isnan().any(dim=0)[torch.arange(37) != 7].any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing_but_the_last_digits(threads):
    x, dz = torch.randn(4000, 40), torch.randn(4000, 40)
    norm = norm_of(x)
    before = torch.get_num_threads()
    one = (norm.mean, norm.var, *norm_backward(dz, x, None, norm, fixed=False, needs_x=True))
    try:
        torch.set_num_threads(threads)
        stats = statistics(x)
        many = (stats.mean, stats.var, *norm_backward(dz, x, None, norm, fixed=False, needs_x=True))
        again = norm_backward(dz, x, None, norm, fixed=False, needs_x=True)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(many, one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(again, many[2:], strict=True))  # the same threads, the same bits


def test_without_a_compiler_there_is_no_library(monkeypatch):
    for break_it in (
        lambda: monkeypatch.setattr(shutil, "which", lambda name: None),
        lambda: monkeypatch.setenv("FINETUNE_NATIVE", "0"),
        lambda: monkeypatch.setattr(
            subprocess, "run", lambda command, **options: (_ for _ in ()).throw(subprocess.CalledProcessError(1, "cc"))
        ),
    ):
        with monkeypatch.context():
            break_it()
            assert c_extensions.load.__wrapped__(native.SOURCE) is None
        monkeypatch.undo()


def test_rows_and_maps_are_the_same_memory():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    rows = as_rows(x)
    assert rows.data_ptr() == x.data_ptr()
    assert torch.equal(as_map(rows, x), x)
    assert torch.equal(rows[7], x[0, :, 1, 2])
    assert sum(rows[part].numel() for part in tiles(rows)) == x.numel()


def test_no_group_of_rows_is_too_wide():
    for rows, columns in [(392, 2048), (12, 64), (13, 7), (2, 40000)]:
        x = torch.randn(rows, columns)
        mean, var = torch.empty(2, columns).unbind(0)
        norms.grouped_statistics(x, mean, var)
        torch.testing.assert_close(var, x.var(0, correction=0), rtol=1e-5, atol=1e-6)
