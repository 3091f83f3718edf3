"""The steps that a lean network is made of. A step knows its derivative, and can be computed again.

A step maps x to y. `forward` also returns what must be kept for backward: statistics, a mask, seldom a map. From that,
`replay` computes the same y again: it takes no statistics, draws no random number and moves no running mean. `backward`
turns dL/dy into dL/dx and dL/dparameters. Steps hold no tensors: parameters and kept tensors are passed in, as trees
(see trees.py) of the same structure each time.
"""

from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from finetune.backbones.maps import Normalisation, as_map, as_rows, channels_last
from finetune.backbones.norms import Statistics, norm_backward, normalise, statistics

aten = torch.ops.aten
Leaf = Any
"""In parameters and kept tensors: Tensor or None; in `needs`: bool; in gradients: Tensor or None."""
Nothing = tuple[()]
"""The tree of a step without parameters, or that keeps nothing."""
Observed = dict[int, Statistics]
"""The batch statistics of the norms in train mode, by their `number`."""
P = TypeVar("P", bound=tuple[Any, ...])
K = TypeVar("K", bound=tuple[Any, ...])


@dataclass(frozen=True)
class ResidualSum:
    """What the last step of a main branch adds its output to, and whether a ReLU follows the sum."""

    shortcut: Tensor
    relu: bool

    def add(self, y: Tensor) -> Tensor:
        """relu(y + shortcut), written over y."""
        y = y.add_(self.shortcut)
        return y.relu_() if self.relu else y


class Step(Generic[P, K]):
    """x -> y, or x -> relu(y + shortcut) with a `residual`. P: tuple type of the parameters, K: of what is kept."""

    needs_input = True
    """Whether `backward` reads x."""
    needs_output = False
    """Whether `backward` reads y. Where it does not, y may be passed if it is available, or be None."""

    def forward(
        self, x: Tensor, params: P, observed: Observed, residual: ResidualSum | None = None
    ) -> tuple[Tensor, K]:
        """(y, saved)."""
        raise NotImplementedError

    def replay(self, x: Tensor, params: P, saved: K, residual: ResidualSum | None = None) -> Tensor:
        """The y of `forward` again."""
        raise NotImplementedError

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: P, saved: K, needs_x: bool, needs: P
    ) -> tuple[Tensor | None, P]:
        """(dL/dx, dL/dparams). dy stays unchanged, and dL/dx is a new tensor. `needs`: which of `params` are needed."""
        raise NotImplementedError


class StatelessStep(Step[P, Nothing]):
    """A step without statistics and randomness: it keeps nothing, and `replay` is all there is to compute."""

    def forward(
        self, x: Tensor, params: P, observed: Observed, residual: ResidualSum | None = None
    ) -> tuple[Tensor, Nothing]:
        return self.replay(x, params, (), residual), ()


class ConvParams(NamedTuple):
    weight: Leaf
    bias: Leaf


@dataclass(frozen=True)
class Conv(StatelessStep[ConvParams]):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    product: bool
    """Whether it is a 1x1 convolution without bias, groups and padding: a product of matrices."""
    widens: bool
    """Whether it is such a product and has at least twice as many output channels as input channels."""

    def replay(self, x: Tensor, params: ConvParams, saved: Nothing = (), residual: ResidualSum | None = None) -> Tensor:
        weight = params.weight.to(x.dtype)
        bias = None if params.bias is None else params.bias.to(x.dtype)
        if self.multiplies(x):
            x = self.strided(x)
            y = as_map(as_rows(x) @ weight.flatten(1).t(), x)
        else:
            y = torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y if residual is None else residual.add(y)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: ConvParams,
        saved: Nothing,
        needs_x: bool,
        needs: ConvParams,
    ) -> tuple[Tensor | None, ConvParams]:
        weight, bias = params
        if self.multiplies(x):
            g, dx, dweight = as_rows(dy), None, None
            if needs.weight:
                dweight = (g.t() @ as_rows(self.strided(x))).view_as(weight)
            if needs_x:
                dx = self.unstrided(as_map(g @ weight.flatten(1).to(g.dtype), dy), like=x)
            return dx, ConvParams(dweight, None)
        mask = [needs_x, needs.weight, bias is not None and needs.bias]
        sizes = None if bias is None else list(bias.shape)
        dx, *grads = aten.convolution_backward(
            dy, x, weight.to(x.dtype), sizes, self.stride, self.padding, self.dilation, False, [0, 0], self.groups, mask
        )
        return dx, ConvParams(*grads)

    def multiplies(self, x: Tensor) -> bool:
        """Whether to compute it as a product. torch's convolutions are slow on small maps, and in a single thread."""
        pixels = x.numel() // (x.shape[1] * self.stride[0] * self.stride[1])
        return self.product and x.device.type == "cpu" and (pixels < 1024 or torch.get_num_threads() == 1)

    def strided(self, x: Tensor) -> Tensor:
        """The pixels that a 1x1 convolution reads."""
        return x if self.stride == (1, 1) else channels_last(x[:, :, :: self.stride[0], :: self.stride[1]])

    def unstrided(self, dx: Tensor, like: Tensor) -> Tensor:
        """dL/d(those pixels) as dL/dx."""
        if self.stride == (1, 1):
            return dx
        full = torch.zeros_like(like)
        full[:, :, :: self.stride[0], :: self.stride[1]] = dx
        return full


