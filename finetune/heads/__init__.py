"""Heads turn a backbone's maps into an output; a neck between them transforms the maps first.

A neck or head is any `nn.Module`. Its class attribute `takes` says what its `forward` reads: "map", the last map
(N, C, H, W), which is the default, or "maps", the list of all maps, the finest first. A head's `gives` says what it
returns: "classes", logits (N, K), which is the default, "regions", logits for each pixel (N, K, H, W), or "detections",
boxes with labels and scores.
"""

from collections.abc import Callable

from torch import nn

from finetune.errors import FinetuneError, one_of
from finetune.heads.classify import ClassifyHead
from finetune.heads.decoders import SemanticFPN, UNet
from finetune.heads.detect import FasterRCNNHead, RetinaNetHead
from finetune.heads.detection import Detections
from finetune.heads.features import FeatureInfo, gives
from finetune.heads.pyramid import Pyramid
from finetune.heads.segment import FCN, DeepLabV3, SegmentHead

__all__ = [
    "FCN",
    "HEADS",
    "NECKS",
    "ClassifyHead",
    "DeepLabV3",
    "Detections",
    "FasterRCNNHead",
    "FeatureInfo",
    "Pyramid",
    "RetinaNetHead",
    "SegmentHead",
    "SemanticFPN",
    "UNet",
    "check_gives",
    "gives",
    "head_named",
    "neck_named",
]

HEADS: dict[str, Callable[..., nn.Module]] = {
    "classify": ClassifyHead,
    "faster_rcnn": FasterRCNNHead,
    "retinanet": RetinaNetHead,
    "deeplabv3": DeepLabV3,
    "fcn": FCN,
    "fpn": SemanticFPN,
    "unet": UNet,
}
"""Name in a model file -> head: called with the channels of the last map (where it takes "maps", with a list of
FeatureInfo), the number of classes, and options."""

NECKS: dict[str, Callable[..., nn.Module]] = {"pyramid": Pyramid}
"""Name in a model file -> neck: called with a list of FeatureInfo, one for each map that it reads, and options. Its
`forward` returns a map or a list of maps, and its attribute `feature_info` lists the FeatureInfo of each."""


IN_WORDS = {
    "classes": "logits for the whole image",
    "regions": "logits for each pixel",
    "detections": "boxes with labels and scores",
}
"""What a head gives -> the same in words."""


def head_named(name: str, argument: str = "head") -> Callable[..., nn.Module]:
    """The constructor of the head of that name.

    Raises:
        FinetuneError: there is none; the message begins with `argument`.
    """
    if name not in HEADS:
        raise one_of(argument, name, HEADS)
    return HEADS[name]


def check_gives(name: str, wanted: str, argument: str = "head") -> None:
    """Refuse a head that returns something else than the task learns: `wanted` is one of GIVES.

    Raises:
        FinetuneError: there is no such head, or it returns something else; names those that fit.
    """
    if gives(head_named(name, argument)) != wanted:
        fitting = ", ".join(sorted(other for other, make in HEADS.items() if gives(make) == wanted))
        raise FinetuneError(
            f"{argument}={name} gives {IN_WORDS[gives(head_named(name))]}, and the task learns {wanted}: "
            f"{IN_WORDS[wanted]}. Choose {fitting}."
        )


def neck_named(name: str, argument: str = "neck") -> Callable[..., nn.Module]:
    """The constructor of the neck of that name.

    Raises:
        FinetuneError: there is none; the message begins with `argument`.
    """
    if name not in NECKS:
        raise one_of(argument, name, NECKS)
    return NECKS[name]
