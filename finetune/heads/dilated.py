"""Convolutions whose dilation exceeds the map, as in ASPP on small images: most of their taps read nothing but padding.

At stride 8, DeepLabv3's dilations of 12, 24 and 36 pixels meet a map of 20 where the image has 160: of the second
and third 3x3 convolution only the middle tap reaches a pixel. It alone is computed, which changes no result.
"""

from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[int, int]


class DilatedConv2d(nn.Conv2d):
    """A convolution of stride 1 and odd kernel, padded to keep the size, without the taps that reach no pixel."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, dilation: int, bias: bool = True):
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, out_channels, H, W)
        rows, columns = taps(self.kernel_size, self.dilation, x.shape)
        return F.conv2d(x, self.weight[:, :, rows, columns], self.bias, 1, *surroundings(rows, columns, self.dilation))


def taps(kernel_size: tuple[int, ...], dilation: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of a kernel, which keeps the size of maps (N, C, H, W), that reach a pixel."""
    rows, columns = (
        slice(size // 2 - reach, size // 2 + reach + 1)
        for size, reach in (
            (size, min(size // 2, (pixels - 1) // step))
            for size, step, pixels in zip(kernel_size, dilation, shape[-2:], strict=True)
        )
    )
    return rows, columns


def surroundings(rows: slice, columns: slice, dilation: tuple[int, ...]) -> tuple[Pair, Pair]:
    """Padding and dilation of a convolution with these taps only."""
    sizes = [chosen.stop - chosen.start for chosen in (rows, columns)]
    padding = [step * (size // 2) for size, step in zip(sizes, dilation, strict=True)]
    steps = [step if size > 1 else 1 for size, step in zip(sizes, dilation, strict=True)]
    return (padding[0], padding[1]), (steps[0], steps[1])
