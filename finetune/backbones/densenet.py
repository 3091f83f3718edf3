"""DenseNets: every layer reads all maps before it and adds `growth` maps of its own.

Paper: "Densely Connected Convolutional Networks" (Huang et al., 2016, arXiv:1608.06993); the deep stem (D) is from
arXiv:1812.01187, the blurred stem pooling from arXiv:1904.11486.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.backbones.base import Backbone, check_output_stride
from finetune.backbones.blocks import BlurPool, conv1x1, conv3x3
from finetune.backbones.structure import Row


class ConcatParts(NamedTuple):
    """The submodules of a dense layer: rest(bottleneck(relu(norm(concatenation)))); without a bottleneck None."""

    norm: nn.Module
    relu: nn.Module
    bottleneck: nn.Module | None
    rest: list[nn.Module]


class ConcatLayer(nn.Sequential):
    """A dense layer: reads the concatenation of maps [(N, c, H, W), ...], returns new channels (N, growth, H, W).

    Subclasses assign a norm, a ReLU, a 1x1 convolution if there is a bottleneck, and the rest, which ends in a
    convolution; all run in this order.
    """

    def forward(self, maps: list[Tensor]) -> Tensor:
        return super().forward(torch.cat(maps, 1))

    def parts(self) -> ConcatParts:
        norm, relu, first, *rest = self
        return ConcatParts(norm, relu, first, rest) if rest else ConcatParts(norm, relu, None, [first])

    @property
    def growth(self) -> int:
        """Number of new channels."""
        return self[-1].out_channels  # type: ignore[return-value]


class DenseLayer(ConcatLayer):
    """BN, ReLU, 1x1 convolution to 4 * growth, BN, ReLU, 3x3 convolution to `growth` (DenseNet-B)."""

    def __init__(self, in_channels: int, growth: int, dilation: int = 1):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = conv1x1(in_channels, 4 * growth)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(4 * growth, growth, dilation=dilation)


class PlainDenseLayer(ConcatLayer):
    """BN, ReLU, 3x3 convolution: the layer without a bottleneck."""

    def __init__(self, in_channels: int, growth: int, dilation: int = 1):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(in_channels, growth, dilation=dilation)


class DenseBlock(nn.ModuleDict):
    """`depth` dense layers, each of which reads the input and the maps of all layers before it."""

    def __init__(
        self, depth: int, in_channels: int, growth: int, *, layer: Callable[..., nn.Module], dilation: int = 1
    ):
        super().__init__()
        for index in range(depth):
            self[f"denselayer{index + 1}"] = layer(in_channels + index * growth, growth, dilation)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C + depth * growth, H, W)
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class Transition(Row):
    """BN, ReLU, 1x1 convolution, 2x2 average: (N, C, H, W) -> (N, out_channels, H / 2, W / 2), between dense blocks."""

    def __init__(self, in_channels: int, out_channels: int, pool: nn.Module):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = conv1x1(in_channels, out_channels)
        self.pool = pool

    def cheapest_order(self) -> list[nn.Module]:
        """Pooling and 1x1 convolution commute: pooling first leaves a quarter of the products."""
        return [self.norm, self.relu, self.pool, self.conv]


def stem_7x7(in_channels: int, channels: int) -> dict[str, nn.Module]:
    return {
        "conv0": nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False),
        "norm0": nn.BatchNorm2d(channels),
        "relu0": nn.ReLU(inplace=True),
        "pool0": nn.MaxPool2d(3, stride=2, padding=1),
    }


def stem_3x3(in_channels: int, channels: int) -> dict[str, nn.Module]:
    width = channels // 2
    return {
        "conv0": conv3x3(in_channels, width, 2),
        "norm0": nn.BatchNorm2d(width),
        "relu0": nn.ReLU(inplace=True),
        "conv1": conv3x3(width, width),
        "norm1": nn.BatchNorm2d(width),
        "relu1": nn.ReLU(inplace=True),
        "conv2": conv3x3(width, channels),
        "norm2": nn.BatchNorm2d(channels),
        "relu2": nn.ReLU(inplace=True),
        "pool0": nn.MaxPool2d(3, stride=2, padding=1),
    }


def stem_3x3_blur(in_channels: int, channels: int) -> dict[str, nn.Module]:
    pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BlurPool(channels))
    return {**stem_3x3(in_channels, channels), "pool0": pool}


class DenseNet(Backbone):
    """Stem, dense blocks with transitions between them, a last norm, average pooling, one linear layer.

    timm applies the ReLU inside its norm modules; here it is a module of its own, as in torchvision, so that the norms
    are plain batch norms. timm does not support `output_stride` here: ours leaves out the pooling of the later
    transitions and dilates the blocks after them.
    """

    classifier_name = "classifier"
    options: tuple[str, ...] = ("output_stride",)

    def __init__(
        self,
        growth: int,
        layers: tuple[int, ...],
        *,
        stem: Callable[[int, int], dict[str, nn.Module]] = stem_7x7,
        stem_channels: int | None = None,
        stem_stride: int = 4,
        layer: Callable[..., nn.Module] = DenseLayer,
        compression: float = 0.5,
        num_classes: int = 1000,
        in_channels: int = 3,
        output_stride: int = 32,
    ):
        super().__init__()
        check_output_stride(output_stride)
        self.num_classes, self.in_channels = num_classes, in_channels
        channels = stem_channels or 2 * growth
        self.features = nn.ModuleDict(stem(in_channels, channels))
        self.stem_names = list(self.features)
        last_norm = [name for name in self.stem_names if name.startswith("norm")]
        self.feature_info = [{"num_chs": channels, "reduction": 2, "module": f"features.{n}"} for n in last_norm[-1:]]
        self.layers = layers

        pool: nn.Module
        total, dilation = stem_stride, 1
        for number, depth in enumerate(layers, start=1):
            self.features[f"denseblock{number}"] = DenseBlock(depth, channels, growth, layer=layer, dilation=dilation)
            channels += depth * growth
            if number == len(layers):
                break
            self.feature_info.append(
                {"num_chs": channels, "reduction": total, "module": f"features.denseblock{number}"}
            )
            if total >= output_stride:
                pool, dilation = nn.Identity(), dilation * 2
            else:
                pool, total = nn.AvgPool2d(2), total * 2
            self.features[f"transition{number}"] = Transition(channels, int(channels * compression), pool)
            channels = int(channels * compression)
        self.features["norm5"] = nn.BatchNorm2d(channels)
        self.features["relu5"] = nn.ReLU(inplace=True)
        self.feature_info.append({"num_chs": channels, "reduction": total, "module": "features.norm5"})

        self.num_features = channels
        self.classifier = self.make_classifier(num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """As in timm: He et al.'s normal distribution (fan in), no bias in the classifier at first."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def stage_row(self, number: int) -> list[nn.Module]:
        names: list[str] = [f"transition{number - 1}"] if number > 1 else []
        names += [f"denseblock{number}"] + (["norm5", "relu5"] if number == len(self.layers) else [])
        return [self.features[name] for name in names]

    def parts(self) -> dict[str, list[nn.Module]]:
        """A transition belongs to the stage that it feeds, the last norm to the last stage."""
        stem = [self.features[name] for name in self.stem_names]  # (N, in_channels, H, W) -> (N, C, H / 4, W / 4)
        return {"stem": stem, **{f"stage{n}": self.stage_row(n) for n in range(1, len(self.layers) + 1)}}


MODELS: dict[str, partial[Any]] = {
    "densenet121": partial(DenseNet, 32, (6, 12, 24, 16)),
    "densenet161": partial(DenseNet, 48, (6, 12, 36, 24)),
    "densenet169": partial(DenseNet, 32, (6, 12, 32, 32)),
    "densenet201": partial(DenseNet, 32, (6, 12, 48, 32)),
    "densenet264": partial(DenseNet, 32, (6, 12, 64, 48)),
    "densenet264d": partial(DenseNet, 48, (6, 12, 64, 48), stem=stem_3x3),
    "densenetblur121d": partial(DenseNet, 32, (6, 12, 24, 16), stem=stem_3x3_blur),
}
