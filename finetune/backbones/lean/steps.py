"""The steps that a lean network is made of. Each knows its own derivative and can be done again without its costs.

A step maps x to y. `forward` also returns what the step wants kept for later: statistics, a mask, seldom a map. With
that, `replay` gives the same y once more (no statistics are taken, nothing random is drawn, no running mean moves), and
`backward` turns dL/dy into dL/dx and dL/dparameters. Steps hold no tensors: parameters and kept tensors come in as
trees (lists of tensors and lists) of the same form each time.

Batch norm, in these files: x^ = (x - mean) * rstd, y = weight * x^ + bias, over M pixels per channel. Its derivative is

    dbias = sum dy,    dweight = sum dy * x^,    dx = weight * rstd * (dy - dbias / M - x^ * dweight / M),

and where the statistics are fixed numbers (a norm in eval mode) the two terms with M are absent.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.backbones.maps import Statistics, as_map, as_rows, channels_last, statistics

aten = torch.ops.aten
Tree = list[Any]  # of tensors, None, and trees
Observed = dict[int, Statistics]  # what the norms in train mode saw, by place


class Step:
    """x -> y; see above. `needs` has the form of `params` and says which of them want a gradient."""

    needs_input = True
    """Whether `backward` reads x."""
    needs_output = False
    """Whether `backward` reads y. Where it does not, y may be given all the same, if it is at hand, or be None."""

    def forward(self, x: Tensor, params: Tree, observed: Observed) -> tuple[Tensor, Tree]:
        raise NotImplementedError

    def replay(self, x: Tensor, params: Tree, kept: Tree) -> Tensor:
        raise NotImplementedError

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        """(dL/dx, dL/dparams); dy is left as it was, and dL/dx is a new tensor."""
        raise NotImplementedError


@dataclass(frozen=True)
class Conv(Step):
    """params: weight, and bias or None."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    product: bool
    """Whether it is a 1x1 convolution without bias, groups and padding: a product of matrices."""
    widens: bool
    """Whether it is such a product and gives at least twice the channels that it reads."""

    def forward(self, x: Tensor, params: Tree, observed: Observed) -> tuple[Tensor, Tree]:
        return self.replay(x, params, []), []

    def replay(self, x: Tensor, params: Tree, kept: Tree) -> Tensor:
        weight = params[0].to(x.dtype)
        bias = None if params[1] is None else params[1].to(x.dtype)
        if self.product and x.device.type == "cpu":
            x = self.strided(x)
            return as_map(as_rows(x) @ weight.flatten(1).t(), x)
        return torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        weight, bias = params
        if self.product and x.device.type == "cpu":  # in two thirds of the time that convolution_backward takes
            g, dx, dweight = as_rows(dy), None, None
            if needs[0]:
                dweight = (g.t() @ as_rows(self.strided(x))).view_as(weight)
            if needs_x:
                dx = self.unstrided(as_map(g @ weight.flatten(1).to(g.dtype), dy), like=x)
            return dx, [dweight, None]
        mask = [needs_x, needs[0], bias is not None and needs[1]]
        sizes = None if bias is None else list(bias.shape)
        dx, *grads = aten.convolution_backward(
            dy, x, weight.to(x.dtype), sizes, self.stride, self.padding, self.dilation, False, [0, 0], self.groups, mask
        )
        return dx, grads

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


@dataclass(frozen=True)
class Norm(Step):
    """Batch norm, and the ReLU behind it. params: weight, bias, and mean and variance of a norm in eval mode."""

    place: int
    eps: float
    relu: bool
    frozen: bool

    def forward(self, x: Tensor, params: Tree, observed: Observed) -> tuple[Tensor, Tree]:
        if self.frozen:
            return self.replay(x, params, []), []
        stats = statistics(x)
        observed[self.place] = stats
        kept = [stats.mean, stats.var]
        return self.replay(x, params, kept), kept

    def mean_and_var(self, params: Tree, kept: Tree) -> tuple[Tensor, Tensor]:
        return (params[2], params[3]) if self.frozen else (kept[0], kept[1])

    def replay(self, x: Tensor, params: Tree, kept: Tree) -> Tensor:
        mean, var = self.mean_and_var(params, kept)
        y = torch.native_batch_norm(x, params[0], params[1], mean, var, False, 0.0, self.eps)[0]
        return y.relu_() if self.relu else y

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        weight = params[0]
        mean, var = self.mean_and_var(params, kept)
        if self.relu:
            dy = aten.threshold_backward(dy, self.replay(x, params, kept) if y is None else y, 0)
        running = (mean, var) if self.frozen else (None, None)
        batch = (None, None) if self.frozen else (mean, torch.rsqrt(var + self.eps))
        dx, dweight, dbias = aten.native_batch_norm_backward(
            dy, x, weight, *running, *batch, not self.frozen, self.eps, [needs_x, needs[0], needs[1]]
        )
        return dx, [dweight, dbias, *[None] * len(params[2:])]


@dataclass(frozen=True)
class DropPath(Step):
    """A residual branch left out for some of the images. No parameters; keeps the N factors."""

    module: nn.Module

    def forward(self, x: Tensor, params: Tree, observed: Observed) -> tuple[Tensor, Tree]:
        mask = self.module(x.new_ones(x.shape[0], 1, 1, 1))
        return x * mask, [mask]

    def replay(self, x: Tensor, params: Tree, kept: Tree) -> Tensor:
        return x * kept[0]

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        return dy * kept[0] if needs_x else None, []