class NormParams(NamedTuple):
    weight: Leaf
    bias: Leaf
    mean: Leaf = None
    """The running statistics of a norm in eval mode; None in train mode."""
    var: Leaf = None


class NormSaved(NamedTuple):
    """The batch statistics of a norm in train mode; None in eval mode."""

    mean: Leaf
    var: Leaf


@dataclass(frozen=True)
class Norm(Step[NormParams, NormSaved]):
    """Batch norm, and the ReLU that follows it."""

    number: int
    """Number of the norm among those of the unit."""
    eps: float
    relu: bool
    frozen: bool
    """Whether the norm is in eval mode."""

    def forward(
        self, x: Tensor, params: NormParams, observed: Observed, residual: ResidualSum | None = None
    ) -> tuple[Tensor, NormSaved]:
        saved = self.observe(x, observed)
        return self.replay(x, params, saved, residual), saved

    def observe(self, x: Tensor, observed: Observed) -> NormSaved:
        """Take the batch statistics of x, if the norm is in train mode."""
        if self.frozen:
            return NormSaved(None, None)
        stats = observed[self.number] = statistics(as_rows(x))
        return NormSaved(stats.mean, stats.var)

    def normalisation(self, params: NormParams, saved: NormSaved) -> Normalisation:
        stats = params if self.frozen else saved
        return Normalisation(stats.mean, stats.var, params.weight, params.bias, self.eps, self.relu)

    def replay(
        self,
        x: Tensor,
        params: NormParams,
        saved: NormSaved,
        residual: ResidualSum | None = None,
        *,
        inplace: bool = False,
    ) -> Tensor:
        """`inplace`: y is written over x."""
        rows, norm = as_rows(x), self.normalisation(params, saved)
        out = rows if inplace else rows.new_empty(rows.shape)
        if residual is None:
            return as_map(normalise(rows, norm, out), x)
        if norm.relu:
            return residual.add(as_map(normalise(rows, norm, out), x))
        return as_map(normalise(rows, replace(norm, relu=residual.relu), out, add=as_rows(residual.shortcut)), x)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: NormParams,
        saved: NormSaved,
        needs_x: bool,
        needs: NormParams,
    ) -> tuple[Tensor | None, NormParams]:
        z = None if y is None else as_rows(y)
        return self.norm_backward(dy, x, z, params, saved, needs_x)

    def norm_backward(
        self,
        dy: Tensor,
        x: Tensor,
        z: Tensor | None,
        params: NormParams,
        saved: NormSaved,
        needs_x: bool,
        inplace: bool = False,
    ) -> tuple[Tensor | None, NormParams]:
        """`inplace`: x is not needed afterwards, and dL/dx may be written over it."""
        norm = self.normalisation(params, saved)
        dx, dweight, dbias = norm_backward(
            as_rows(dy), as_rows(x), z, norm, fixed=self.frozen, needs_x=needs_x, inplace=inplace
        )
        return None if dx is None else as_map(dx, x), NormParams(dweight, dbias)


class DropPathSaved(NamedTuple):
    factors: Leaf  # (N, 1, 1, 1)


@dataclass(frozen=True)
class DropPath(Step[Nothing, DropPathSaved]):
    """Drops the residual branch of some images."""

    module: nn.Module

    def forward(
        self, x: Tensor, params: Nothing, observed: Observed, residual: ResidualSum | None = None
    ) -> tuple[Tensor, DropPathSaved]:
        saved = DropPathSaved(self.module(x.new_ones(x.shape[0], 1, 1, 1)))
        return self.replay(x, params, saved, residual), saved

    def replay(self, x: Tensor, params: Nothing, saved: DropPathSaved, residual: ResidualSum | None = None) -> Tensor:
        y = x * saved.factors
        return y if residual is None else residual.add(y)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: Nothing,
        saved: DropPathSaved,
        needs_x: bool,
        needs: Nothing,
    ) -> tuple[Tensor | None, Nothing]:
        return dy * saved.factors if needs_x else None, ()


@dataclass(frozen=True)
class Recompute(StatelessStep[tuple[Leaf, ...]]):
    """Any module whose output depends on nothing but x and its parameters: pooling, squeeze and excitation.

    Backward computes it again, under autograd. The parameters are the module's, in the order of `parameters()`.
    """

    module: nn.Module

    def replay(
        self, x: Tensor, params: tuple[Leaf, ...], saved: Nothing, residual: ResidualSum | None = None
    ) -> Tensor:
        names = [name for name, _ in self.module.named_parameters()]
        values = {name: value.to(x.dtype) for name, value in zip(names, params, strict=True)}
        buffers = self.module.named_buffers()
        values |= {name: b.to(x.dtype) for name, b in buffers if b.is_floating_point() and b.dtype != x.dtype}
        y = torch.func.functional_call(self.module, values, x) if values else self.module(x)
        return y if residual is None else residual.add(y)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: tuple[Leaf, ...],
        saved: Nothing,
        needs_x: bool,
        needs: tuple[Leaf, ...],
    ) -> tuple[Tensor | None, tuple[Leaf, ...]]:
        needed = [needs_x, *needs]
        inputs = [t.detach().requires_grad_(need) for t, need in zip([x, *params], needed, strict=True)]
        with torch.enable_grad():
            y = self.replay(inputs[0], tuple(inputs[1:]), saved)
        computed = iter(torch.autograd.grad(y, [t for t in inputs if t.requires_grad], dy))
        dx, *grads = [next(computed) if need else None for need in needed]
        return dx, tuple(grads)
