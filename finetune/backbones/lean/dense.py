"""A dense block in one buffer.

Layer l of a dense block reads the concatenation of all maps before it. The usual code copies that concatenation,
normalises it into a second copy and rectifies it into a third, for every layer, so that memory grows with the square of
the depth. Here

1. one channels-last buffer holds every map once: layer l reads its first c columns and writes the next k;
2. the batch statistics depend on the map, not on the layer that reads it: they are taken once, when a column is
   written, and shared by all later layers, each of which has its own weight and bias;
3. normalising and rectifying are cheap: backward does them again, from the buffer;
4. the derivative of each layer's batch norm is s * dz plus a correction P x + R per channel (P and R hold the two
   terms with M, see norms.py). The corrections of all layers for a channel add up to two numbers. They are applied
   once, after all later layers have added their gradient, when the gradient of the channel itself is needed.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.backbones.lean.chain import Chain, LinkSaved
from finetune.backbones.lean.steps import Leaf, Norm, NormParams, NormSaved, Observed, ResidualSum, Step
from finetune.backbones.lean.trees import any_needed, need_input_grad, tree_of_none
from finetune.backbones.maps import Normalisation, as_map, as_rows, tiles
from finetune.backbones.norms import ReaderSums, Statistics, normalise, statistics


class DenseLayerParams(NamedTuple):
    read: NormParams
    bottleneck: Leaf
    """Weight (q, c, 1, 1) of the 1x1 convolution, or None."""
    rest: tuple[Any, ...]


class DenseLayerSaved(NamedTuple):
    rest: tuple[LinkSaved, ...]
    bottleneck_output: Leaf


class DenseBlockSaved(NamedTuple):
    mean: Leaf  # of every column of the buffer, (C + layers * growth,), and so the next
    var: Leaf
    layers: tuple[DenseLayerSaved, ...]


@dataclass(frozen=True)
class DenseLayerStep:
    """Norm and ReLU (`read`), a 1x1 convolution if there is a bottleneck, and the rest, which makes new columns."""

    read: Norm
    bottleneck: bool
    rest: Chain
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
        """Write a map into the columns from `start` on; returns the number of the column after it."""
        stop = start + new.shape[1]
        rows = as_rows(new)
        statistics(rows, self.mean[start:stop], self.var[start:stop])
        self.rows[:, start:stop] = rows
        return stop

    def normalisation(self, norm: Norm, params: NormParams, columns: int) -> Normalisation:
        """What `norm` does to the first columns."""
        return norm.normalisation(params, NormSaved(self.mean[:columns], self.var[:columns]))


class BufferGradient:
    """dL/dbuffer while layers add to it: sums over the layers of s * dz, and of their corrections P x + R."""

    def __init__(self, buffer: Buffer, dy: Tensor):
        self.buffer = buffer
        self.rows = as_rows(dy).to(buffer.mean.dtype, copy=True)
        self.p, self.r = torch.zeros_like(buffer.mean), torch.zeros_like(buffer.mean)

    def columns(self, start: int, stop: int) -> Tensor:  # -> (N, stop - start, H, W)
        """The gradient of some columns, once all later layers have added to it."""
        x = self.buffer.rows[:, start:stop]
        dx = torch.addcmul(self.r[start:stop], x, self.p[start:stop]).add_(self.rows[:, start:stop])
        return as_map(dx.to(x.dtype), self.buffer.map)


@dataclass(frozen=True)
class DenseBlockStep(Step[tuple[DenseLayerParams, ...], DenseBlockSaved]):
    """x (N, C, H, W) -> (N, C + layers * growth, H, W). params: those of each layer.

    With `save_bottleneck` the outputs of the 1x1 convolutions are kept, otherwise they are computed again. Backward
    also reads the block's output: it is the buffer.
    """

    layers: tuple[DenseLayerStep, ...]
    save_bottleneck: bool

    needs_input = False
    needs_output = True

    def forward(
        self,
        x: Tensor,
        params: tuple[DenseLayerParams, ...],
        observed: Observed,
        residual: ResidualSum | None = None,
    ) -> tuple[Tensor, DenseBlockSaved]:
        assert residual is None
        buffer = Buffer.empty(x, x.shape[1] + sum(layer.growth for layer in self.layers))
        columns = buffer.write(0, x)
        layers_saved: list[DenseLayerSaved] = []
        for layer, layer_params in zip(self.layers, params, strict=True):
            if not layer.read.frozen:
                stats = Statistics(buffer.mean[:columns], buffer.var[:columns], len(buffer.rows))
                observed[layer.read.number] = stats
            inner = read(layer, buffer, columns, layer_params)
            new, rest_saved = layer.rest.forward(inner, layer_params.rest, observed)
            save_inner = layer.bottleneck and self.save_bottleneck
            layers_saved.append(DenseLayerSaved(rest_saved, inner if save_inner else None))
            columns = buffer.write(columns, new)
        return buffer.map, DenseBlockSaved(buffer.mean, buffer.var, tuple(layers_saved))

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: tuple[DenseLayerParams, ...],
        saved: DenseBlockSaved,
        needs_x: bool,
        needs: tuple[DenseLayerParams, ...],
    ) -> tuple[Tensor | None, tuple[DenseLayerParams, ...]]:
        assert y is not None
        buffer = Buffer(y, saved.mean, saved.var)
        gradient = BufferGradient(buffer, dy)
        grads = list(tree_of_none(params))
        needs_input = need_input_grad(needs_x, needs)
        columns = y.shape[1]
        for i in range(len(self.layers) - 1, -1, -1):
            if not needs_input[i + 1]:
                return None, tuple(grads)
            layer, layer_params, layer_saved, layer_needs = self.layers[i], params[i], saved.layers[i], needs[i]
            columns -= layer.growth
            dnew = gradient.columns(columns, columns + layer.growth)
            inner = layer_saved.bottleneck_output
            if inner is None:
                inner = read(layer, buffer, columns, layer_params)
            needs_inner = needs_input[i] or any_needed((layer_needs.read, layer_needs.bottleneck))
            dinner, rest_grads = layer.rest.backward(
                dnew, inner, None, layer_params.rest, layer_saved.rest, needs_inner, layer_needs.rest
            )
            grads[i] = grads[i]._replace(rest=rest_grads)
            if dinner is None:
                return None, tuple(grads)
            read_grads, bottleneck_grad = read_backward(layer, gradient, columns, layer_params, inner, dinner)
            grads[i] = DenseLayerParams(read_grads, bottleneck_grad, rest_grads)
        return (gradient.columns(0, columns) if needs_x else None), tuple(grads)


def read(layer: DenseLayerStep, buffer: Buffer, columns: int, params: DenseLayerParams) -> Tensor:
    """The first columns normalised, rectified and put through the 1x1 convolution: (M, columns) -> a map."""
    x = buffer.rows[:, :columns]
    norm = buffer.normalisation(layer.read, params.read, columns)
    if not layer.bottleneck:
        return as_map(normalise(x, norm, x.new_empty(x.shape)), buffer.map)
    weight = params.bottleneck.flatten(1).to(x.dtype).t()  # (columns, q)
    y, z = x.new_empty(len(x), weight.shape[1]), x.new_empty(0)
    for rows in tiles(x):
        z = normalise(x[rows], norm, z.resize_(rows.stop - rows.start, columns))
        torch.mm(z, weight, out=y[rows])
    return as_map(y, buffer.map)


def read_backward(
    layer: DenseLayerStep,
    gradient: BufferGradient,
    columns: int,
    params: DenseLayerParams,
    inner: Tensor,
    dinner: Tensor,
) -> tuple[NormParams, Tensor | None]:
    """From dL/d(output of `read`) to the gradients of norm and 1x1 weight; adds to the gradient of the columns."""
    x, dx = gradient.buffer.rows[:, :columns], gradient.rows[:, :columns]
    norm = gradient.buffer.normalisation(layer.read, params.read, columns)
    sums, g = ReaderSums(norm, x), as_rows(dinner)
    bottleneck_grad: Tensor | None = None
    if layer.bottleneck:
        bottleneck_grad = torch.zeros_like(params.bottleneck, dtype=dx.dtype)
        weight, dweight = params.bottleneck.flatten(1).to(x.dtype), bottleneck_grad.flatten(1)  # (q, columns)
        z, dz = x.new_empty(0), x.new_empty(0)
        for rows in tiles(x):
            z = normalise(x[rows], norm, z.resize_(rows.stop - rows.start, columns))
            dweight += g[rows].t() @ z
            dz = torch.mm(g[rows], weight, out=dz.resize_(z.shape))
            sums.add(dz, x[rows], z, dx[rows])
    else:
        sums.add(g, x, as_rows(inner), dx)
    p, r = gradient.p[:columns], gradient.r[:columns]
    return NormParams(*sums.finish(len(x), layer.read.frozen, p, r)), bottleneck_grad
