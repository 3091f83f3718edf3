"""Tensors from a file fitted to a backbone: every key is used, named as dropped, or an error that shows both sides."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetune.backbones import Backbone
from finetune.backbones.build import MODELS, build
from finetune.errors import FinetuneError
from finetune.weights.files import shorten
from finetune.weights.layouts import LAYOUTS, to_timm

BOOKKEEPING = re.compile(r"(^|\.)(num_batches_tracked|total_ops|total_params|op_threshs)$")
"""Keys that carry no weight: batch counters (old files lack them), profilers' counts, torchxrayvision's thresholds."""


@dataclass
class Fit:
    """The fate of each key: names of the file in `dropped`, names of the network in the other lists."""

    prefix: str = ""
    layout: str = "timm"
    used: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    """In the file, but not loaded: other prefixes, a classifier of another size, bookkeeping."""
    adapted: list[str] = field(default_factory=list)
    """Loaded after a change: a first convolution folded to another number of channels."""
    random_init: list[str] = field(default_factory=list)
    """Not in the file (or dropped): left as initialised."""


def fit(tensors: dict[str, Tensor], net: Backbone) -> tuple[dict[str, Tensor], Fit]:
    """The state dict for `net` made from the file's tensors, and the fate of each key.

    The prefix (`module.`, `model.`, `backbone.`, ...) and the layout are those that match most keys. The
    first convolution is folded to the network's channels; a classifier of another size is dropped and
    stays random; every classifier is dropped if `net` has none.

    Raises:
        FinetuneError: tensors are missing, left over or of another shape, apart from the above.
    """
    net_state = net.state_dict()
    prefix, layout = find_layout(list(tensors), {*net_state, *classifier_names(net)})
    report = Fit(prefix, layout)
    fitted: dict[str, Tensor] = {}
    unexpected: list[str] = []
    shapes: list[str] = []
    stem = first_conv(net)

    for key, value in tensors.items():
        name = to_timm(layout, key.removeprefix(prefix))
        if not key.startswith(prefix):
            report.dropped.append(key)
        elif name in net_state and name not in fitted and value.shape == net_state[name].shape:
            fitted[name] = value
        elif is_classifier(name, net):
            report.dropped.append(key)
        elif name == stem and name not in fitted and can_fold(value, net_state[name]):
            fitted[name] = fold_channels(value, net_state[name].shape[1])
            report.adapted.append(name)
        elif BOOKKEEPING.search(name):
            report.dropped.append(key)
        elif name in net_state and name not in fitted:
            shapes.append(f"{name} is {tuple(value.shape)}, not {tuple(net_state[name].shape)}")
        else:
            unexpected.append(key)

    report.used = list(fitted)
    report.random_init = [name for name in net_state if name not in fitted]
    mismatched = {line.split(" is ")[0] for line in shapes}
    missing = [
        name
        for name in report.random_init
        if name not in mismatched and not is_classifier(name, net) and not BOOKKEEPING.search(name)
    ]
    if missing or unexpected or shapes:
        sides = [
            f"not in the file: {shorten(missing)}" if missing else "",
            f"only in the file: {shorten(unexpected)}" if unexpected else "",
            f"of another shape: {shorten(shapes, 2)}" if shapes else "",
        ]
        raise FinetuneError("; ".join(filter(None, sides)) + ".")
    return {**{name: net_state[name] for name in report.random_init}, **fitted}, report


def find_layout(keys: list[str], known_names: set[str]) -> tuple[str, str]:
    """The prefix (of up to three words) and the layout that match most keys; the simplest among equals."""
    counts = Counter({"": len(keys)})
    for key in keys:
        parts = key.split(".")
        counts.update("".join(f"{word}." for word in parts[:n]) for n in (1, 2, 3) if n < len(parts))
    best, best_count = ("", "timm"), 0
    for prefix in sorted(counts, key=lambda p: (p.count("."), p)):
        if counts[prefix] <= best_count:
            continue  # cannot win
        names = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        for layout in LAYOUTS:
            n_known = len(known_names & {to_timm(layout, key) for key in names})
            if n_known > best_count:
                best, best_count = (prefix, layout), n_known
    return best


def classifier_names(net: Backbone) -> tuple[str, str]:
    """Names of the classifier, also of a network of 0 classes: the file may have one."""
    return f"{net.classifier_name}.weight", f"{net.classifier_name}.bias"


def is_classifier(name: str, net: Backbone) -> bool:
    return name.startswith(f"{net.classifier_name}.")


def first_conv(net: nn.Module) -> str:
    """Name of the weight that reads the image."""
    return next(f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Conv2d))


def can_fold(value: Tensor, target: Tensor) -> bool:
    return value.ndim == 4 and value.shape[0] == target.shape[0] and value.shape[2:] == target.shape[2:]


def fold_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution for another number of image channels, as in timm: (O, I, h, w) -> (O, channels, h, w).

    One channel takes the sum, so that a gray image gives the same map as its copies in all channels did. More channels
    repeat the old ones, scaled so that the sum over channels stays about the same.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // old), 1, 1)[:, :channels]
    return (repeated * (old / channels)).to(weight.dtype)


STAGE_AND_BLOCK = re.compile(
    r"(?:layer|stages\.|denseblock|block|backbone\.|_features\.)(\d+)\.(?:blocks\.|denselayer|layer\.)?(\d+)\."
)
"""Stage and block in a tensor's name, in all layouts."""


def depths(keys: Iterable[str]) -> tuple[int, ...]:
    """Number of blocks per stage, from the names: (3, 4, 6, 3) for a ResNet-50."""
    blocks = {match.groups() for key in keys if (match := STAGE_AND_BLOCK.search(key))}
    return tuple(count for _, count in sorted(Counter(int(stage) for stage, _ in blocks).items()))


def looks_like(tensors: dict[str, Tensor]) -> str | None:
    """Name of a model that the tensors fit, for an error's hint; only models of the same depths are built."""
    layers = depths(tensors)
    # The plain nets have the same tensors as ResNets with option A, and are rarely meant: they come last.
    for name, model in sorted(MODELS.items(), key=lambda item: (item[0].startswith("plain"), item[0])):
        if layers not in model.args and (len(set(layers)) != 1 or layers[0] not in model.args):
            continue
        with torch.device("meta"):
            net = build(name, num_classes=0)
        try:
            fit(tensors, net)
        except FinetuneError:
            continue
        return name
    return None
