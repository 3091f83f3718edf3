"""How other programs name the same tensors: pairs of pattern and replacement, applied in order."""

import re
from collections.abc import Callable

Pairs = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def _dense_layer(match: re.Match[str]) -> str:
    """block1.layer.0.bn1 -> features.denseblock1.denselayer1.norm1"""
    block, layer, kind = match.groups()
    return f"features.denseblock{block}.denselayer{int(layer) + 1}.{'norm' if kind == 'bn' else kind}"


def _stage(match: re.Match[str]) -> str:
    """4. -> layer1.; children 2 and 3 are the ReLU and the pooling"""
    return f"layer{int(match.group(1)) - 3}."


LAYOUTS: dict[str, Pairs] = {
    "timm": (),
    # torchvision's published DenseNets are older than its own module names: norm.1 for norm1
    "torchvision": ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
    # github.com/akamaster/pytorch_resnet_cifar10 and others of its kind
    "resnet_cifar": ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")),
    # github.com/andreasveit/densenet-pytorch
    "densenet_cifar": (
        (r"^conv1\.", "features.conv0."),
        (r"^block(\d)\.layer\.(\d+)\.(bn|conv)", _dense_layer),
        (r"^trans(\d)\.bn1\.", r"features.transition\1.norm."),
        (r"^trans(\d)\.conv1\.", r"features.transition\1.conv."),
        (r"^bn1\.", "features.norm5."),
        (r"^fc\.", "classifier."),
    ),
    # torchvision's networks as a Sequential of their children, numbered: github.com/BMEII-AI/RadImageNet and others
    "resnet_children": (
        (r"^0\.", "conv1."),
        (r"^1\.", "bn1."),
        (r"^([4-7])\.", _stage),
        (r"^9\.", "fc."),
    ),
    "densenet_children": ((r"^0\.", "features."), (r"^1\.", "classifier.")),
}


def to_timm(layout: str, key: str) -> str:
    """The key of a layout under timm's name."""
    for pattern, replacement in LAYOUTS[layout]:
        key = re.sub(pattern, replacement, key)
    return key
