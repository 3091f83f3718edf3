"""ResNets of the ImageNet form: plain, deep stem (D), ResNeXt, wide, squeeze and excitation.

Papers: ResNet (He et al., 2015, arXiv:1512.03385) and those of blocks.py; the D form is from "Bag of Tricks for Image
Classification" (He et al., 2018, arXiv:1812.01187).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from finetune.backbones.base import Backbone, check_output_stride
from finetune.backbones.blocks import (
    BasicBlock,
    Bottleneck,
    Shortcut,
    SqueezeExcite,
    average_shortcut,
    conv3x3,
    conv_shortcut,
)
from finetune.backbones.stages import drop_path_rates, residual_stages
from finetune.backbones.structure import ResidualBlock

CHANNELS = (64, 128, 256, 512)


def stem_7x7(in_channels: int) -> tuple[nn.Module, int]:
    return nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False), 64


def stem_3x3(in_channels: int, width: int = 32) -> tuple[nn.Module, int]:
    """Three 3x3 convolutions for one 7x7; the last has its norm outside, where the plain stem has it."""
    layers = [conv3x3(in_channels, width, 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    layers += [conv3x3(width, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, conv3x3(width, 2 * width)), 2 * width


class ResNet(Backbone):
    """Stem of stride 4, four stages of residual blocks, average pooling, one linear layer."""

    def __init__(
        self,
        block: Callable[..., nn.Module],
        layers: tuple[int, ...],
        *,
        stem: Callable[[int], tuple[nn.Module, int]] = stem_7x7,
        shortcut: Shortcut = conv_shortcut,
        num_classes: int = 1000,
        in_channels: int = 3,
        output_stride: int = 32,
        drop_path: float = 0.0,
        zero_init_last: bool = True,
    ):
        super().__init__()
        check_output_stride(output_stride)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.conv1, channels = stem(in_channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.feature_info = [{"num_chs": channels, "reduction": 2, "module": "act1"}]

        rates = drop_path_rates(drop_path, sum(layers))
        block = partial(block, shortcut=shortcut)
        stages = residual_stages(block, layers, CHANNELS, channels, rates, output_stride=output_stride)
        for number, (blocks, channels, total) in enumerate(stages, start=1):
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": total, "module": f"layer{number}"})

        self.num_features = channels
        self.fc = self.make_classifier(num_classes)
        self.init_weights(zero_init_last)

    def init_weights(self, zero_init_last: bool) -> None:
        """As in timm: He et al.'s normal distribution (fan out); norms and classifier keep torch's default.

        `zero_init_last` starts every residual branch at zero, so that a block is the identity at first.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.zero_init_last()

    def parts(self) -> dict[str, list[nn.Module]]:
        stem = [self.conv1, self.bn1, self.act1, self.maxpool]  # (N, in_channels, H, W) -> (N, C, H / 4, W / 4)
        return {"stem": stem, **{f"stage{n}": [self.get_submodule(f"layer{n}")] for n in range(1, len(CHANNELS) + 1)}}


deep = partial(ResNet, stem=stem_3x3, shortcut=average_shortcut)
next_32x4d = partial(Bottleneck, groups=32, base_width=4)
next_32x8d = partial(Bottleneck, groups=32, base_width=8)
next_64x4d = partial(Bottleneck, groups=64, base_width=4)
wide = partial(Bottleneck, base_width=128)
se_basic = partial(BasicBlock, attention=SqueezeExcite)
se_bottleneck = partial(Bottleneck, attention=SqueezeExcite)

MODELS: dict[str, partial[Any]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet26": partial(ResNet, Bottleneck, (2, 2, 2, 2)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "resnet200": partial(ResNet, Bottleneck, (3, 24, 36, 3)),
    "resnet18d": partial(deep, BasicBlock, (2, 2, 2, 2)),
    "resnet34d": partial(deep, BasicBlock, (3, 4, 6, 3)),
    "resnet26d": partial(deep, Bottleneck, (2, 2, 2, 2)),
    "resnet50d": partial(deep, Bottleneck, (3, 4, 6, 3)),
    "resnet101d": partial(deep, Bottleneck, (3, 4, 23, 3)),
    "resnet152d": partial(deep, Bottleneck, (3, 8, 36, 3)),
    "resnet200d": partial(deep, Bottleneck, (3, 24, 36, 3)),
    "resnext50_32x4d": partial(ResNet, next_32x4d, (3, 4, 6, 3)),
    "resnext101_32x4d": partial(ResNet, next_32x4d, (3, 4, 23, 3)),
    "resnext101_32x8d": partial(ResNet, next_32x8d, (3, 4, 23, 3)),
    "resnext101_64x4d": partial(ResNet, next_64x4d, (3, 4, 23, 3)),
    "wide_resnet50_2": partial(ResNet, wide, (3, 4, 6, 3)),
    "wide_resnet101_2": partial(ResNet, wide, (3, 4, 23, 3)),
    "seresnet18": partial(ResNet, se_basic, (2, 2, 2, 2)),
    "seresnet34": partial(ResNet, se_basic, (3, 4, 6, 3)),
    "seresnet50": partial(ResNet, se_bottleneck, (3, 4, 6, 3)),
    "seresnet101": partial(ResNet, se_bottleneck, (3, 4, 23, 3)),
    "seresnet152": partial(ResNet, se_bottleneck, (3, 8, 36, 3)),
    "seresnext50_32x4d": partial(ResNet, partial(next_32x4d, attention=SqueezeExcite), (3, 4, 6, 3)),
    "seresnext101_32x4d": partial(ResNet, partial(next_32x4d, attention=SqueezeExcite), (3, 4, 23, 3)),
    "seresnext101_32x8d": partial(ResNet, partial(next_32x8d, attention=SqueezeExcite), (3, 4, 23, 3)),
}
