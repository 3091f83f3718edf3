"""What boxes cover of the maps of a pyramid (RoIAlign, He et al., 2017, arXiv:1703.06870), and a linear layer of it.

A value of RoIAlign is a weighted sum of pixels. torchvision's kernel for a CPU reads one number at a time, in one
thread, from maps that it first copies channels first. Here a CPU adds up rows of channels with `embedding_bag`, and
goes back with the same operator, its sums sorted by pixel. Elsewhere torchvision's operator is used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torchvision.ops import roi_align

BINS = 7
"""Places along each side of a box."""
SAMPLES = 2
"""Points along each side of a place, whose mean is its value."""
PART = 512
"""Boxes that a CPU pools together: 25 MiB for 256 channels, which an allocator does not give back each time."""


def full(x: Tensor) -> Tensor:
    """In 32 bits, or 64 where it has them: 16 bits place a box of 300 px to the nearest pixel or two."""
    return x if x.dtype == torch.float64 else x.float()


class Places(NamedTuple):
    """K boxes, and what each of them is pooled from."""

    boxes: Tensor
    """(K, 4) left, top, right, bottom in pixels of the images."""
    images: Tensor
    """(K,) int64, number of the image."""
    levels: Tensor
    """(K,) int64, number of the map."""

    def parts(self) -> Iterator["Places"]:
        """At most PART of them together on a CPU, elsewhere all."""
        size = PART if sums_rows(self.boxes) else max(1, len(self.boxes))
        return (Places(*part) for part in zip(*(values.split(size) for values in self), strict=True))


class Grid(NamedTuple):
    """The maps as places see them."""

    shapes: tuple[torch.Size, ...]
    """(N, C, H, W) of each."""
    scales: tuple[float, ...]
    """Side of each over that of the images."""


@dataclass(frozen=True)
class Regions:
    """Boxes with the maps from which they are to be pooled."""

    maps: Sequence[Tensor]
    places: Places
    scales: Sequence[float]

    def pooled(self) -> Tensor:
        """(K, C, 7, 7), of all boxes at once."""
        return pool(sources_of(self.maps), self.places, self.grid())

    def linear(self, weight: Tensor, bias: Tensor, *, recompute: bool) -> Tensor:
        """A linear layer (D, C * 49), (D,) of what the boxes cover: (K, D).

        `recompute`: backward pools again, which keeps 49 C numbers per box less. Without gradients nothing is kept.
        """
        if torch.is_grad_enabled() and not recompute:
            return F.linear(self.pooled().flatten(1).to(weight.dtype), weight, bias)
        y: Tensor = LinearOfRegions.apply(self.grid(), *self.places, weight, bias, *self.maps)
        return y

    def grid(self) -> Grid:
        return Grid(tuple(m.shape for m in self.maps), tuple(self.scales))


def sums_rows(x: Tensor) -> bool:
    """Whether rows of channels are added up; else torchvision's operator is used."""
    return x.device.type == "cpu"


def sources_of(maps: Sequence[Tensor]) -> list[Tensor]:
    """What `pool` reads: on a CPU a matrix of the pixels of all maps by channels, elsewhere the maps."""
    maps = [full(m) for m in maps]
    if not sums_rows(maps[0]):
        return maps
    return [torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps])]


def pool(sources: Sequence[Tensor], places: Places, grid: Grid) -> Tensor:
    """(K, C, 7, 7) of places of maps with these sources."""
    first = sources[0]
    if sums_rows(first):
        rows: Tensor = WeightedSums.apply(first, grid, *places)
        return rows.view(-1, BINS, BINS, rows.shape[1]).permute(0, 3, 1, 2)
    rois = torch.cat([places.images[:, None].to(places.boxes.dtype), places.boxes], dim=1).to(first.dtype)
    result = first.new_zeros(len(rois), first.shape[1], BINS, BINS)
    for level, (source, scale) in enumerate(zip(sources, grid.scales, strict=True)):
        chosen = (places.levels == level).nonzero()[:, 0]
        result[chosen] = roi_align(source, rois[chosen], BINS, scale, SAMPLES)
    return result


