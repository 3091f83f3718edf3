"""Heads turn a backbone's maps into an output; a neck between them transforms the maps first.

A neck or head is any `nn.Module`. Its class attribute `takes` says what its `forward` reads: "map", the last map
(N, C, H, W), which is the default, or "maps", the list of all maps, the finest first. Of a head `gives` says what it
answers: "logits" (N, K), the default, or "detections", of each image boxes with a score and a class.
"""

from collections.abc import Callable

from torch import nn

from finetune.errors import one_of
from finetune.heads.classify import ClassifyHead
from finetune.heads.detect import FasterRCNNHead, RetinaNetHead
from finetune.heads.detection import Detections
from finetune.heads.features import FeatureInfo
from finetune.heads.pyramid import Pyramid

__all__ = [
    "HEADS",
    "NECKS",
    "ClassifyHead",
    "Detections",
    "FasterRCNNHead",
    "FeatureInfo",
    "Pyramid",
    "RetinaNetHead",
    "head_named",
    "neck_named",
]

HEADS: dict[str, Callable[..., nn.Module]] = {
    "classify": ClassifyHead,
    "faster_rcnn": FasterRCNNHead,
    "retinanet": RetinaNetHead,
}
"""Name in a model file -> head: called with the channels of the last map (where it takes "maps", with a list of
FeatureInfo), the number of classes, and options."""

NECKS: dict[str, Callable[..., nn.Module]] = {"pyramid": Pyramid}
"""Name in a model file -> neck: called with a list of FeatureInfo, one for each map that it reads, and options. Its
`forward` returns a map or a list of maps, and its attribute `feature_info` lists the FeatureInfo of each."""


def head_named(name: str, argument: str = "head") -> Callable[..., nn.Module]:
    """The constructor of the head of that name.

    Raises:
        FinetuneError: there is none; the message begins with `argument`.
    """
    if name not in HEADS:
        raise one_of(argument, name, HEADS)
    return HEADS[name]


def neck_named(name: str, argument: str = "neck") -> Callable[..., nn.Module]:
    """The constructor of the neck of that name.

    Raises:
        FinetuneError: there is none; the message begins with `argument`.
    """
    if name not in NECKS:
        raise one_of(argument, name, NECKS)
    return NECKS[name]
