"""Your own backbones, necks and heads: checked once, on the meta device, then chosen by name like the built-in ones.

Losses, schedules, sources, callbacks and scores need no registration: a configuration names their class, and
`trust=[your_module]` allows it. EXTENDING.md has an example of each.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from finetune.backbones.base import Backbone
from finetune.backbones.build import MODELS
from finetune.errors import FinetuneError
from finetune.evaluation.answers import ANSWERS, Answers
from finetune.heads import HEADS, NECKS, FeatureInfo
from finetune.heads.features import as_read, gives, head_argument, neck_argument, takes

SIDE = 64
"""Side of the image, in pixels, that a new backbone is run with."""

FEATURES = [FeatureInfo(8 * 2**i, 4 * 2**i) for i in range(4)]
"""The maps that a new neck or head is run with: of strides 4, 8, 16, 32, as in the ImageNet forms."""


def register_backbone(name: str, make: Callable[..., Backbone]) -> None:
    """Let `backbone=name` and `create_model(name)` build a network of your own.

    Args:
        name: what the configuration calls it; a file `backbone/NAME.yaml` in a folder given by --config-dir goes with
            it. A saved model names it too: `finetune.load` needs this call made before.
        make: a subclass of `finetune.backbones.Backbone`, or a `functools.partial` of one, that takes `in_channels`,
            `num_classes` (0 leaves the classifier out) and what its `options` name.

    Raises:
        FinetuneError: the name is taken, or the network does not do what a backbone must; the message says what.
    """
    where = f"register_backbone({name!r})"
    _check_name(where, name, MODELS, make)
    kind = make.func if isinstance(make, partial) else make
    if not (isinstance(kind, type) and issubclass(kind, Backbone)):
        raise FinetuneError(f"{where}: {_name_of(kind)} must be a subclass of finetune.backbones.Backbone.")
    for channels in (1, 3):
        with torch.device("meta"):
            net = _called(where, make, in_channels=channels, num_classes=0)
            _check_backbone(where, net, channels)
    MODELS[name] = partial(make)


def register_neck(name: str, make: Callable[..., nn.Module]) -> None:
    """Let `neck=name` put a neck of your own between backbone and head.

    Args:
        name: what the configuration calls it; a file `neck/NAME.yaml` in a folder given by --config-dir goes with it.
            A saved model names it too: `finetune.load` needs this call made before.
        make: called with a list of `finetune.heads.FeatureInfo` (num_chs, reduction), one for each map that the neck
            reads, and the options of the file. The module turns the last map (N, C, H, W), or with the class attribute
            `takes = "maps"` the list of all maps, into a map or a list of maps; its attribute `feature_info` lists the
            FeatureInfo of each.

    Raises:
        FinetuneError: the name is taken, or the module does not do what a neck must; the message says what.
    """
    where = f"register_neck({name!r})"
    _check_name(where, name, NECKS, make)
    with torch.device("meta"):
        neck = _called(where, make, neck_argument(make, FEATURES))
        _check_takes(where, make, neck)
        infos = getattr(neck, "feature_info", None)
        if not isinstance(infos, list) or not infos or not all(isinstance(info, FeatureInfo) for info in infos):
            raise FinetuneError(
                f"{where}: {_name_of(make)} must have feature_info, a list of FeatureInfo, one per map."
            )
        made = _called_on_maps(where, neck, neck)
        maps = [made] if isinstance(made, torch.Tensor) else made
        if not isinstance(maps, list) or len(maps) != len(infos):
            actual = f"{len(maps)} maps" if isinstance(maps, list) else type(made).__name__
            raise FinetuneError(
                f"{where}: forward must return one map per entry of feature_info, {len(infos)}, not {actual}."
            )
        for number, (info, map_) in enumerate(zip(infos, maps, strict=True)):
            _check_shape(where, f"map {number} of forward", map_, _shape(info))
    NECKS[name] = make


def register_head(name: str, make: Callable[..., nn.Module]) -> None:
    """Let `head=name` build a head of your own.

    Args:
        name: what the configuration calls it; a file `head/NAME.yaml` in a folder given by --config-dir goes with it.
        make: called with the channels of the last map, the number of classes and the options of the file. The module
            turns the last map (N, C, H, W) into logits (N, K); its method `features` gives what its last layer reads
            (N, D). With the class attribute `takes = "maps"` both read the list of all maps instead, and `make` is
            called with a list of `finetune.heads.FeatureInfo` (num_chs, reduction) instead of the channels. With the
            class attribute `gives = "regions"` it returns logits for each pixel (N, K, H, W), and both methods take the
            size (H, W) of the images besides: `finetune.heads.SegmentHead` has what such heads share.

    Raises:
        FinetuneError: the name is taken, or the module does not do what a head must; the message says what.
    """
    where = f"register_head({name!r})"
    _check_name(where, name, HEADS, make)
    with torch.device("meta"):
        head = _called(where, make, head_argument(make, FEATURES), 3)
        _check_takes(where, make, head)
        if not callable(getattr(head, "features", None)):
            raise FinetuneError(f"{where}: {_name_of(make)} has no method features(map) -> (N, D).")
        if gives(head) != gives(make):
            raise FinetuneError(f"{where}: {_name_of(make)} must have gives = {gives(head)!r}, as what it makes.")
        read, size = takes(head), (2 * SIDE, 2 * SIDE)
        more, shape = ((size,), (2, 3, *size)) if gives(head) == "regions" else ((), (2, 3))
        if gives(head) == "detections":  # a list of boxes, which the images alone decide
            more = (size,)
        else:
            _check_shape(where, f"forward({read})", _called_on_maps(where, head, head, *more), shape)
        _check_shape(where, f"features({read})", _called_on_maps(where, head, head.features, *more), (2, None))
    HEADS[name] = make


def register_task(name: str, answers: type[Answers]) -> None:
    """Let runs and model files of the task `name` be read.

    Args:
        name: what conf/task/NAME.yaml and the answers call it. `finetune.load` needs this call made before.
        answers: a frozen dataclass as `finetune.evaluation.answers.Answers` describes it.

    Raises:
        FinetuneError: the name is taken, or the class lacks something; the message says what.
    """
    where = f"register_task({name!r})"
    if not isinstance(name, str) or not name.isidentifier():
        raise FinetuneError(f"{where}: a name has letters, digits and _ only, so that it can be typed as a choice.")
    label, registered = _name_of(answers), ANSWERS.get(name, answers)
    if (registered_label := registered if isinstance(registered, str) else _name_of(registered)) != label:
        raise FinetuneError(f"{where}: this name stands for {registered_label} already. Choose another.")
    if not is_dataclass(answers) or "classes" not in answers.__dataclass_fields__:
        raise FinetuneError(f"{where}: {label} must be a dataclass with the field classes.")
    members = [name for name in (*vars(Answers), *Answers.__annotations__) if not name.startswith("_")]
    if missing := [member for member in members if member != "classes" and not hasattr(answers, member)]:
        raise FinetuneError(f"{where}: {label} has no {', '.join(missing)}.")
    if answers.task != name:
        raise FinetuneError(f"{where}: {label}.task must be {name!r}, not {answers.task!r}.")
    ANSWERS[name] = answers


def _called_on_maps(where: str, part: nn.Module, callee: Callable[..., Any], *more: Any) -> Any:
    """What `callee` of the neck or head `part` gives for the maps that it reads, which the backbone's backward needs
    unchanged."""
    maps = [torch.empty(_shape(info)) for info in FEATURES]
    result = _called(where, callee, as_read(part, maps), *more)
    if any(x._version for x in maps):
        raise FinetuneError(f"{where}: {_name_of(type(part))} changes the map that it reads in place (inplace=True?).")
    return result


def _shape(info: FeatureInfo) -> tuple[int, int, int, int]:
    """Shape of this map for two images of twice SIDE, so that the last map is not tiny."""
    side = -(-2 * SIDE // info.reduction)
    return 2, info.num_chs, side, side


def _check_takes(where: str, make: object, made: nn.Module) -> None:
    if takes(made) != takes(make):
        raise FinetuneError(
            f"{where}: {_name_of(make)} must have takes = {takes(made)!r}, as the module that it makes."
        )


def _check_name(where: str, name: object, taken: dict[str, Any], make: object) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise FinetuneError(f"{where}: a name has letters, digits and _ only, so that it can be typed as a choice.")
    if name in taken and _name_of(taken[name]) != _name_of(make):
        raise FinetuneError(f"{where}: this name stands for {_name_of(taken[name])} already. Choose another.")


def _name_of(made: Any) -> str:
    made = made.func if isinstance(made, partial) else made
    return f"{getattr(made, '__module__', '?')}.{getattr(made, '__qualname__', type(made).__name__)}"


def _called(where: str, callee: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result of `callee`; an exception inside becomes one sentence that names it."""
    try:
        return callee(*args, **options)
    except FinetuneError:
        raise
    except Exception as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise FinetuneError(f"{where}: {_name_of(callee)} fails with {type(error).__name__}: {line}") from error


