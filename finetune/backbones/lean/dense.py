"""A dense block in one buffer.

Layer l of a dense block reads the concatenation of all maps before it. The usual code copies that concatenation,
normalises it into a second copy and rectifies it into a third, for every layer, so that memory grows with the square of
the depth. Here

1. one channels-last buffer holds every map once: layer l reads its first c columns and writes the next k;
2. the batch statistics belong to the map, not to its reader: they are taken once, when a column is written, and shared
   by all later layers, each of which has its own weight and bias;
3. normalising and rectifying are cheap: backward does them again, from the buffer;
4. the derivative of each reader's batch norm is s * dz plus a correction P x + R per channel (P and R hold the two
   terms with M, see steps.py). The corrections of all readers of a channel add up to two numbers, which are applied
   once, when every reader has spoken and the gradient of the channel itself is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.backbones.lean.steps import Norm, Observed, Step, Tree, aten, nones, wanted
from finetune.backbones.maps import Statistics, as_map, as_rows, normalise_rectify, statistics, tiles


@dataclass(frozen=True)
class DenseLayer:
    """Norm and ReLU (`read`), a 1x1 convolution if there is a bottleneck, and the rest, which ends in new columns.

    params: the norm's tree, [weight of the 1x1 convolution] or [], the tree of the rest.
    """

    read: Norm
    bottleneck: bool
    rest: Step
    growth: int


class Buffer:
    """All maps of a block as the columns of one matrix, and mean and variance of each column."""

    def __init__(self, map: Tensor, mean: Tensor, var: Tensor, unbiased: Tensor | None = None):
        self.map, self.rows = map, as_rows(map)  # (N, C, H, W) and (M, C), the same memory
        self.mean, self.var, self.unbiased = mean, var, unbiased

    @classmethod
    def empty(cls, like: Tensor, columns: int) -> "Buffer":
        n, _, h, w = like.shape
        stats = like.new_empty(3, columns, dtype=torch.promote_types(like.dtype, torch.float32))
        return cls(as_map(like.new_empty(n * h * w, columns), like), *stats)

    def write(self, start: int, new: Tensor) -> int:
        """A map into the columns from `start` on; returns the column behind it."""
        stop = start + new.shape[1]
        stats = statistics(new)
        self.rows[:, start:stop] = as_rows(new)
        self.mean[start:stop], self.var[start:stop] = stats.mean, stats.var
        if self.unbiased is not None:
            self.unbiased[start:stop] = stats.unbiased
        return stop

    def first(self, columns: int) -> Statistics:
        assert self.unbiased is not None
        return Statistics(self.mean[:columns], self.var[:columns], self.unbiased[:columns])

    def affine(self, norm: Norm, params: Tree, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """How `norm` reads the first columns: mean, rstd, and the scale and shift that they make with its weights."""
        mean, var = params[2:] if norm.frozen else (self.mean[:columns], self.var[:columns])
        rstd = torch.rsqrt(var + norm.eps)
        scale = params[0] * rstd
        return mean, rstd, scale, torch.addcmul(params[1], mean, scale, value=-1)


class BufferGradient:
    """dL/dbuffer while readers add to it: sums over readers of s * dz, and of their corrections P x + R."""

    def __init__(self, buffer: Buffer, dy: Tensor):
        self.buffer = buffer
        self.rows = as_rows(dy).to(buffer.mean.dtype, copy=True)
        self.p, self.r = torch.zeros_like(buffer.mean), torch.zeros_like(buffer.mean)

    def of(self, start: int, stop: int) -> Tensor:  # -> (N, stop - start, H, W)
        """The gradient of columns that every reader has spoken about."""
        x = self.buffer.rows[:, start:stop]
        dx = torch.addcmul(self.r[start:stop], x, self.p[start:stop]).add_(self.rows[:, start:stop])
        return as_map(dx.to(x.dtype), self.buffer.map)


@dataclass(frozen=True)
class DenseBlock(Step):
    """x (N, C, H, W) -> (N, C + layers * growth, H, W). params: one tree per layer.

    Kept: mean and variance of each column, what each layer's rest keeps, and with `keep_bottleneck` the outputs of the
    1x1 convolutions, which else are computed again. Besides, backward reads the block's output: it is the buffer.
    """

    layers: tuple[DenseLayer, ...]
    keep_bottleneck: bool

    needs_input = False
    needs_output = True

    def forward(self, x: Tensor, params: Tree, observed: Observed) -> tuple[Tensor, Tree]:
        buffer = Buffer.empty(x, x.shape[1] + sum(layer.growth for layer in self.layers))
        columns, layers_kept = buffer.write(0, x), []
        for layer, p in zip(self.layers, params, strict=True):
            if not layer.read.frozen:
                observed[layer.read.place] = buffer.first(columns)
            inner = read(layer, buffer, columns, p)
            new, kept = layer.rest.forward(inner, p[2], observed)
            layers_kept.append([kept, inner if layer.bottleneck and self.keep_bottleneck else None])
            columns = buffer.write(columns, new)
        return buffer.map, [buffer.mean, buffer.var, layers_kept]

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        assert y is not None
        buffer = Buffer(y, kept[0], kept[1])
        gradient = BufferGradient(buffer, dy)
        grads = nones(params)
        columns = y.shape[1]
        for i in range(len(self.layers) - 1, -1, -1):
            if not needs_x and not wanted(needs[: i + 1]):
                return None, grads
            layer, p, (rest_kept, inner) = self.layers[i], params[i], kept[2][i]
            columns -= layer.growth
            dnew = gradient.of(columns, columns + layer.growth)
            if inner is None:
                inner = read(layer, buffer, columns, p)
            deeper = needs_x or wanted(needs[:i]) or wanted(needs[i][:2])
            dinner, grads[i][2] = layer.rest.backward(dnew, inner, None, p[2], rest_kept, deeper, needs[i][2])
            if dinner is None:
                return None, grads
            grads[i][:2] = unread(layer, gradient, columns, p, inner, dinner)
        return (gradient.of(0, columns) if needs_x else None), grads


def read(layer: DenseLayer, buffer: Buffer, columns: int, params: Tree) -> Tensor:
    """The first columns normalised and rectified, and through the 1x1 convolution: (M, columns) -> a map."""
    x = buffer.rows[:, :columns]
    _, _, scale, shift = buffer.affine(layer.read, params[0], columns)
    if not layer.bottleneck:
        z = torch.empty_like(x, memory_format=torch.contiguous_format)
        return as_map(normalise_rectify(x, scale, shift, z), buffer.map)
    weight = params[1][0].flatten(1).to(x.dtype).t()  # (columns, q)
    y = x.new_empty(len(x), weight.shape[1])
    z = x.new_empty(0)
    for rows in tiles(x):
        z = torch.addcmul(shift, x[rows], scale, out=z.resize_(rows.stop - rows.start, columns)).relu_()
        torch.mm(z, weight, out=y[rows])
    return as_map(y, buffer.map)


def unread(
    layer: DenseLayer, gradient: BufferGradient, columns: int, params: Tree, inner: Tensor, dinner: Tensor
) -> list[Tree]:
    """From dL/d(what `read` gave) to the gradients of its parameters; the gradient of the columns is added up."""
    x, dx = gradient.buffer.rows[:, :columns], gradient.rows[:, :columns]
    mean, rstd, scale, shift = gradient.buffer.affine(layer.read, params[0], columns)
    dbias, dot = torch.zeros_like(scale), torch.zeros_like(scale)
    g, z, dz = as_rows(dinner), x.new_empty(0), x.new_empty(0)
    dweights = [torch.zeros_like(weight, dtype=scale.dtype) for weight in params[1]]  # one, or none
    for rows in tiles(x):
        if layer.bottleneck:
            z = torch.addcmul(shift, x[rows], scale, out=z.resize_(x[rows].shape)).relu_()
            dweights[0].flatten(1).add_(g[rows].t() @ z)
            dz = torch.mm(g[rows], params[1][0].flatten(1).to(x.dtype), out=dz.resize_(z.shape))
        else:
            z, dz = as_rows(inner)[rows], g[rows]
        aten.threshold_backward.grad_input(dz, z, 0, grad_input=dz)
        dbias += dz.sum(0, dtype=scale.dtype)
        dot += (x[rows] - mean).mul_(dz).sum(0)
        dx[rows].addcmul_(dz, scale)
    dscale = rstd * dot
    if not layer.read.frozen:
        p = -scale * rstd * dscale / len(x)
        gradient.p[:columns] += p
        gradient.r[:columns] -= torch.addcmul(scale * dbias / len(x), p, mean)
    return [[dscale, dbias, *[None] * len(params[0][2:])], dweights]
