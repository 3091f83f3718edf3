"""The CIFAR forms: images of 32 px, a 3x3 stem without pooling, three stages of strides 1, 2, 4, ten classes.

Papers: ResNet and plain nets (He et al., 2015, arXiv:1512.03385, section 4.2), pre-activation (He et al., 2016,
arXiv:1603.05027), DenseNet (Huang et al., 2016, arXiv:1608.06993).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from finetune.backbones.base import Backbone
from finetune.backbones.blocks import BasicBlock, Shortcut, conv3x3, conv_shortcut
from finetune.backbones.densenet import DenseNet, PlainDenseLayer
from finetune.backbones.preact import ConvShortcut, PreActBasic, PreActBottleneck, PreActResNet
from finetune.backbones.stages import drop_path_rates, residual_stages
from finetune.backbones.structure import Recomputable, Row
from finetune.errors import one_of


class PadShortcut(Recomputable):
    """Option A: every second pixel, and zeros in the added channels. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int):
        super().__init__()
        self.stride = stride
        new = out_channels - in_channels
        self.before, self.after = new // 2, new - new // 2  # as in the published CIFAR weights

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, out_channels, H / stride, W / stride)
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def shortcut_of(letter: str, projection: Shortcut) -> Shortcut:
    """The shortcut for the paper's letter: A pads with zeros, B projects where the shape changes."""
    shortcuts = {"A": PadShortcut, "B": projection}
    if letter not in list(shortcuts):
        raise one_of("shortcut", letter, shortcuts)
    return shortcuts[letter]


class PlainBlock(Row):
    """Two 3x3 convolutions without a shortcut: what the ResNet paper compares with."""

    # (N, C, H, W) -> (N, channels, H / stride, W / stride)

    def __init__(self, in_channels: int, channels: int, stride: int = 1, **unused: object):
        super().__init__()
        self.out_channels = channels
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)


class PlainNet(Backbone):
    """3x3 stem, three stages of `depth` blocks of 16, 32, 64 channels, average pooling, one linear layer."""

    options: tuple[str, ...] = ()

    def __init__(
        self,
        depth: int,
        *,
        block: Callable[..., nn.Module] = PlainBlock,
        num_classes: int = 10,
        in_channels: int = 3,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info = []
        rates = drop_path_rates(drop_path, 3 * depth)
        stages = residual_stages(block, (depth,) * 3, (16, 32, 64), 16, rates, stem_stride=1)
        for number, (blocks, channels, total) in enumerate(stages, start=1):
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": total, "module": f"layer{number}"})
        self.num_features = 64
        self.fc = self.make_classifier(num_classes)
        for module in self.modules():  # as for the ImageNet forms
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def parts(self) -> dict[str, list[nn.Module]]:
        stem = [self.conv1, self.bn1, self.act1]  # (N, in_channels, H, W) -> (N, 16, H, W)
        return {"stem": stem, **{f"stage{n}": [self.get_submodule(f"layer{n}")] for n in (1, 2, 3)}}


class CifarResNet(PlainNet):
    """The plain net with a shortcut past every block; with option A it has not one parameter more."""

    options = ("drop_path", "zero_init_last", "shortcut")

    def __init__(self, depth: int, *, shortcut: str = "A", zero_init_last: bool = False, **options: object):
        block = partial(BasicBlock, shortcut=shortcut_of(shortcut, conv_shortcut))
        super().__init__(depth, block=block, **options)  # type: ignore[arg-type]
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    module.zero_init_last()


class CifarStem(nn.Sequential):
    channels, stride, last_conv = 16, 1, "conv"

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = conv3x3(in_channels, 16)


class CifarPreActResNet(PreActResNet):
    """Pre-activation, three stages. Option A is the paper's for the basic block, B for the bottleneck."""

    options = ("drop_path", "zero_init_last", "shortcut")

    def __init__(
        self,
        block: Callable[..., nn.Module],
        depth: int,
        channels: tuple[int, ...],
        *,
        shortcut: str,
        num_classes: int = 10,
        **options: object,
    ):
        super().__init__(
            block,
            (depth,) * 3,
            channels,
            stem=CifarStem,  # type: ignore[arg-type]
            shortcut=shortcut_of(shortcut, ConvShortcut),
            num_classes=num_classes,
            **options,  # type: ignore[arg-type]
        )
        self.feature_info = self.feature_info[1:]  # the stem's map is as large as stage 1's


class CifarDenseNet(DenseNet):
    """Three dense blocks after a 3x3 stem."""

    options = ()

    def __init__(self, growth: int, depth: int, *, stem_channels: int, num_classes: int = 10, **rest: object):
        super().__init__(
            growth,
            (depth,) * 3,
            stem=lambda in_channels, channels: {"conv0": conv3x3(in_channels, channels)},
            stem_channels=stem_channels,
            stem_stride=1,
            num_classes=num_classes,
            **rest,  # type: ignore[arg-type]
        )


def bc(depth: int, growth: int) -> partial[CifarDenseNet]:
    """DenseNet-BC: bottleneck layers, transitions that halve the channels, a stem of 2 * growth."""
    return partial(CifarDenseNet, growth, (depth - 4) // 6, stem_channels=2 * growth)


MODELS: dict[str, partial[Any]] = {
    **{f"resnet{depth}_cifar": partial(CifarResNet, (depth - 2) // 6) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"plain{depth}_cifar": partial(PlainNet, (depth - 2) // 6) for depth in (20, 32, 44, 56, 110)},
    "preact_resnet110_cifar": partial(CifarPreActResNet, PreActBasic, 18, (16, 32, 64), shortcut="A"),
    "preact_resnet164_cifar": partial(CifarPreActResNet, PreActBottleneck, 18, (64, 128, 256), shortcut="B"),
    "preact_resnet1001_cifar": partial(CifarPreActResNet, PreActBottleneck, 111, (64, 128, 256), shortcut="B"),
    "densenet_40_12": partial(
        CifarDenseNet, 12, 12, stem_channels=16, layer=PlainDenseLayer, compression=1.0
    ),  # 16 channels: the paper's, where 2 * growth is the BC form's
    "densenet_bc_100_12": bc(100, 12),
    "densenet_bc_250_24": bc(250, 24),
    "densenet_bc_190_40": bc(190, 40),
}
