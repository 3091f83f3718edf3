"""What the stages of all residual networks have in common: strides, dilation, drop path rates, rows of blocks."""

from collections.abc import Callable, Iterator, Sequence

from torch import nn


def stage_strides(count: int, output_stride: int, stem_stride: int = 4) -> Iterator[tuple[int, int, int, int]]:
    """(stride, dilation, dilation of the stage before, total stride) of each stage.

    Once the map is `output_stride` times smaller than the image, dilation takes the place of stride, so that each
    convolution sees the pixels it would have seen. A stage's first one still has the dilation of the stage before.
    """
    total, dilation = stem_stride, 1
    for number in range(count):
        stride, before = (1 if number == 0 else 2), dilation
        if total >= output_stride:
            stride, dilation = 1, dilation * stride
        total *= stride
        yield stride, dilation, before, total


def drop_path_rates(drop_path: float, count: int) -> list[float]:
    """Grows in a line from 0 at the first block to `drop_path` at the last (arXiv:1603.09382)."""
    return [drop_path * index / (count - 1) for index in range(count)]


def residual_stages(
    block: Callable[..., nn.Module],
    layers: Sequence[int],
    widths: Sequence[int],
    channels: int,
    rates: Sequence[float],
    *,
    output_stride: int = 32,
    stem_stride: int = 4,
) -> Iterator[tuple[list[nn.Module], int, int]]:
    """(blocks, channels of their output, total stride) of each stage; `layers` says how many blocks.

    A block takes channels, width, stride, and dilation, first_dilation, drop_path by name; it knows its `out_channels`.
    """
    remaining = iter(rates)
    strides = stage_strides(len(layers), output_stride, stem_stride)
    for depth, width, (stride, dilation, before, total) in zip(layers, widths, strides, strict=True):
        blocks: list[nn.Module] = []
        for index in range(depth):
            blocks.append(
                block(
                    channels,
                    width,
                    stride if index == 0 else 1,
                    dilation=dilation,
                    first_dilation=before if index == 0 else dilation,
                    drop_path=next(remaining),
                )
            )
            channels = blocks[-1].out_channels  # type: ignore[assignment]
        yield blocks, channels, total
