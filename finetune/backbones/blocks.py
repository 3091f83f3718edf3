"""The blocks of ResNets and the small layers they are made of. Submodules carry timm's names.

Papers: ResNet (He et al., 2015, arXiv:1512.03385), ResNeXt (Xie et al., 2016, arXiv:1611.05431), Wide ResNet
(Zagoruyko and Komodakis, 2016, arXiv:1605.07146), squeeze and excitation (Hu et al., 2017, arXiv:1709.01507),
average-down shortcuts (He et al., 2018, arXiv:1812.01187), drop path (Huang et al., 2016, arXiv:1603.09382).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.backbones.structure import Branches, Recomputable, ResidualBlock

Shortcut = Callable[[int, int, int, int], nn.Module]  # (in_channels, out_channels, stride, dilation)
Attention = Callable[[int], nn.Module]


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, *, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups, bias=False
    )


class DropPath(nn.Module):
    """Drops a residual branch at random, for each image separately, and scales the rest up to keep the mean."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep)
        return x * (mask.div_(keep) if keep > 0 else mask)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def drop_path_or_not(rate: float) -> nn.Module:
    return DropPath(rate) if rate > 0 else nn.Identity()


class SqueezeExcite(Recomputable):
    """Multiplies each channel by a gate computed from all of them: mean, C -> C / 16 -> C, sigmoid."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = max(8, int(channels / 16 + 4) // 8 * 8)  # a multiple of 8, as in timm; the paper has C / 16
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        gate = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        return x * self.fc2(self.act(self.fc1(gate))).sigmoid()


class BlurPool(Recomputable):
    """Binomial 3x3 blur, then every second pixel, so that a shifted image gives a shifted map (arXiv:1904.11486)."""

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        filt = (row[:, None] * row[None, :]).repeat(channels, 1, 1, 1)  # (C, 1, 3, 3)
        self.register_buffer("filt", filt, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H / 2, W / 2)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class SamePool(Recomputable):
    """2x2 average at stride 1 that keeps the map's size: pads zeros right and below, and counts them."""

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)


def average_pool(stride: int, dilation: int) -> nn.Module:
    """The pooling of an average-down shortcut; where dilation replaces the stride, the map keeps its size."""
    if stride == 1:
        return nn.Identity() if dilation == 1 else SamePool()
    return nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)


def conv_shortcut(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Module:
    """The projection of the ResNet paper (option B): strided 1x1 and norm."""
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def average_shortcut(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Module:
    """The projection of ResNet-D: average first, so that no pixel is skipped."""
    return nn.Sequential(
        average_pool(stride, dilation), conv1x1(in_channels, out_channels), nn.BatchNorm2d(out_channels)
    )


def projection(shortcut: Shortcut, in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Module:
    """The shortcut of a block: the identity where the shape stays, else what `shortcut` makes.

    Blocks create it before their other layers, as timm does, so that the same seed gives the same initial weights.
    """
    same = stride == 1 and in_channels == out_channels
    return nn.Identity() if same else shortcut(in_channels, out_channels, stride, dilation)


class BasicBlock(ResidualBlock):
    """Residual block 3x3, 3x3: ResNet-18, ResNet-34 and the CIFAR forms."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        first_dilation: int = 1,
        shortcut: Shortcut = conv_shortcut,
        attention: Attention = lambda channels: nn.Identity(),
        drop_path: float = 0.0,
    ):
        super().__init__()
        downsample = projection(shortcut, in_channels, channels, stride, dilation)
        self.out_channels = channels
        self.conv1 = conv3x3(in_channels, channels, stride, dilation=first_dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = attention(channels)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = drop_path_or_not(drop_path)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def branches(self) -> Branches:  # (N, C, H, W) -> (N, channels, H / stride, W / stride)
        first = [self.conv1, self.bn1, self.act1]
        last = [self.conv2, self.bn2, self.se, self.drop_path]
        return Branches([*first, *last], [self.downsample], end=self.act2)


class Bottleneck(ResidualBlock):
    """Residual block 1x1, 3x3, 1x1. `groups` makes it ResNeXt, `base_width` makes it wide.

    The stride sits on the 3x3 convolution, as in the timm and torchvision weights; He et al. (2015) put it on the
    first 1x1.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        first_dilation: int = 1,
        groups: int = 1,
        base_width: int = 64,
        shortcut: Shortcut = conv_shortcut,
        attention: Attention = lambda channels: nn.Identity(),
        drop_path: float = 0.0,
    ):
        super().__init__()
        width = channels * base_width // 64 * groups
        self.out_channels = out_channels = channels * 4
        downsample = projection(shortcut, in_channels, out_channels, stride, dilation)
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, stride, dilation=first_dilation, groups=groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.se = attention(out_channels)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = drop_path_or_not(drop_path)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)

    def branches(self) -> Branches:  # (N, C, H, W) -> (N, 4 * channels, H / stride, W / stride)
        first = [self.conv1, self.bn1, self.act1]
        second = [self.conv2, self.bn2, self.act2]
        last = [self.conv3, self.bn3, self.se, self.drop_path]
        return Branches([*first, *second, *last], [self.downsample], end=self.act3)
