"""Pre-activation ResNets: norm and ReLU precede every convolution, and nothing follows the sum.

Paper: "Identity Mappings in Deep Residual Networks" (He et al., 2016, arXiv:1603.05027). Names and details are those of
timm's resnetv2 with batch norms; the CIFAR forms in cifar.py are made of the same blocks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.backbones.base import Backbone, check_output_stride
from finetune.backbones.blocks import Shortcut, average_pool, conv1x1, conv3x3, drop_path_or_not
from finetune.backbones.stages import residual_stages
from finetune.backbones.structure import Branches, ResidualBlock, Row


class ConvShortcut(nn.Sequential):
    """A 1x1 projection of the activated input; with `average` the stride is a pooling (the D form)."""

    # (N, C, H, W) -> (N, out_channels, H / stride, W / stride)

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, *, average: bool = False):
        super().__init__()
        self.pool = average_pool(stride, dilation) if average else nn.Identity()
        self.conv = conv1x1(in_channels, out_channels, 1 if average else stride)


class PreActBasic(ResidualBlock):
    """Norm, ReLU, 3x3; norm, ReLU, 3x3; plus the input, or a shortcut from the first activation."""

    adds_in_place = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        first_dilation: int = 1,
        shortcut: Shortcut = ConvShortcut,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.out_channels = out_channels
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else shortcut(in_channels, out_channels, stride, dilation)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(in_channels, out_channels, stride, dilation=first_dilation)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels, dilation=dilation)
        self.drop_path = drop_path_or_not(drop_path)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.conv2.weight)

    def branches(self) -> Branches:  # (N, C, H, W) -> (N, out_channels, H / stride, W / stride)
        main = [self.conv1, self.norm2, self.act2, self.conv2, self.drop_path]
        shortcut = [] if self.downsample is None else [self.downsample]
        return Branches(main, shortcut, before=[self.norm1, self.act1])


class PreActBottleneck(ResidualBlock):
    """Norm, ReLU, 1x1; norm, ReLU, 3x3; norm, ReLU, 1x1; plus the input, or a projection of the first activation.

    The stride sits on the 3x3 convolution, as in timm; the paper's code has it on the first 1x1.
    """

    adds_in_place = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        first_dilation: int = 1,
        shortcut: Shortcut = ConvShortcut,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.out_channels, width = out_channels, out_channels // 4
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else shortcut(in_channels, out_channels, stride, dilation)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = conv1x1(in_channels, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, stride, dilation=first_dilation)
        self.norm3 = nn.BatchNorm2d(width)
        self.act3 = nn.ReLU(inplace=True)
        self.conv3 = conv1x1(width, out_channels)
        self.drop_path = drop_path_or_not(drop_path)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.conv3.weight)

    def branches(self) -> Branches:  # (N, C, H, W) -> (N, out_channels, H / stride, W / stride)
        middle = [self.norm2, self.act2, self.conv2]
        last = [self.norm3, self.act3, self.conv3, self.drop_path]
        shortcut = [] if self.downsample is None else [self.downsample]
        return Branches([self.conv1, *middle, *last], shortcut, before=[self.norm1, self.act1])


class Stem(nn.Sequential):
    """Convolution and pooling; no norm, for the first block begins with one."""

    channels, stride, last_conv = 64, 4, "conv"

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)


class DeepStem(Row):
    """Three 3x3 convolutions for one 7x7: (N, in_channels, H, W) -> (N, 64, H / 4, W / 4)."""

    channels, stride, last_conv = 64, 4, "conv3"

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, 32, 2)
        self.norm1 = nn.BatchNorm2d(32)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(32, 32)
        self.norm2 = nn.BatchNorm2d(32)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv3x3(32, 64)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)


class Stage(nn.Sequential):
    """Blocks in order, under the name that timm gives them."""

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)


class PreActResNet(Backbone):
    """Stem of stride 4, four stages, a last norm with ReLU, average pooling, a 1x1 convolution as the classifier.

    The maps of `forward_stages` come before the last norm, as in timm; `forward_features` has it.
    """

    classifier_name = "head.fc"
    classifier_kernel = (1, 1)

    def __init__(
        self,
        block: Callable[..., nn.Module],
        layers: tuple[int, ...],
        channels: tuple[int, ...] = (256, 512, 1024, 2048),
        *,
        stem: Callable[[int], Stem | DeepStem] = Stem,
        shortcut: Shortcut = ConvShortcut,
        num_classes: int = 1000,
        in_channels: int = 3,
        output_stride: int = 32,
        drop_path: float = 0.0,
        zero_init_last: bool = False,
    ):
        super().__init__()
        check_output_stride(output_stride)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.stem = stem(in_channels)
        self.feature_info = [{"num_chs": 64, "reduction": 2, "module": f"stem.{self.stem.last_conv}"}]
        self.stages = nn.Sequential()
        rates = torch.linspace(0, drop_path, sum(layers), device="cpu").tolist()  # float32, as in timm
        stages = residual_stages(
            partial(block, shortcut=shortcut),
            layers,
            channels,
            self.stem.channels,
            rates,
            output_stride=output_stride,
            stem_stride=self.stem.stride,
        )
        for index, (blocks, width, total) in enumerate(stages):
            self.stages.append(Stage(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": total, "module": f"stages.{index}"})
        self.num_features = width
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.ModuleDict({"fc": self.make_classifier(num_classes)})
        self.init_weights(zero_init_last)

    def init_weights(self, zero_init_last: bool) -> None:
        """As in timm: He et al.'s normal distribution (fan out), and a small classifier without bias at first.

        `zero_init_last` starts every residual branch at zero, by its last convolution, as it does not end in a norm.
        """
        classifier = self.get_classifier()
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not classifier:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(classifier, nn.Conv2d) and classifier.bias is not None:
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.zero_init_last()

    def make_classifier(self, num_classes: int) -> nn.Module:
        return nn.Conv2d(self.num_features, num_classes, 1) if num_classes else nn.Identity()

    def parts(self) -> dict[str, list[nn.Module]]:
        """The last norm belongs to the last stage."""
        stages: dict[str, list[nn.Module]] = {f"stage{n}": [stage] for n, stage in enumerate(self.stages, start=1)}
        stages[f"stage{len(self.stages)}"] += self.tail_row()
        return {"stem": [self.stem], **stages}

    def stage_row(self, number: int) -> list[nn.Module]:
        return [self.stages[number - 1]]

    def tail_row(self) -> list[nn.Module]:
        return [self.norm, self.act]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # (N, C, H, W) -> (N, num_classes)
        x = F.adaptive_avg_pool2d(x, 1)
        return (x if pre_logits else self.get_classifier()(x)).flatten(1)


deep = partial(PreActResNet, stem=DeepStem, shortcut=partial(ConvShortcut, average=True))

MODELS: dict[str, partial[Any]] = {
    "resnetv2_50": partial(PreActResNet, PreActBottleneck, (3, 4, 6, 3)),
    "resnetv2_101": partial(PreActResNet, PreActBottleneck, (3, 4, 23, 3)),
    "resnetv2_152": partial(PreActResNet, PreActBottleneck, (3, 8, 36, 3)),
    "resnetv2_50d": partial(deep, PreActBottleneck, (3, 4, 6, 3)),
    "resnetv2_101d": partial(deep, PreActBottleneck, (3, 4, 23, 3)),
    "resnetv2_152d": partial(deep, PreActBottleneck, (3, 8, 36, 3)),
}