def _check_backbone(where: str, net: Backbone, channels: int) -> None:
    names = list(_called(where, net.parts))
    if names != ["stem", *(f"stage{i}" for i in range(1, len(names)))] or len(names) < 2:
        raise FinetuneError(f"{where}: parts() must name stem, stage1, stage2, ... in this order, not {names}.")
    num_parts = Counter(id(t) for part in net.parts().values() for m in part for t in [*m.parameters(), *m.buffers()])
    for tensor_name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if num_parts[id(tensor)] != 1:
            raise FinetuneError(f"{where}: {tensor_name} lies in {num_parts[id(tensor)]} parts(), it must lie in one.")
    for attribute in ("num_features", "feature_info"):
        if not hasattr(net, attribute):
            raise FinetuneError(f"{where}: the network has no {attribute}.")
    images = torch.empty(2, channels, SIDE, SIDE)
    last = _called(where, net.forward_features, images)
    _check_shape(where, "forward_features(images)", last, (2, net.num_features, None, None))
    maps = _called(where, net.forward_stages, images)
    if len(net.feature_info) < len(maps):
        raise FinetuneError(f"{where}: feature_info has {len(net.feature_info)} entries for {len(maps)} stages.")
    for info, stage in zip(net.feature_info[-len(maps) :], maps, strict=True):
        side = -(-SIDE // info["reduction"])
        _check_shape(where, f"the map {info['module']} of feature_info", stage, (2, info["num_chs"], side, side))


def _check_shape(where: str, what: str, value: Any, shape: tuple[int | None, ...]) -> None:
    actual = tuple(value.shape) if isinstance(value, torch.Tensor) else None
    if (
        actual is None
        or len(actual) != len(shape)
        or any(w not in (None, g) for w, g in zip(shape, actual, strict=True))
    ):
        expected = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise FinetuneError(f"{where}: {what} must be a tensor {expected}, not {actual or type(value).__name__}.")
