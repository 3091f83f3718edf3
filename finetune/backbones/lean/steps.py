"""The steps that a lean network is made of. Each knows its own derivative and can be done again without its costs.

A step maps x to y. `forward` also returns what the step wants kept for later: statistics, a mask, seldom a map. With
that, `replay` gives the same y once more (no statistics are taken, nothing random is drawn, no running mean moves), and
`backward` turns dL/dy into dL/dx and dL/dparameters. Steps hold no tensors: parameters and kept tensors come in as
trees (lists of tensors and lists) of the same form each time.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune.backbones.maps import Normalisation, as_map, as_rows, channels_last
from finetune.backbones.norms import Statistics, norm_backward, normalise, statistics

aten = torch.ops.aten
Tree = list[Any]  # of tensors, None, and trees
Observed = dict[int, Statistics]  # what the norms in train mode saw, by place


@dataclass(frozen=True)
class Onto:
    """What the last step of a residual branch adds its output to, and whether a ReLU stands behind the sum."""

    around: Tensor
    relu: bool

    def add(self, y: Tensor) -> Tensor:
        """relu(y + around); y is used up."""
        y = y.add_(self.around)
        return y.relu_() if self.relu else y


class Step:
    """x -> y, or y + around; see above. `needs` has the form of `params` and says which of them want a gradient."""

    needs_input = True
    """Whether `backward` reads x."""
    needs_output = False
    """Whether `backward` reads y. Where it does not, y may be given all the same, if it is at hand, or be None."""

    def forward(self, x: Tensor, params: Tree, observed: Observed, onto: Onto | None = None) -> tuple[Tensor, Tree]:
        """(y, kept). A step without statistics and chance has nothing to keep, and is its own replay."""
        return self.replay(x, params, [], onto), []

    def replay(self, x: Tensor, params: Tree, kept: Tree, onto: Onto | None = None) -> Tensor:
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

    def replay(self, x: Tensor, params: Tree, kept: Tree, onto: Onto | None = None) -> Tensor:
        weight = params[0].to(x.dtype)
        bias = None if params[1] is None else params[1].to(x.dtype)
        if self.multiplies(x):
            x = self.strided(x)
            y = as_map(as_rows(x) @ weight.flatten(1).t(), x)
        else:
            y = torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y if onto is None else onto.add(y)

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        weight, bias = params
        if self.multiplies(x):
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


@dataclass(frozen=True)
class Norm(Step):
    """Batch norm, and the ReLU behind it. params: weight, bias, and mean and variance of a norm in eval mode."""

    place: int
    eps: float
    relu: bool
    frozen: bool

    def forward(self, x: Tensor, params: Tree, observed: Observed, onto: Onto | None = None) -> tuple[Tensor, Tree]:
        kept = self.observe(x, observed)
        return self.replay(x, params, kept, onto), kept

    def observe(self, x: Tensor, observed: Observed) -> Tree:
        if self.frozen:
            return []
        stats = observed[self.place] = statistics(as_rows(x))
        return [stats.mean, stats.var]

    def known(self, params: Tree, kept: Tree) -> Normalisation:
        mean, var = params[2:] if self.frozen else kept
        return Normalisation(mean, var, params[0], params[1], self.eps, self.relu)

    def replay(self, x: Tensor, params: Tree, kept: Tree, onto: Onto | None = None, *, over: bool = False) -> Tensor:
        """`over`: x is used up, and y is written over it."""
        rows, norm = as_rows(x), self.known(params, kept)
        out = rows if over else rows.new_empty(rows.shape)
        if onto is None:
            return as_map(normalise(rows, norm, out), x)
        if norm.relu:
            return onto.add(as_map(normalise(rows, norm, out), x))
        return as_map(normalise(rows, replace(norm, relu=onto.relu), out, add=as_rows(onto.around)), x)

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        z = None if y is None else as_rows(y)
        return self.norm_backward(dy, x, z, params, kept, needs_x)

    def norm_backward(
        self, dy: Tensor, x: Tensor, z: Tensor | None, params: Tree, kept: Tree, needs_x: bool, over: bool = False
    ) -> tuple[Tensor | None, Tree]:
        """`over`: x is used up, and dL/dx may be written over it."""
        dx, dweight, dbias = norm_backward(
            as_rows(dy), as_rows(x), z, self.known(params, kept), fixed=self.frozen, needs_x=needs_x, over=over
        )
        return None if dx is None else as_map(dx, x), [dweight, dbias, *[None] * len(params[2:])]


@dataclass(frozen=True)
class DropPath(Step):
    """A residual branch left out for some of the images. No parameters; keeps the N factors."""

    module: nn.Module

    def forward(self, x: Tensor, params: Tree, observed: Observed, onto: Onto | None = None) -> tuple[Tensor, Tree]:
        kept = [self.module(x.new_ones(x.shape[0], 1, 1, 1))]
        return self.replay(x, params, kept, onto), kept

    def replay(self, x: Tensor, params: Tree, kept: Tree, onto: Onto | None = None) -> Tensor:
        y = x * kept[0]
        return y if onto is None else onto.add(y)

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

    def replay(self, x: Tensor, params: Tree, kept: Tree, onto: Onto | None = None) -> Tensor:
        names = [name for name, _ in self.module.named_parameters()]
        values = {name: value.to(x.dtype) for name, value in zip(names, params, strict=True)}
        y = torch.func.functional_call(self.module, values, x) if values else self.module(x)
        return y if onto is None else onto.add(y)

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

    Products with square matrices of the narrow side take the place of the convolution done again and of every
    elementwise pass over y, which pays on large maps. params: the convolution's tree, the norm's tree.
    """

    conv: Conv
    norm: Norm

    def forward(self, x: Tensor, params: Tree, observed: Observed, onto: Onto | None = None) -> tuple[Tensor, Tree]:
        y = self.conv.replay(x, params[0], [])
        kept = self.norm.observe(y, observed)
        return self.norm.replay(y, params[1], kept, onto, over=True), kept

    def replay(self, x: Tensor, params: Tree, kept: Tree, onto: Onto | None = None) -> Tensor:
        return self.norm.replay(self.conv.replay(x, params[0], []), params[1], kept, onto, over=True)

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        pixels, wide = dy.numel() // dy.shape[1], dy.shape[1]
        too_small_to_pay, too_coarse_to_sum = pixels < 16 * wide, torch.finfo(x.dtype).bits < 32
        if too_small_to_pay or too_coarse_to_sum:
            return self.backward_from_wide_map(dy, x, params, kept, needs_x, needs)
        weight = params[0][0]
        norm = self.norm.known(params[1], kept)
        rstd = norm.rstd()
        narrow = self.conv.strided(x)
        d, rows = as_rows(dy), as_rows(narrow)  # (M, wide), (M, narrow)
        w, s = weight.flatten(1), (norm.weight * rstd)[:, None]  # (wide, narrow), (wide, 1)
        dbias = d.sum(0)
        moment = (rows.t() @ d).t()  # (wide, narrow); in this order it takes two thirds of the time
        if self.norm.frozen:
            dweight = rstd * ((moment * w).sum(1) - norm.mean * dbias)
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
        middle, norm_grads = self.norm.norm_backward(dy, wide, None, params[1], kept, True, over=True)
        assert middle is not None
        dx, conv_grads = self.conv.backward(middle, x, None, params[0], [], needs_x, needs[0])
        return dx, [conv_grads, norm_grads]


def wanted(needs: Tree | bool) -> bool:
    """Whether any gradient of a tree is needed."""
    return any(wanted(n) for n in needs) if isinstance(needs, list) else bool(needs)


def nones(tree: Tree) -> Tree:
    """A tree of the same form without tensors: the gradients of what needs none."""
    return [nones(branch) if isinstance(branch, list) else None for branch in tree]
