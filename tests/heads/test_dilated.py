"""A dilated convolution without the taps that reach no pixel, beside torch's: as it is, lean and folded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from finetune.backbones import lean
from finetune.backbones.folding import fold_batch_norm
from finetune.heads.dilated import DilatedConv2d, taps
from finetune.heads.segment import conv_norm_relu


def plain(conv: DilatedConv2d, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, conv.weight, conv.bias, 1, conv.padding, conv.dilation)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 5]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_it_computes_the_same(height, width, dilation, kernel, bias):
    torch.manual_seed(0)
    conv = DilatedConv2d(2, 3, kernel, dilation=dilation, bias=bias).double()
    x = torch.randn(2, 2, height, width, dtype=torch.float64, requires_grad=True)
    y, wanted = conv(x), plain(conv, x)
    torch.testing.assert_close(y, wanted)
    dy = torch.randn_like(y)
    leaves = [x, *conv.parameters()]
    for got, expected in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(wanted, leaves, dy), strict=True):
        torch.testing.assert_close(got, expected)


def test_which_taps_reach_a_pixel():
    assert taps((3, 3), (12, 12), (2, 8, 20, 20)) == (slice(0, 3), slice(0, 3))
    assert taps((3, 3), (12, 12), (2, 8, 13, 12)) == (slice(0, 3), slice(1, 2))  # 12 pixels reach 11 away
    assert taps((5, 5), (4, 4), (2, 8, 8, 9)) == (slice(1, 4), slice(0, 5))
    assert taps((3, 3), (1, 1), (2, 8, 1, 1)) == (slice(1, 2), slice(1, 2))


@pytest.mark.parametrize("size", [(20, 20), (4, 20), (4, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_lean_training(size, bias):
    torch.manual_seed(0)
    row = nn.Sequential(*conv_norm_relu(4, 6, dilation=5)).double().train()
    if bias:
        row[0].bias = nn.Parameter(torch.randn(6, dtype=torch.float64))
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    leaves = [x, *row.parameters()]
    y = lean.run(row, x, "lean")
    assert type(y.grad_fn).__name__ == "LeanBackward"
    wanted = torch.relu(F.batch_norm(plain(row[0], x), None, None, row[1].weight, row[1].bias, training=True))
    torch.testing.assert_close(y, wanted)
    dy = torch.randn_like(y)
    for got, expected in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(wanted, leaves, dy), strict=True):
        torch.testing.assert_close(got, expected)


@torch.no_grad()
def test_a_folded_one_follows_the_size_of_the_map():
    torch.manual_seed(0)
    row = nn.Sequential(*conv_norm_relu(4, 6, dilation=5)).eval()
    folded = fold_batch_norm(row)
    for size in ((20, 20), (4, 20), (4, 3), (20, 20)):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(folded(x), row(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(row(x), torch.relu(row[1](plain(row[0], x))), rtol=1e-5, atol=1e-5)


def test_its_state_dict_is_that_of_a_convolution():
    ours, theirs = DilatedConv2d(2, 3, 3, dilation=4), nn.Conv2d(2, 3, 3, padding=4, dilation=4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))
