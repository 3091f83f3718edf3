"""The modules of a folded network: convolutions with a bias where a batch norm was, and a scale and shift for the rest.

They compute channels last. On a CPU, without gradients, a convolution adds the shortcut and applies the ReLU while its
output is in the cache, with the operators that torch.compile uses for that; elsewhere the same takes several operators.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.backbones.maps import Normalisation, as_map, as_rows, channels_last
from finetune.backbones.norms import normalise
from finetune.heads.dilated import DilatedConv2d, surroundings, taps


class FoldedConv(nn.Module):
    """A convolution, the batch norm after it, if any, and the ReLU after that, if any."""

    def __init__(self, conv: nn.Conv2d, norm: _BatchNorm | None = None, *, relu: bool = False):
        super().__init__()
        weight = conv.weight.detach().double()
        bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().double()
        if norm is not None:
            scale, shift = scale_and_shift(norm)
            weight, bias = weight * scale[:, None, None, None], bias * scale + shift
        self.weight = nn.Parameter(channels_last(weight.to(conv.weight.dtype)), requires_grad=False)
        self.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.dilated = isinstance(conv, DilatedConv2d)
        self.relu = relu
        self.packed: tuple[Any, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        if fuses(x):
            act = "relu" if self.relu else "none"
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.packed_weight(x), self.bias, *self.sizes(x), act, [], ""
            )
        padding, stride, dilation, groups = self.sizes(x)
        y = F.conv2d(x, self.reaching(x), self.bias, stride, padding, dilation, groups)
        return F.relu(y, inplace=True) if self.relu else y

    def add_to(self, total: Tensor, x: Tensor, *, relu: bool) -> Tensor:
        """total + conv(x), and the ReLU of the sum if `relu`; may be written over `total`."""
        x = channels_last(x)
        if fuses(x) and total.is_contiguous(memory_format=torch.channels_last):
            act = "relu" if relu else None
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                total, x, self.packed_weight(x), self.bias, *self.sizes(x), "add", 1.0, act, [], ""
            )
        total = self.forward(x).add_(total)
        return F.relu(total, inplace=True) if relu else total

    def sizes(self, x: Tensor) -> tuple[Any, Any, Any, int]:
        """Padding, stride, dilation and groups."""
        padding, dilation = self.padding, self.dilation
        if self.dilated:
            padding, dilation = surroundings(*self.taps(x), dilation)
        return padding, self.stride, dilation, self.groups

    def taps(self, x: Tensor) -> tuple[slice, slice]:
        """Rows and columns of the kernel that reach a pixel."""
        rows, columns = self.weight.shape[-2:]
        return taps((rows, columns), self.dilation, x.shape) if self.dilated else (slice(rows), slice(columns))

    def reaching(self, x: Tensor) -> Tensor:
        """The weight of these."""
        rows, columns = self.taps(x)
        return self.weight[:, :, rows, columns]

    def packed_weight(self, x: Tensor) -> Tensor:
        """The weight in the order in which the operator reads it, cached until the weight changes."""
        weight, shape = self.weight, self.reaching(x).shape
        key = (weight.data_ptr(), None if weight.is_inference() else weight._version, shape)
        if self.packed is None or self.packed[0] != key:
            chosen = channels_last(self.reaching(x).detach())
            self.packed = (key, torch.ops.mkldnn._reorder_convolution_weight(chosen, *self.sizes(x), list(x.shape)))
        return self.packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}  # copies and pickles make their own


class ScaleShiftReLU(nn.Module):
    """A batch norm with no convolution before it, and the ReLU after it."""

    scale: Tensor
    shift: Tensor
    zero: Tensor
    one: Tensor

    def __init__(self, norm: _BatchNorm):
        super().__init__()
        assert norm.running_mean is not None
        for name, value in zip(("scale", "shift"), scale_and_shift(norm), strict=True):
            self.register_buffer(name, value.to(norm.running_mean.dtype))
        self.register_buffer("zero", torch.zeros_like(self.scale), persistent=False)
        self.register_buffer("one", torch.ones_like(self.scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if is_traced():  # one operator, which runtimes know how to put beside a convolution
            return F.relu(F.batch_norm(x, self.zero, self.one, self.scale, self.shift, eps=0.0), inplace=True)
        if needs_gradient(x):
            return F.relu(torch.addcmul(self.shift[:, None, None], x, self.scale[:, None, None]), inplace=True)
        rows = as_rows(x)
        norm = Normalisation(self.zero, self.one, self.scale, self.shift, 0.0, relu=True)
        return as_map(normalise(rows, norm, rows.new_empty(rows.shape)), x)


class FoldedBlock(nn.Module):
    """A residual block; see `structure.Branches`."""

    def __init__(self, before: nn.Sequential, main: nn.Sequential, shortcut: nn.Sequential, *, relu: bool):
        super().__init__()
        self.before, self.main, self.shortcut, self.relu = before, main, shortcut, relu

    def forward(self, x: Tensor, *, owned: bool = False) -> Tensor:
        """`owned`: x is not read elsewhere, and the sum may be written over it."""
        inner = self.before(x)
        total = self.shortcut(inner) if len(self.shortcut) else x
        *first, last = self.main
        for module in first:
            inner = module(inner)
        owned = isinstance(self.shortcut[-1], FoldedConv) if len(self.shortcut) else owned
        if owned and isinstance(last, FoldedConv):
            return last.add_to(total, inner, relu=self.relu)
        total = last(inner).add_(total)
        return F.relu(total, inplace=True) if self.relu else total


class FoldedStage(nn.Sequential):
    """Residual blocks in order. The map between two of them is not read elsewhere, except by a hook."""

    def forward(self, x: Tensor) -> Tensor:
        owned = False
        for block in self:
            x = block(x, owned=owned) if isinstance(block, FoldedBlock) else block(x)
            owned = not block._forward_hooks
        return x


class FoldedDenseBlock(nn.ModuleList):
    """Dense layers that read and write one buffer, where concatenation would copy it for each of them."""

    def __init__(self, layers: Iterable[nn.Sequential]):
        super().__init__(layers)
        self.growth = [layer[-1].weight.shape[0] for layer in self]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C + sum of growth, H, W)
        if is_traced():  # a graph has no memory to write into: it would copy all of the buffer for each layer
            for layer in self:
                x = torch.cat([x, layer(x)], dim=1)
            return x
        n, channels, h, w = x.shape
        out = as_map(x.new_empty(n * h * w, channels + sum(self.growth)), x)
        out[:, :channels] = x
        for layer, growth in zip(self, self.growth, strict=True):
            out[:, channels : channels + growth] = layer(out[:, :channels])
            channels += growth
        return out


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm in eval mode multiplies by and adds, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def needs_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def is_traced() -> bool:
    """Whether a compiler or exporter records what is computed."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def fuses(x: Tensor) -> bool:
    """Whether to use the fused operators. They have no derivative, and a tracer should see ordinary convolutions."""
    ordinary = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return ordinary and not is_traced() and not needs_gradient(x) and fused_operators_work()


@cache
def fused_operators_work() -> bool:
    """Whether they exist and compute correctly, tested once: they are not public in torch."""
    try:
        x, sizes = torch.full((1, 1, 2, 2), 2.0), ((0, 0), (1, 1), (1, 1), 1)
        weight = torch.ops.mkldnn._reorder_convolution_weight(torch.full((1, 1, 1, 1), -3.0), *sizes, list(x.shape))
        one = torch.ops.mkldnn._convolution_pointwise(x, weight, torch.ones(1), *sizes, "none", [], "")
        total = torch.full((1, 1, 2, 2), 6.0)
        two = torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, weight, torch.ones(1), *sizes, "add", 1.0, "relu", [], ""
        )
        return bool((one == -5).all() and (two == 1).all())
    except (AttributeError, RuntimeError, TypeError):
        return False