@dataclass(frozen=True)
class Cheap(Step):
    """Any module whose output depends on nothing but x and its parameters: pooling, squeeze and excitation.

    It is done again in backward, under autograd. params: the module's own, in order.
    """

    module: nn.Module

    def forward(self, x: Tensor, params: Tree, observed: Observed) -> tuple[Tensor, Tree]:
        return self.replay(x, params, []), []

    def replay(self, x: Tensor, params: Tree, kept: Tree) -> Tensor:
        if not params:
            return self.module(x)
        names = [name for name, _ in self.module.named_parameters()]
        values = {name: value.to(x.dtype) for name, value in zip(names, params, strict=True)}
        return torch.func.functional_call(self.module, values, x)

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        wanted = [needs_x, *needs]
        inputs = [t.detach().requires_grad_(want) for t, want in zip([x, *params], wanted, strict=True)]
        with torch.enable_grad():
            y = self.replay(inputs[0], inputs[1:], kept)
        found = iter(torch.autograd.grad(y, [t for t in inputs if t.requires_grad], dy))
        dx, *grads = [next(found) if want else None for want in wanted]
        return dx, grads


@dataclass(frozen=True)
class Projection(Step):
    """A widening 1x1 convolution and its batch norm, whose wide map between the two is never needed again.

    The convolution's output y = W x is linear in x, so all that the norm's derivative wants of y can be had from x,
    which is narrow. With d = dL/d(norm's output), s = weight * rstd, and c = x - mean(x), so that W c = y - mean(y):

        A = sum d c^T,    G = sum c c^T                            over the M pixels
        dweight = rstd * diag(A W^T),    dbias = sum d
        dy = s * (d - dbias / M) - q * (W c)                       with q = s * rstd * dweight / M
        dW = sum dy c^T = s * A - q * (W G)
        dx = W^T dy = (s * W)^T d - (W^T q W) c - W^T (s * dbias / M)

    Two products with a square matrix of the narrow side take the place of the convolution done again and of every
    elementwise pass over y. params: the convolution's tree, the norm's tree.
    """

    conv: Conv
    norm: Norm

    def forward(self, x: Tensor, params: Tree, observed: Observed) -> tuple[Tensor, Tree]:
        return self.norm.forward(self.conv.replay(x, params[0], []), params[1], observed)

    def replay(self, x: Tensor, params: Tree, kept: Tree) -> Tensor:
        return self.norm.replay(self.conv.replay(x, params[0], []), params[1], kept)

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        if torch.finfo(x.dtype).bits < 32:  # sums over all pixels would lose too much
            return self.backward_from_wide_map(dy, x, params, kept, needs_x, needs)
        weight = params[0][0]
        mean_y, var = self.norm.mean_and_var(params[1], kept)
        rstd = torch.rsqrt(var + self.norm.eps)
        narrow = self.conv.strided(x)
        d, rows = as_rows(dy), as_rows(narrow)  # (M, wide), (M, narrow)
        w, s = weight.flatten(1), (params[1][0] * rstd)[:, None]  # (wide, narrow), (wide, 1)
        dbias = d.sum(0)
        moment = (rows.t() @ d).t()  # (wide, narrow); in this order it takes two thirds of the time
        if self.norm.frozen:
            dweight = rstd * ((moment * w).sum(1) - mean_y * dbias)
            dw = s * moment
            dx = d @ (s * w) if needs_x else None
        else:
            count = len(rows)
            mean = rows.mean(0)
            moment.addr_(dbias, mean, alpha=-1)  # A
            gram = (rows.t() @ rows).addr_(mean, mean, alpha=-count)  # G
            dweight = rstd * (moment * w).sum(1)
            q = s * (rstd * dweight / count)[:, None]
            dw = s * moment - q * (w @ gram)
            dx = None
            if needs_x:
                pull = w.t() @ (q * w)  # (narrow, narrow)
                shift = pull @ mean - w.t() @ (s[:, 0] * dbias / count)
                dx = torch.addmm(shift, rows, pull, alpha=-1).addmm_(d, s * w)
        if dx is not None:
            dx = self.conv.unstrided(as_map(dx, narrow), like=x)
        return dx, [[dw.view_as(weight), None], [dweight, dbias, *[None] * len(params[1][2:])]]

    def backward_from_wide_map(
        self, dy: Tensor, x: Tensor, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        wide = self.conv.replay(x, params[0], [])
        middle, norm_grads = self.norm.backward(dy, wide, None, params[1], kept, True, needs[1])
        assert middle is not None
        dx, conv_grads = self.conv.backward(middle, x, None, params[0], [], needs_x, needs[0])
        return dx, [conv_grads, norm_grads]


def wanted(needs: Tree | bool) -> bool:
    """Whether any gradient of a tree is needed."""
    return any(wanted(n) for n in needs) if isinstance(needs, list) else bool(needs)


def nones(tree: Tree) -> Tree:
    """A tree of the same form without tensors: the gradients of what needs none."""
    return [nones(branch) if isinstance(branch, list) else None for branch in tree]
