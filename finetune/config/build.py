"""From configuration to objects. What a configuration may build is a short list, and every value is held against the
signature that receives it before anything is read."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from finetune import losses
from finetune.config.allowed import check_contract, check_type, import_trusted, target
from finetune.data.loading.augment import Augment
from finetune.data.loading.sampling import SAMPLERS
from finetune.errors import FinetuneError, MissingExtra, one_of
from finetune.evaluation.classification.assessment import Assessment
from finetune.heads import head_named, neck_named
from finetune.network import NetworkSpec
from finetune.plan import Plan
from finetune.preprocessing import Preprocessing


def check(config: Mapping[str, Any]) -> None:
    """Hold every node of a fit's configuration against what receives it, before any data is read.

    Raises:
        FinetuneError: naming the key, its value and the choices.
    """
    trust = import_trusted(config)
    check_value("seed", config["seed"], int)
    check_value("compile", config["compile"], bool)
    check_data(config["data"])
    if config["data"].get("map"):
        raise FinetuneError(
            f"data.map={config['data']['map']} names classes of a finished model: job=evaluate and job=explain read it."
        )
    check_trainer(config["trainer"])
    _check_targets(config, trust)
    check_part("head", config["head"], head_named)
    if config.get("neck"):  # a run from before the group has none
        check_part("neck", config["neck"], neck_named)
    check_value("backbone.weights", config["backbone"]["weights"], str | None)
    if config["backbone"]["in_channels"] not in (1, 3):
        raise one_of("backbone.in_channels", config["backbone"]["in_channels"], (1, 3))
    with torch.device("meta"):  # shapes without memory: every option is tried, nothing is computed
        network = network_spec(config, num_classes=2).build()
    plan(config).check(list(network.parts()), config["trainer"]["max_epochs"], network.new_parts)
    for kind in ("multilabel", "multiclass"):
        make(config, "loss", _convert_="all", **_kind(config, kind))
    make(config, "schedule")
    _check_optimizer(config)
    augment(config)
    assessment(config)
    extra_callbacks(config, "val/auroc")


def _check_optimizer(config: Mapping[str, Any]) -> None:
    """Build the optimizer of one number: torch checks its own settings, and says what is wrong."""
    try:
        built = make(config, "optimizer")([torch.nn.Parameter(torch.zeros(1))])
    except FinetuneError:
        raise
    except (ValueError, TypeError) as error:
        raise FinetuneError(f"optimizer cannot be built: {error}") from None
    check_type("optimizer", built, torch.optim.Optimizer)


def _check_targets(node: Any, trust: list[str], where: str = "") -> None:
    """Walk the configuration: each `_target_` allowed, each argument known and of its type."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            if not isinstance(node["_target_"], str):
                raise FinetuneError(f"{where}._target_={node['_target_']} must be a name.")
            check_call(where, node, target(node["_target_"], trust, f"{where}._target_"))
        for key, value in node.items():
            if key.startswith("_") and key.endswith("_") and key not in ("_target_", "_partial_", "_convert_"):
                raise FinetuneError(f"{where}.{key} is not taken: only _target_, _partial_ and _convert_ are.")
            _check_targets(value, trust, f"{where}.{key}" if where else key)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _check_targets(value, trust, f"{where}[{i}]")


def check_call(where: str, node: Mapping[str, Any], callee: Callable[..., Any]) -> None:
    """Every key of `node` is an argument of `callee`, and its value has the argument's type."""
    parameters = inspect.signature(callee).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        hints = get_type_hints(callee.__init__ if inspect.isclass(callee) else callee)
    except (NameError, TypeError, AttributeError):  # a library's own annotations that cannot be resolved
        hints = {}
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        if key not in parameters:
            if open_ended:
                continue
            raise unknown_key(where, key, value, list(parameters))
        if key in hints and not _has_target(value):
            check_value(f"{where}.{key}", value, hints[key])


