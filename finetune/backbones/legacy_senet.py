"""The first SE-ResNets with published weights, trained in Caffe. They are not the networks of resnet.py.

Their structure differs: the stem pools with ceil_mode, the bottleneck of the SE-ResNets strides on its first 1x1
convolution, the squeeze is C / 16 exactly, the classifier follows dropout. Names: timm's senet.

Paper: "Squeeze-and-Excitation Networks" (Hu et al., 2017, arXiv:1709.01507).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from finetune.backbones.base import Backbone, check_output_stride
from finetune.backbones.blocks import conv1x1, conv3x3, conv_shortcut, drop_path_or_not, projection
from finetune.backbones.resnet import CHANNELS
from finetune.backbones.stages import drop_path_rates, residual_stages
from finetune.backbones.structure import Branches, Recomputable, ResidualBlock


class Gate(Recomputable):
    """Squeeze and excitation: C -> C / 16 -> C, sigmoid, as a factor on each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        gate = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(gate), inplace=True)).sigmoid()


class SEBasicBlock(ResidualBlock):
    """Residual block 3x3, 3x3."""

    adds_in_place = False

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        first_dilation: int = 1,
        drop_path: float = 0.0,
    ):
        super().__init__()
        downsample = projection(conv_shortcut, in_channels, channels, stride, dilation)
        self.out_channels = channels
        self.conv1 = conv3x3(in_channels, channels, stride, dilation=first_dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)  # before the gate: in the published networks, and in no paper
        self.se_module = Gate(channels)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = drop_path_or_not(drop_path)

    def branches(self) -> Branches:  # (N, C, H, W) -> (N, channels, H / stride, W / stride)
        first = [self.conv1, self.bn1, self.act1]
        last = [self.conv2, self.bn2, self.act2, self.se_module, self.drop_path]
        return Branches([*first, *last], [self.downsample], end=self.act3)


class SEBottleneck(ResidualBlock):
    """Residual block 1x1, 3x3, 1x1; `groups` makes it ResNeXt, whose stride sits on the 3x3 convolution."""

    adds_in_place = False

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        first_dilation: int = 1,
        drop_path: float = 0.0,
    ):
        super().__init__()
        width = channels * base_width // 64 * groups
        self.out_channels = out_channels = channels * 4
        downsample = projection(conv_shortcut, in_channels, out_channels, stride, dilation)
        first, second = (stride, 1) if groups == 1 else (1, stride)
        self.conv1 = conv1x1(in_channels, width, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, second, dilation=first_dilation, groups=groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.se_module = Gate(out_channels)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = drop_path_or_not(drop_path)

    def branches(self) -> Branches:  # (N, C, H, W) -> (N, 4 * channels, H / stride, W / stride)
        first = [self.conv1, self.bn1, self.act1]
        second = [self.conv2, self.bn2, self.act2]
        last = [self.conv3, self.bn3, self.se_module, self.drop_path]
        return Branches([*first, *second, *last], [self.downsample], end=self.act3)


class LegacySENet(Backbone):
    """Stem of stride 4, four stages, average pooling, dropout, one linear layer."""

    classifier_name = "last_linear"
    options = ("output_stride", "drop_path")

    def __init__(
        self,
        block: Callable[..., nn.Module],
        layers: tuple[int, ...],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        output_stride: int = 32,
        drop_path: float = 0.0,
        dropout: float = 0.2,
    ):
        super().__init__()
        check_output_stride(output_stride)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.layer0 = nn.Sequential()
        self.layer0.add_module("conv1", nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False))
        self.layer0.add_module("bn1", nn.BatchNorm2d(64))
        self.layer0.add_module("relu1", nn.ReLU(inplace=True))
        self.pool0 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.feature_info = [{"num_chs": 64, "reduction": 2, "module": "layer0"}]
        rates = drop_path_rates(drop_path, sum(layers))
        stages = residual_stages(block, layers, CHANNELS, 64, rates, output_stride=output_stride)
        for number, (blocks, channels, total) in enumerate(stages, start=1):
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": total, "module": f"layer{number}"})
        self.num_features = channels
        self.dropout = nn.Dropout(dropout)  # 0.2 in timm, for these names too; the papers' SE-ResNets have none
        self.last_linear = self.make_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def parts(self) -> dict[str, list[nn.Module]]:
        stem = [self.layer0, self.pool0]  # (N, in_channels, H, W) -> (N, 64, H / 4, W / 4)
        return {"stem": stem, **{f"stage{n}": [self.get_submodule(f"layer{n}")] for n in range(1, len(CHANNELS) + 1)}}

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # (N, C, H, W) -> (N, num_classes)
        x = self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return x if pre_logits else self.last_linear(x)


next_32x4d = partial(SEBottleneck, groups=32, base_width=4)

MODELS: dict[str, partial[Any]] = {
    "legacy_seresnet18": partial(LegacySENet, SEBasicBlock, (2, 2, 2, 2)),
    "legacy_seresnet34": partial(LegacySENet, SEBasicBlock, (3, 4, 6, 3)),
    "legacy_seresnet50": partial(LegacySENet, SEBottleneck, (3, 4, 6, 3)),
    "legacy_seresnet101": partial(LegacySENet, SEBottleneck, (3, 4, 23, 3)),
    "legacy_seresnet152": partial(LegacySENet, SEBottleneck, (3, 8, 36, 3)),
    "legacy_seresnext50_32x4d": partial(LegacySENet, next_32x4d, (3, 4, 6, 3)),
    "legacy_seresnext101_32x4d": partial(LegacySENet, next_32x4d, (3, 4, 23, 3)),
}
