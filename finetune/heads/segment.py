"""Heads that give logits for each pixel: what they share, and the two that read the last map.

Papers: "Fully Convolutional Networks for Semantic Segmentation" (Long et al., 2015, arXiv:1411.4038); "Rethinking
Atrous Convolution for Semantic Image Segmentation" (Chen et al., 2017, arXiv:1706.05587). Both heads are torchvision's,
module by module: its `classifier.*` is `layers.*` here. `decoders` has the heads that read all maps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.errors import FinetuneError
from finetune.heads.dilated import DilatedConv2d
from finetune.heads.features import FeatureInfo, RowRunner, at_least

Size = tuple[int, int]
"""Height and width in pixels."""


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    dilation: int = 1,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
) -> list[nn.Module]:
    """The modules of (N, in_channels, H, W) -> (N, out_channels, H, W)."""
    conv: nn.Conv2d
    if dilation > 1:
        conv = DilatedConv2d(in_channels, out_channels, kernel_size, dilation=dilation, bias=False)
    else:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return [conv, norm(out_channels), nn.ReLU()]


def resize(x: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """(N, C, H, W) -> (N, C, *size), by places that share their borders, not the centres of corner pixels."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)


def check_dropout(value: float) -> None:
    if isinstance(value, bool) or not 0 <= value < 1:
        raise FinetuneError(f"head.dropout={value} must be at least 0 and below 1.")


class SegmentHead(RowRunner):
    """Maps, the finest first -> logits (N, K, H, W) of images (N, C, H, W).

    A subclass has `decode`, and `classifier`, a 1x1 convolution to K channels of what that gives. The logits are
    enlarged to the size of the images. Where nobody says the size, it is that of the finest map times its stride,
    which is right for sides that are multiples of it.
    """

    takes = "maps"
    gives = "regions"
    classifier: nn.Module

    def __init__(self, features: Sequence[FeatureInfo]):
        super().__init__()
        self.finest = features[0].reduction

    def decode(self, maps: list[Tensor], size: Size) -> Tensor:
        """What the classifier reads, (N, D, h, w), of images of that size."""
        raise NotImplementedError

    def forward(self, maps: list[Tensor], size: Size | None = None) -> Tensor:
        size = self.size_of(maps) if size is None else size
        return resize(self.classifier(self.decode(maps, size)), size)

    def features(self, maps: list[Tensor], size: Size | None = None) -> Tensor:
        """The mean over all places of what the classifier reads, (N, D)."""
        return self.decode(maps, self.size_of(maps) if size is None else size).mean((2, 3))

    def size_of(self, maps: list[Tensor]) -> Size:
        height, width = maps[0].shape[-2:]
        return height * self.finest, width * self.finest


class FCN(SegmentHead):
    """The last map through a 3x3 convolution and the classifier.

    Args:
        features: one entry for each map; the last is read.
        num_classes: number of regions K.
        channels: of the 3x3 convolution; None is a quarter of the map's.
        dropout: share of channel values set to zero before the classifier.
    """

    def __init__(
        self, features: Sequence[FeatureInfo], num_classes: int, *, channels: int | None = None, dropout: float = 0.1
    ):
        super().__init__(features)
        read = features[-1].num_chs
        channels = max(1, read // 4) if channels is None else channels
        at_least(1, "head.channels", channels)
        check_dropout(dropout)
        block = conv_norm_relu(read, channels)
        self.layers = nn.Sequential(*block, nn.Dropout(dropout), nn.Conv2d(channels, num_classes, 1))

    def decode(self, maps: list[Tensor], size: Size) -> Tensor:
        *block, dropout, _ = self.layers
        return dropout(self.run(block, maps[-1]))

    @property
    def classifier(self) -> nn.Module:  # type: ignore[override]
        return self.layers[-1]


class DeepLabV3(SegmentHead):
    """The last map through convolutions of several dilations beside each other (ASPP), a 3x3, and the classifier.

    Args:
        features: one entry for each map; the last is read, whose stride must be 16 or less.
        num_classes: number of regions K.
        channels: of every convolution but the classifier.
        rates: dilations of the 3x3 convolutions of ASPP. None is the paper's: 6, 12, 18 for a map of stride 16, twice
            as much for one of stride 8.
        dropout: share of values set to zero after ASPP.

    Raises:
        FinetuneError: a map that is too coarse; an option out of its bounds.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_classes: int,
        *,
        channels: int = 256,
        rates: Sequence[int] | None = None,
        dropout: float = 0.5,
    ):
        super().__init__(features)
        read, stride = features[-1]
        if stride > 16:
            raise FinetuneError(
                f"head=deeplabv3 reads a last map of stride 16 or less; here it is {stride}. Set "
                "backbone.output_stride=16, or 8 for finer borders and more memory."
            )
        rates = [step * 16 // stride for step in (6, 12, 18)] if rates is None else list(rates)
        at_least(1, "head.channels", channels)
        for rate in rates:
            at_least(1, "head.rates", rate)
        check_dropout(dropout)
        self.layers = nn.Sequential(
            ASPP(read, channels, rates, dropout),
            *conv_norm_relu(channels, channels),
            nn.Conv2d(channels, num_classes, 1),
        )

    def decode(self, maps: list[Tensor], size: Size) -> Tensor:
        aspp, *block, _ = self.layers
        return self.run(block, aspp(maps[-1], self.run))

    @property
    def classifier(self) -> nn.Module:  # type: ignore[override]
        return self.layers[-1]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, 3x3 convolutions of several dilations and the mean of the map,
    beside each other, and a 1x1 convolution of all of them."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int], dropout: float):
        super().__init__()
        self.convs = nn.ModuleList([nn.Sequential(*conv_norm_relu(in_channels, channels, 1))])
        for rate in rates:
            self.convs.append(nn.Sequential(*conv_norm_relu(in_channels, channels, dilation=rate)))
        self.convs.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(in_channels, channels, 1)))
        self.project = nn.Sequential(*conv_norm_relu(len(self.convs) * channels, channels, 1), nn.Dropout(dropout))

    def forward(self, x: Tensor, run: Callable[..., Tensor]) -> Tensor:  # (N, C, H, W) -> (N, channels, H, W)
        *branches, pooled = self.convs
        if len(x) == 1 and any(module.training for module in pooled.children() if isinstance(module, nn.BatchNorm2d)):
            raise FinetuneError(
                "head=deeplabv3 learns from two images or more at a time: it normalises the mean of each map over the "
                "batch, and this batch has one. Raise data.batch_size."
            )
        maps = [run(branch.children(), x) for branch in branches]
        maps.append(torch.empty_like(maps[0]).copy_(pooled(x)))  # in their memory format, so that `cat` keeps it
        *block, dropout = self.project
        return dropout(run(block, torch.cat(maps, dim=1)))
