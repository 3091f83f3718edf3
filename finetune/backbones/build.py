"""From a name to a network: `build` and `list_models`."""

import re
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from finetune.backbones import cifar, densenet, lean, legacy_senet, preact, resnet
from finetune.backbones.base import Backbone
from finetune.backbones.structure import in_order
from finetune.errors import FinetuneError, one_of

_OF_TIMM: dict[str, partial[Any]] = {
    **resnet.MODELS,
    **preact.MODELS,
    **legacy_senet.MODELS,
    **densenet.MODELS,
}
MODELS: dict[str, partial[Any]] = {**_OF_TIMM, **cifar.MODELS}
TIMM_NAMES = frozenset(_OF_TIMM) - {"densenet264"}  # which timm does not have
"""The names that timm has too, with the same tensors under the same names."""
MEMORY = ("auto", "standard", "lean", "minimal")

LEAN_PAYS = re.compile(r"densenet\w*|(wide_)?resnet(50|101|152|200)\w*|resnetv2_\w+|resnext\w+")
"""Names of which lean training was measured to be no slower (benchmarks/RESULTS.md): few kernels on small maps."""

OPTIONS = {option for model in MODELS.values() for option in model.func.options}  # type: ignore[attr-defined]
"""Names of the options that some backbone takes."""

IN_TIMM = {
    "pretrained": "weights='default' loads the published weights, a tag such as weights='a1_in1k' chooses among them",
    "pretrained_cfg": "weights=TAG chooses among the published weights",
    "checkpoint_path": "weights=PATH loads a file",
    "in_chans": "in_channels=N is the number of the image's channels",
    "drop_path_rate": "drop_path=RATE is the rate of the last block",
    "drop_rate": "dropout is an option of the head, head.dropout=RATE in a fit",
    "features_only": "net.forward_stages(images) gives the maps of all stages, net.feature_info describes them",
    "out_indices": "net.forward_stages(images) gives the maps of all stages, net.feature_info describes them",
    "global_pool": "net.forward_features(images) gives the map before pooling, num_classes=0 the pooled features",
}
"""Arguments of timm's create_model, and what serves their purpose here."""
IN_TIMM_NAME = re.compile(r"(?:hf[-_]hub:)?(?:timm/)?(\w+)(?:\.(\w+))?")
"""timm's name of a model with a tag, or of a repository of its hub."""


def list_models(pattern: str = "*") -> list[str]:
    """The names that `build` knows, sorted; of them those that a pattern such as `resnet*` describes."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def build(
    name: str, *, num_classes: int | None = None, in_channels: int = 3, memory: str = "standard", **options: Any
) -> Backbone:
    """The named network with random weights.

    num_classes: None is the name's own (1000, or 10 for the CIFAR forms); 0 leaves the classifier out.
    memory: standard, lean or minimal: what training keeps for the backward pass. auto is lean where that is no slower.
    options: output_stride, drop_path, zero_init_last and, for CIFAR ResNets, shortcut; None is the name's own default.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise unknown_name(name)
    model = MODELS[name]
    known = model.func.options  # type: ignore[attr-defined]
    for key, value in options.items():
        if key in IN_TIMM:
            raise FinetuneError(f"{name} has no option {key}={value!r}, which is timm's word. Here {IN_TIMM[key]}.")
        if key not in known and (value or key not in OPTIONS):  # left off, an option of other names asks for nothing
            raise FinetuneError(f"{name} has no option {key}={value}. It takes {', '.join(['memory', *known])}.")
    chosen = {key: value for key, value in options.items() if key in known and value is not None}
    if num_classes is not None:
        chosen["num_classes"] = at_least(0, "num_classes", num_classes)
    rate = chosen.get("drop_path", 0.0)
    if not isinstance(rate, float | int) or not 0 <= rate < 1:
        raise FinetuneError(f"drop_path={rate} is not a probability. Choose 0.0 (none) to 0.99.")
    if not isinstance(chosen.get("zero_init_last", False), bool):
        raise one_of("zero_init_last", chosen["zero_init_last"], ("true", "false", "null"))
    net = model(in_channels=at_least(1, "in_channels", in_channels), **chosen)
    if memory == "auto" and not LEAN_PAYS.fullmatch(name):
        memory = "standard"
    return apply_memory(net, memory)


def unknown_name(name: str) -> FinetuneError:
    """The error for a name that is not in the list, with what timm's way of naming weights is here."""
    match = IN_TIMM_NAME.fullmatch(str(name))
    if match and match[1] in MODELS:
        tag = match[2] or "default"
        return FinetuneError(
            f"backbone={name}: here a name stands without its tag. Write create_model('{match[1]}', weights='{tag}'), "
            f"on the command line backbone={match[1]} backbone.weights={tag}."
        )
    return one_of("backbone", name, list_models())


def at_least(least: int, argument: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FinetuneError(f"{argument}={value!r} is not a whole number of at least {least}.")
    return value


def apply_memory(net: Backbone, memory: str) -> Backbone:
    """Set how much training keeps for backward; what the network computes does not depend on it."""
    if memory not in MEMORY:
        raise one_of("memory", memory, MEMORY)
    net.memory = memory
    net.run = in_order if memory == "standard" else partial(lean.run, memory=memory)
    return net
