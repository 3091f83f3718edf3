"""Heads that give logits for each pixel from the maps of all scales.

Papers: "Panoptic Feature Pyramid Networks" (Kirillov et al., 2019, arXiv:1901.02446), of which this is the semantic
branch; "U-Net" (Ronneberger et al., 2015, arXiv:1505.04597).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.heads.features import FeatureInfo, at_least
from finetune.heads.segment import SegmentHead, Size, conv_norm_relu, resize


class SemanticFPN(SegmentHead):
    """The maps of a pyramid, each enlarged to the finest one's size, added up.

    A map goes through as many steps as its stride is halved until it is the finest one's, the finest through one
    without enlarging: 3x3 convolution, group norm of 32 groups, ReLU, and twice the size.

    Args:
        features: one entry for each map.
        num_classes: number of regions K.
        channels: of the convolutions.
    """

    def __init__(self, features: Sequence[FeatureInfo], num_classes: int, *, channels: int = 128):
        super().__init__(features)
        at_least(1, "head.channels", channels)
        self.doublings = [math.ceil(math.log2(info.reduction / self.finest)) for info in features]
        self.branches = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(*conv_norm_relu(info.num_chs if step == 0 else channels, channels, norm=group_norm))
                for step in range(max(1, doublings))
            )
            for info, doublings in zip(features, self.doublings, strict=True)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def decode(self, maps: list[Tensor], size: Size) -> Tensor:  # -> (N, channels, H, W) of the finest map
        total: Tensor | None = None
        for branch, doublings, x in zip(self.branches, self.doublings, maps, strict=True):
            for step, row in enumerate(branch.children(), start=1):
                x = resize(self.run(row.children(), x), divided(maps[0].shape[-2:], 2 ** max(0, doublings - step)))
            total = x if total is None else total + x
        assert total is not None
        return total


class UNet(SegmentHead):
    """From the coarsest map to the images' size: enlarge, put the next finer map beside, two 3x3 convolutions.

    Convolutions read the nearest values where the paper has transposed convolutions, which leave a checkerboard
    (Odena et al., 2016), and have batch norms, as the backbone has. The maps of ImageNet forms begin at stride 4: at
    strides 2 and 1 there is no map to put beside.

    Args:
        features: one entry for each map.
        num_classes: number of regions K.
        channels: of the convolutions at the images' size; twice as many at each stride of twice the size, up to 16
            times.
    """

    def __init__(self, features: Sequence[FeatureInfo], num_classes: int, *, channels: int = 16):
        super().__init__(features)
        at_least(1, "head.channels", channels)
        *skips, last = features
        levels = [(info.reduction, info.num_chs) for info in reversed(skips)]
        stride = self.finest // 2
        while stride:
            levels.append((stride, 0))
            stride //= 2
        self.strides = [stride for stride, _ in levels]
        self.blocks = nn.ModuleList()
        read = last.num_chs
        for stride, beside in levels:
            width = channels * min(16, stride)
            self.blocks.append(nn.Sequential(*conv_norm_relu(read + beside, width), *conv_norm_relu(width, width)))
            read = width
        self.classifier = nn.Conv2d(read, num_classes, 1)

    def decode(self, maps: list[Tensor], size: Size) -> Tensor:  # -> (N, channels, *size)
        *skips, x = maps
        for stride, block in zip(self.strides, self.blocks, strict=True):
            skip = skips.pop() if skips else None
            if skip is None:
                x = resize(x, divided(size, stride), "nearest")
            else:
                x = torch.cat([resize(x, (skip.shape[-2], skip.shape[-1]), "nearest"), skip], dim=1)
            x = self.run(block.children(), x)
        return x


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def divided(size: Sequence[int], stride: int) -> Size:
    """Size of a map of that stride."""
    height, width = size
    return -(-height // stride), -(-width // stride)
