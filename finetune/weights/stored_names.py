"""The names of the tensors in a model.safetensors, and those of the same tensors in our networks.

A backbone that timm knows, with the plain classifier, is stored under timm's own names (conv1.weight, fc.weight), so
that timm, transformers and torchvision load the file as it is. Every other network is stored under the names of its
parts (backbone.*, neck.*, head.*), as in formats 1 and 2 all were. The hash of the weights is over the names of the
network, in both: the same weights have the same hash in every format.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from finetune.backbones import Backbone
from finetune.backbones.build import MODELS, TIMM_NAMES
from finetune.errors import FinetuneError
from finetune.heads import HEADS, ClassifyHead

Keys = Literal["timm", "parts"]

BACKBONE, CLASSIFIER = "backbone.", "head.fc."
"""Beginnings of names in a network of a backbone and a plain classifier: there are no others."""


def keys_for(backbone: str, head: str, neck: str | None) -> Keys:
    """Whose names the tensors of such a network have in the file."""
    plain = neck is None and HEADS.get(head) is ClassifyHead
    return "timm" if plain and backbone in TIMM_NAMES else "parts"


def check(keys: Keys, backbone: str, head: str, neck: str | None) -> None:
    """Refuse timm's names for a network that has none.

    Raises:
        FinetuneError: naming it.
    """
    if keys == "timm" and keys_for(backbone, head, neck) != "timm":
        raise FinetuneError(f"keys=timm does not go with backbone={backbone}, head={head}, neck={neck}.")


def to_file(tensors: Mapping[str, Tensor], keys: Keys, backbone: str) -> dict[str, Tensor]:
    """Tensors under the names of a network -> under those of the file; timm's pre-activation nets have their
    classifier's weight as a convolution's, (K, C, 1, 1)."""
    if keys == "parts":
        return dict(tensors)
    kind, renamed = _family(backbone), {}
    for name, value in tensors.items():
        if name.startswith(CLASSIFIER):
            name = f"{kind.classifier_name}.{name.removeprefix(CLASSIFIER)}"
            value = value.reshape(*value.shape, *kind.classifier_kernel) if value.ndim == 2 else value
        renamed[name.removeprefix(BACKBONE)] = value
    return renamed


def to_network(tensors: Mapping[str, Tensor], keys: Keys, backbone: str) -> dict[str, Tensor]:
    """The inverse of `to_file`."""
    if keys == "parts":
        return dict(tensors)
    classifier, renamed = f"{_family(backbone).classifier_name}.", {}
    for name, value in tensors.items():
        if name.startswith(classifier):
            renamed[CLASSIFIER + name.removeprefix(classifier)] = value.flatten(1) if value.ndim > 2 else value
        else:
            renamed[BACKBONE + name] = value
    return renamed


def _family(backbone: str) -> type[Backbone]:
    kind: type[Backbone] = MODELS[backbone].func  # type: ignore[assignment]
    return kind