def _has_target(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return (isinstance(value, Mapping) and "_target_" in value) or any(_has_target(v) for v in inner)


def unknown_key(where: str, key: str, value: Any, known: list[str]) -> FinetuneError:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return FinetuneError(f"{where}.{key}={value}: there is no such key.{hint} Known here: {', '.join(known)}.")


def check_value(argument: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the type `hint`.

    Raises:
        FinetuneError: naming argument, value and what is wanted.
    """
    if value is None and hint in (int, float, bool, str):
        raise FinetuneError(f"{argument}=null must be given a value ({hint.__name__}).")
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # a library's annotation that pydantic has no schema for: nothing to hold the value against
        return value
    if hint is bool and not isinstance(value, bool):
        raise FinetuneError(f"{argument}={value} must be true or false.")
    try:
        read = adapter.validate_python(value)
        if type(read) is not type(value) and isinstance(value, bool | float | str) and isinstance(read, int | float):
            adapter.validate_python(value, strict=True)  # 1e3, true and '4' are used as they stand
        return read
    except ValidationError as error:
        wanted = sorted({detail["msg"].removeprefix("Input should be ") for detail in error.errors()})
        raise FinetuneError(f"{argument}={value} should be {' or '.join(wanted)}.") from None


COMMON_DATA: dict[str, Any] = {
    "image_size": int,
    "batch_size": int,
    "num_workers": int,
    "seed": int,
    "fold": int | None,
    "folds": int,
    "val_fraction": float,
    "test_fraction": float,
    "root": str | None,
    "cache": str,
    "map": dict[str | int | bool, str | int | bool | list[str | int | bool]] | None,
}


def check_data(data: Mapping[str, Any]) -> None:
    """The values every data set shares."""
    for key, hint in COMMON_DATA.items():
        check_value(f"data.{key}", data.get(key), hint)
    for key, least in {"image_size": 8, "batch_size": 1, "num_workers": 0, "seed": 0, "folds": 2}.items():
        if data[key] < least:
            raise FinetuneError(f"data.{key}={data[key]} must be {least} or more.")
    for key in ("val_fraction", "test_fraction"):
        if not 0 < data[key] < 1:
            raise FinetuneError(f"data.{key}={data[key]} must lie between 0 and 1.")
    if data["val_fraction"] + data["test_fraction"] >= 1:
        raise FinetuneError(
            f"data.val_fraction={data['val_fraction']} and data.test_fraction={data['test_fraction']} leave nothing to "
            "train on: together they must stay below 1."
        )
    if data["fold"] is not None and not 0 <= data["fold"] < data["folds"]:
        raise FinetuneError(f"data.fold={data['fold']} must lie between 0 and data.folds - 1 = {data['folds'] - 1}.")
    if data["on_bad"] not in ("stop", "skip"):
        raise one_of("data.on_bad", data["on_bad"], ("stop", "skip"))
    if data["sampler"] not in SAMPLERS:
        raise one_of("data.sampler", data["sampler"], SAMPLERS)
    check_value("data.audit.near", data["audit"]["near"], bool)
    if data["audit"]["on_leak"] not in ("stop", "warn"):
        raise one_of("data.audit.on_leak", data["audit"]["on_leak"], ("stop", "warn"))


def check_part(group: str, node: Mapping[str, Any], named: Callable[[str, str], Callable[..., Any]]) -> None:
    """The options of a head or neck, of those that `named` knows; building the network tries their values."""
    check_value(f"{group}.name", node.get("name"), str)
    options = {key: value for key, value in node.items() if key != "name"}
    check_call(group, options, named(node["name"], f"{group}.name"))


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Each key is one of Lightning's Trainer, each value of its type, and the Trainer and a run can do with them."""
    from finetune.config import trainer as settings

    known = list(inspect.signature(settings.L.Trainer.__init__).parameters)[1:]
    hints = get_type_hints(settings.L.Trainer.__init__)
    for key, value in trainer.items():
        if key not in known:
            raise unknown_key("trainer", key, value, known)
        check_value(f"trainer.{key}", value, hints[key])
    settings.check(trainer)


# -- the objects ------------------------------------------------------------------------------------------------------


def make(config: Mapping[str, Any], key: str, node: Any = None, **more: Any) -> Any:
    """What the group `key` (or `node`, which stands at `key`) describes, its classes held against the list.

    Hydra's instantiate, with its wrapping taken off what went wrong inside.
    """
    node = config[key] if node is None else node
    _check_targets(node, list(config.get("trust") or []), key)
    try:
        built = instantiate(node, **more)
        check_contract(key, built)
        return built
    except (InstantiationException, OmegaConfBaseException, TypeError) as error:  # the last of a `_partial_=1`
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, FinetuneError | ImportError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        inner = error.__cause__ or error
        lines = [line.strip() for line in str(inner).splitlines()]
        what = " ".join(lines[1:3]) if "validation error" in lines[0] else lines[0]  # pydantic: a count, then each
        raise FinetuneError(f"{key} cannot be built: {what}") from None


def source(config: Mapping[str, Any]) -> Any:
    """The data source."""
    return make(config, "data.source", config["data"]["source"], _convert_="all")


def plan(config: Mapping[str, Any]) -> Plan:
    return make(config, "finetuning")


def loss(config: Mapping[str, Any], kind: str) -> losses.Loss:
    """The loss, refused where it does not go with the labels."""
    built = make(config, "loss", _convert_="all", **_kind(config, kind))
    losses.check_kind(built, kind)
    return built


def _kind(config: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {"kind": kind} if config["loss"]["_target_"] == "finetune.losses.auto" else {}


def augment(config: Mapping[str, Any]) -> Augment | None:
    """The augmentation of training pictures; None where the group is `none`."""
    image_size = config["data"]["image_size"]
    return make(config, "transforms", image_size=image_size) if config["transforms"] else None


def assessment(config: Mapping[str, Any]) -> Assessment:
    """What is wished of the evaluation."""
    if not config.get("evaluation"):
        return Assessment()  # a run from before the group
    built: Assessment = make(config, "evaluation")
    trust = list(config.get("trust") or [])
    return replace(built, metrics={name: metric(name, path, trust) for name, path in built.metrics.items()})


def metric(name: str, path: Any, trust: list[str]) -> Callable[..., Any]:
    """The function of the user's that `evaluation.metrics.NAME=module.function` names."""
    where = f"evaluation.metrics.{name}"
    if not isinstance(path, str) or "." not in path:
        raise FinetuneError(f"{where}={path} must name a function: {where}=my_module.my_function.")
    function = target(path, trust, where)
    if not callable(function) or inspect.isclass(function):
        raise FinetuneError(f"{where}={path} is not a function of (targets, probabilities).")
    return function


def network_spec(config: Mapping[str, Any], num_classes: int) -> NetworkSpec:
    """The network to build, as plain values."""
    backbone, head, neck = dict(config["backbone"]), dict(config["head"]), dict(config.get("neck") or {})
    name, in_channels, _ = (backbone.pop(key) for key in ("name", "in_channels", "weights"))
    if (precision := config["trainer"]["precision"]) in ("16-true", "bf16-true"):
        if (memory := backbone.get("memory")) in ("lean", "minimal"):
            raise FinetuneError(f"trainer.precision={precision} needs backbone.memory=standard, not {memory}.")
        backbone["memory"] = "standard"  # the norms of lean training keep statistics in 32 bits
    return NetworkSpec(name, num_classes, in_channels, head.pop("name"), backbone, head, neck.pop("name", None), neck)


def preprocessing(config: Mapping[str, Any], of_weights: Preprocessing | None) -> Preprocessing:
    """How pictures reach the network: what the weights were trained with, at the configuration's size."""
    data, channels = config["data"], config["backbone"]["in_channels"]
    base = of_weights or Preprocessing()
    base = base if base.in_channels == channels else base.with_channels(channels)
    fit = data["fit"]
    return replace(
        base, image_size=data["image_size"], fit=fit, crop_fraction=base.crop_fraction if fit == "crop" else 1.0
    )


def loggers(config: Mapping[str, Any], run: Path) -> list[Any]:
    """Lightning loggers beside metrics.csv, writing below the run folder."""
    built = []
    for name, node in (config["logger"] or {}).items():
        filled = {**node, "save_dir": str(run)} if node.get("save_dir") == "auto" else node
        try:
            built.append(make(config, f"logger.{name}", filled))
        except ImportError:
            raise MissingExtra(f"logger={name} needs a package", name) from None
    return built


def extra_callbacks(config: Mapping[str, Any], monitor: str) -> list[Any]:
    """The user's own callbacks; a monitor left open is filled in."""
    from lightning.pytorch.callbacks import Callback

    built = []
    check_value("callbacks.extra", config["callbacks"]["extra"], dict[str, dict[str, Any]] | None)
    for name, node in (config["callbacks"]["extra"] or {}).items():
        filled = dict(node)
        if filled.get("monitor") == "auto":
            filled["monitor"] = monitor
        if filled.get("mode") == "auto":
            filled["mode"] = "min" if str(filled.get("monitor")).endswith("loss") else "max"
        where = f"callbacks.extra.{name}"
        built.append(check_type(where, make(config, where, filled), Callback))
    return built