def pixels(places: Places, grid: Grid) -> tuple[Tensor, Tensor]:
    """Rows of the matrix of all pixels that are added up for each value, (K * 49, 16), and their weights."""
    sizes = torch.tensor([[n * h * w, h, w] for n, _, h, w in grid.shapes])
    first = (sizes[:, 0].cumsum(0) - sizes[:, 0])[places.levels]
    _, height, width = sizes[places.levels].unbind(1)
    left, top, right, bottom = (places.boxes * places.boxes.new_tensor(grid.scales)[places.levels, None]).unbind(1)
    columns, of_columns = along(left, (right - left).clamp(min=1), width)
    rows, of_rows = along(top, (bottom - top).clamp(min=1), height)
    rows = (first + places.images * height * width)[:, None, None] + rows * width[:, None, None]
    index = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # (K, 7, 7, 4, 4)
    weight = of_rows[:, :, None, :, None] * of_columns[:, None, :, None, :]
    points = (2 * SAMPLES) ** 2
    return index.view(-1, points), weight.view(-1, points)


def along(start: Tensor, side: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels read along one side of each box, (K, 7, 4), and their weights: two for each sample.

    Args:
        start: (K,) where the box begins on its map.
        side: (K,) how long it is there.
        size: (K,) int64, pixels of the map.
    """
    place, number = (side / BINS)[:, None, None], torch.arange(BINS, dtype=start.dtype)[:, None]
    sample = torch.arange(SAMPLES, dtype=start.dtype) + 0.5
    at = start[:, None, None] + number * place + sample * place / SAMPLES  # (K, 7, 2), in torchvision's order
    size = size[:, None, None]
    inside = ((at >= -1) & (at <= size)).to(at.dtype) / SAMPLES
    at = at.clamp(min=0)
    low = at.long().minimum(size - 1)
    share = torch.where(low < size - 1, at - low, 0)
    weight = torch.stack([1 - share, share], dim=-1) * inside[..., None]
    return torch.stack([low, (low + 1).minimum(size - 1)], dim=-1).flatten(2), weight.flatten(2)


class WeightedSums(torch.autograd.Function):
    """The matrix of all pixels (T, C) -> (K * 49, C). Only the boxes are saved."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, grid: Grid, *places: Tensor) -> Tensor:
        ctx.save_for_backward(*places)
        ctx.grid, ctx.rows = grid, len(source)
        index, weight = pixels(Places(*places), grid)
        return F.embedding_bag(index, source, per_sample_weights=weight.to(source.dtype), mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        index, weight = pixels(Places(*ctx.saved_tensors), ctx.grid)
        points = index.shape[1]
        index, order = index.flatten().sort(stable=True)
        first = torch.searchsorted(index, torch.arange(ctx.rows))
        weight = weight.flatten()[order].to(dy.dtype)
        dx = F.embedding_bag(order // points, dy.contiguous(), first, per_sample_weights=weight, mode="sum")
        return dx, None, None, None, None


class LinearOfRegions(torch.autograd.Function):
    """`Regions.linear` as one function, which saves maps and boxes."""

    @staticmethod
    def forward(
        ctx: Any, grid: Grid, boxes: Tensor, images: Tensor, levels: Tensor, weight: Tensor, bias: Tensor, *maps: Tensor
    ) -> Tensor:
        ctx.save_for_backward(boxes, images, levels, weight, *maps)
        ctx.grid = grid
        sources = sources_of(maps)
        parts = Places(boxes, images, levels).parts()
        y = [F.linear(pool(sources, part, grid).flatten(1).to(weight.dtype), weight, bias) for part in parts]
        return torch.cat(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        boxes, images, levels, weight, *maps = ctx.saved_tensors
        _, _, _, _, needs_weight, needs_bias, *needs_maps = ctx.needs_input_grad
        with torch.enable_grad():
            leaves = [m.detach().requires_grad_() for m in maps]
            wide = sources_of(leaves)
        sources = [source.detach().requires_grad_() for source in wide]
        dsources = [torch.zeros_like(source) for source in sources]
        dweight = torch.zeros_like(weight, dtype=dy.dtype) if needs_weight else None
        places = list(Places(boxes, images, levels).parts())
        for part, g in zip(places, dy.split([len(part.boxes) for part in places]), strict=True):
            with torch.enable_grad():
                x = pool(sources, part, ctx.grid)
            if dweight is not None:
                dweight.addmm_(g.t(), x.detach().flatten(1).to(g.dtype))
            if any(needs_maps):
                dx = (g @ weight.to(g.dtype)).view(x.shape).to(x.dtype)
                for total, term in zip(dsources, torch.autograd.grad(x, sources, dx), strict=True):
                    total += term
        dmaps: tuple[Tensor | None, ...] = (None,) * len(maps)
        if any(needs_maps):
            dmaps = torch.autograd.grad(wide, leaves, dsources)
        dweight = None if dweight is None else dweight.to(weight.dtype)
        dbias = dy.sum(0).to(weight.dtype) if needs_bias else None
        return None, None, None, None, dweight, dbias, *dmaps
