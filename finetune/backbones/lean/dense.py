"""A dense block in one buffer.

Layer l of a dense block reads the concatenation of all maps before it. The usual code copies that concatenation,
normalises it into a second copy and rectifies it into a third, for every layer, so that memory grows with the square of
the depth. Here

1. one channels-last buffer holds every map once: layer l reads its first c columns and writes the next k;
2. the batch statistics belong to the map, not to its reader: they are taken once, when a column is written, and shared
   by all later layers, each of which has its own weight and bias;
3. normalising and rectifying are cheap: backward does them again, from the buffer;
4. the derivative of each reader's batch norm is s * dz plus a correction P x + R per channel (P and R hold the two
   terms with M, see norms.py). The corrections of all readers of a channel add up to two numbers, which are applied
   once, when every reader has spoken and the gradient of the channel itself is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.backbones.lean.steps import Norm, Observed, Onto, Step, Tree, nones, wanted
from finetune.backbones.maps import Normalisation, as_map, as_rows, tiles
from finetune.backbones.norms import ReaderSums, Statistics, normalise, statistics


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

    def __init__(self, map: Tensor, mean: Tensor, var: Tensor):
        self.map, self.rows = map, as_rows(map)  # (N, C, H, W) and (M, C), the same memory
        self.mean, self.var = mean, var  # (C,)

    @classmethod
    def empty(cls, like: Tensor, columns: int) -> "Buffer":
        n, _, h, w = like.shape
        stats = like.new_empty(2, columns, dtype=torch.promote_types(like.dtype, torch.float32))
        return cls(as_map(like.new_empty(n * h * w, columns), like), *stats)

    def write(self, start: int, new: Tensor) -> int:
        """A map into the columns from `start` on; returns the column behind it."""
        stop = start + new.shape[1]
        rows = as_rows(new)
        statistics(rows, self.mean[start:stop], self.var[start:stop])
        self.rows[:, start:stop] = rows
        return stop

    def read_by(self, norm: Norm, params: Tree, columns: int) -> Normalisation:
        return norm.known(params, [self.mean[:columns], self.var[:columns]])


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

    def forward(self, x: Tensor, params: Tree, observed: Observed, onto: Onto | None = None) -> tuple[Tensor, Tree]:
        assert onto is None
        buffer = Buffer.empty(x, x.shape[1] + sum(layer.growth for layer in self.layers))
        columns, layers_kept = buffer.write(0, x), []
        for layer, p in zip(self.layers, params, strict=True):
            if not layer.read.frozen:
                observed[layer.read.place] = Statistics(buffer.mean[:columns], buffer.var[:columns], len(buffer.rows))
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
    norm = buffer.read_by(layer.read, params[0], columns)
    if not layer.bottleneck:
        return as_map(normalise(x, norm, x.new_empty(x.shape)), buffer.map)
    weight = params[1][0].flatten(1).to(x.dtype).t()  # (columns, q)
    y, z = x.new_empty(len(x), weight.shape[1]), x.new_empty(0)
    for rows in tiles(x):
        z = normalise(x[rows], norm, z.resize_(rows.stop - rows.start, columns))
        torch.mm(z, weight, out=y[rows])
    return as_map(y, buffer.map)


def unread(
    layer: DenseLayer, gradient: BufferGradient, columns: int, params: Tree, inner: Tensor, dinner: Tensor
) -> list[Tree]:
    """From dL/d(what `read` gave) to the gradients of its parameters; the gradient of the columns is added up."""
    x, dx = gradient.buffer.rows[:, :columns], gradient.rows[:, :columns]
    norm = gradient.buffer.read_by(layer.read, params[0], columns)
    sums, g = ReaderSums(norm, x), as_rows(dinner)
    dweights = [torch.zeros_like(weight, dtype=dx.dtype) for weight in params[1]]  # one, or none
    if layer.bottleneck:
        weight, dweight = params[1][0].flatten(1).to(x.dtype), dweights[0].flatten(1)  # (q, columns)
        z, dz = x.new_empty(0), x.new_empty(0)
        for rows in tiles(x):
            z = normalise(x[rows], norm, z.resize_(rows.stop - rows.start, columns))
            dweight += g[rows].t() @ z
            dz = torch.mm(g[rows], weight, out=dz.resize_(z.shape))
            sums.add(dz, x[rows], z, dx[rows])
    else:
        sums.add(g, x, as_rows(inner), dx)
    p, r = gradient.p[:columns], gradient.r[:columns]
    return [[*sums.finish(len(x), layer.read.frozen, p, r), *[None] * len(params[0][2:])], dweights]
