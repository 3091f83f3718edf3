"""From configuration to objects: every class is on a short list, and every value is compared with the signature that
receives it, before any data are read."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from finetune.config import data_targets
from finetune.config.allowed import check_contract, check_type, import_trusted, target
from finetune.config.settings import HeadSettings, NeckSettings, Node, Settings, parse
from finetune.config.values import check_call
from finetune.data.loading.augment import Augment
from finetune.data.loading.dataset import CLASSES_ONLY
from finetune.data.loading.mixing import Mixing
from finetune.errors import FinetuneError, MissingExtra
from finetune.heads import check_gives, head_named, neck_named
from finetune.network import NetworkSpec
from finetune.plan import Plan
from finetune.preprocessing import Preprocessing
from finetune.weights.sources import may_fill_parts


def check(config: Mapping[str, Any]) -> Settings:
    """The settings of a fit, each node of its configuration compared with what receives it, before any data is read.

    Raises:
        FinetuneError: naming the key, its value and the choices.
    """
    trust = import_trusted(config)
    settings = parse(config)
    if settings.data.map:
        raise FinetuneError(
            f"data.map={settings.data.map} names classes of a finished model: job=evaluate and job=explain read it."
        )
    from finetune.config import trainer  # Lightning takes a second, and only a fit needs it here

    trainer.check(settings.trainer)
    _check_targets(settings.resolved, trust)
    _check_source(settings)
    check_part("head", settings.head, head_named)
    if settings.neck.name or settings.neck.options:
        check_part("neck", settings.neck, neck_named)
    check_gives(settings.head.name, task(settings).gives, "head")
    with torch.device("meta"):  # shapes without memory: every option is tried, nothing is computed
        network = network_spec(settings, num_classes=2).build()
    # which parts a file fills is known once it is read: steps/training.make_network checks the plan again
    filled = network.new_parts if may_fill_parts(settings.backbone.weights) else ()
    plan(settings).check(list(network.parts()), settings.trainer.max_epochs, network.new_parts, filled)
    schedule(settings)
    check_type("optimizer", _optimizer_of_one_number(settings), torch.optim.Optimizer)
    augment(settings)
    if (average := averaging(settings)) is not None:
        average.check(settings.trainer.max_epochs, settings.trainer.max_steps)
    _check_mixing(settings)
    extra_callbacks(settings, "val/loss", higher_is_better=False)
    return settings


def _check_mixing(settings: Settings) -> None:
    """Mixing and progressive sizes: their values, and that there are classes to learn."""
    data, progressive = settings.data, settings.data.progressive.schedule
    if progressive is not None:
        progressive.check(data.image_size, settings.trainer.max_epochs)
    if mixing(settings) is None and progressive is None:
        return
    if data.target != "class":
        raise FinetuneError(
            f"{CLASSES_ONLY}, not for data.target={data.target}. Set mixing=none and data.progressive.epochs=0."
        )


def _optimizer_of_one_number(settings: Settings) -> Any:
    """The optimizer of one number: torch checks its settings and reports errors."""
    try:
        return optimizer(settings)([torch.nn.Parameter(torch.zeros(1))])
    except FinetuneError:
        raise
    except (ValueError, TypeError) as error:
        raise FinetuneError(f"optimizer cannot be built: {error}") from None


def _check_targets(node: Any, trust: list[str], where: str = "") -> None:
    """Walk the configuration: each `_target_` allowed, each argument known and of its type."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            if not isinstance(node["_target_"], str):
                raise FinetuneError(f"{where}._target_={node['_target_']} must be a name.")
            options = {key: value for key, value in node.items() if (where, key) != ("task", "name")}
            check_call(where, options, target(node["_target_"], trust, f"{where}._target_"))
        for key, value in node.items():
            if key.startswith("_") and key.endswith("_") and key not in ("_target_", "_partial_", "_convert_"):
                raise FinetuneError(f"{where}.{key} is not taken: only _target_, _partial_ and _convert_ are.")
            _check_targets(value, trust, f"{where}.{key}" if where else key)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _check_targets(value, trust, f"{where}[{i}]")


def check_part(group: str, part: HeadSettings | NeckSettings, named: Callable[[str, str], Callable[..., Any]]) -> None:
    """The options of a head or neck, of those that `named` knows; building the network tries their values."""
    check_call(group, part.options, named(str(part.name), f"{group}.name"))


# -- the objects ------------------------------------------------------------------------------------------------------


def make(settings: Settings, key: str, node: Node, **more: Any) -> Any:
    """What `node`, which stands at `key`, describes, its classes compared with the list of what may be built.

    Hydra's instantiate, but with the original error instead of its wrapper.
    """
    _check_targets(node, settings.trust, key)
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


def source(settings: Settings) -> Any:
    """The data source."""
    _check_source(settings)
    return make(settings, "data.source", source_node(settings.data.arguments, settings.trust), _convert_="all")


def _check_source(settings: Settings) -> None:
    """The settings of data that the source takes have the types of its arguments."""
    node, source = source_node(settings.data.arguments, settings.trust), settings.data.source
    receiver = target(node["_target_"], settings.trust, "data.source._target_")
    data_targets.check(settings.data.target, receiver, settings.data.name, settings.trust)
    check_call("data", {key: value for key, value in node.items() if key not in source}, receiver)


def source_node(data: Mapping[str, Any], trust: list[str]) -> Node:
    """The node of the source among the settings `data`, with every missing argument taken from the setting
    of the same name."""
    node = data["source"]
    if "_target_" not in node:
        raise FinetuneError("data.source has no _target_, the class that lists the images.")
    parameters = inspect.signature(target(node["_target_"], trust, "data.source._target_")).parameters
    return {**{key: value for key, value in data.items() if key in parameters}, **node}


def plan(settings: Settings) -> Plan:
    """The plan, with shares of the training as epochs."""
    plan: Plan = make(settings, "finetuning", settings.finetuning)
    return plan.in_epochs(settings.trainer.max_epochs, settings.trainer.max_steps)


def has_shares(settings: Settings) -> bool:
    """Whether a phase of the plan begins at a share of all epochs."""
    plan: Plan = make(settings, "finetuning", settings.finetuning)
    return plan.has_shares


def optimizer(settings: Settings) -> Any:
    """Makes the optimizer of groups of parameters."""
    return make(settings, "optimizer", settings.optimizer)


def schedule(settings: Settings) -> Any:
    return make(settings, "schedule", settings.schedule)


def averaging(settings: Settings) -> Any:
    """The callback that averages the weights; None where the group is `none`."""
    return make(settings, "averaging", settings.averaging) if settings.averaging else None


def task(settings: Settings) -> Any:
    """The task: the class of the group `task`, made of the settings and the options of the group.

    Raises:
        FinetuneError: no such class, an option that it does not take, or settings that it refuses.
    """
    node = settings.task
    if "_target_" not in node:
        raise FinetuneError("task has no _target_, the class that says what is learned.")
    kind = target(node["_target_"], settings.trust, "task._target_")
    options = {key: value for key, value in node.items() if key not in ("_target_", "name")}
    check_call("task", options, kind)
    built = kind(settings, **options)
    check_contract("task", built)
    if built.name != node.get("name", built.name):
        raise FinetuneError(f"task.name={node['name']}, but {node['_target_']} is called {built.name}.")
    return built


def augment(settings: Settings) -> Augment | None:
    """The augmentation of training images; None where the group is `none`."""
    if not settings.transforms:
        return None
    return make(settings, "transforms", settings.transforms, image_size=settings.data.image_size)


def mixing(settings: Settings) -> Mixing | None:
    """The mixing of training images; None where the group is `none`."""
    return make(settings, "mixing", settings.mixing) if settings.mixing else None


def metric(name: str, path: Any, trust: list[str]) -> Callable[..., Any]:
    """The function of the user's that `evaluation.metrics.NAME=module.function` names."""
    where = f"evaluation.metrics.{name}"
    if not isinstance(path, str) or "." not in path:
        raise FinetuneError(f"{where}={path} must name a function: {where}=my_module.my_function.")
    function = target(path, trust, where)
    if not callable(function) or inspect.isclass(function):
        raise FinetuneError(f"{where}={path} is not a function of (targets, probabilities).")
    return function


def network_spec(settings: Settings, num_classes: int) -> NetworkSpec:
    """The network to build, as plain values."""
    backbone, head, neck, options = settings.backbone, settings.head, settings.neck, dict(settings.backbone.options)
    trainer = settings.trainer
    half = f"trainer.precision={trainer.precision}" if trainer.precision in ("16-true", "bf16-true") else None
    if reason := half or ("trainer.sync_batchnorm=true" if trainer.sync_batchnorm else None):
        if (memory := options.get("memory")) in ("lean", "minimal"):
            raise FinetuneError(f"{reason} needs backbone.memory=standard, not {memory}.")
        options["memory"] = "standard"  # the norms of lean training keep statistics in 32 bits, of one process
    return NetworkSpec(
        backbone.name, num_classes, backbone.in_channels, head.name, options, head.options, neck.name, neck.options
    )


def preprocessing(settings: Settings, of_weights: Preprocessing | None) -> Preprocessing:
    """How images reach the network: what the weights were trained with, at the configuration's size."""
    data, channels = settings.data, settings.backbone.in_channels
    base = of_weights or Preprocessing()
    base = base if base.in_channels == channels else base.with_channels(channels)
    crop_fraction = base.crop_fraction if data.fit == "crop" else 1.0
    return replace(base, image_size=data.image_size, fit=data.fit, crop_fraction=crop_fraction)


def loggers(settings: Settings, run: Path) -> list[Any]:
    """Lightning loggers beside metrics.csv, writing below the run folder."""
    built = []
    for name, node in (settings.logger or {}).items():
        filled = {**node, "save_dir": str(run)} if node.get("save_dir") == "auto" else dict(node)
        if filled.get("tracking_uri") == "auto":
            filled["tracking_uri"] = f"sqlite:///{run.resolve()}/mlflow.db"
        try:
            built.append(make(settings, f"logger.{name}", filled))
        except ImportError:
            raise MissingExtra(f"logger={name} needs a package", name) from None
    return built


def extra_callbacks(settings: Settings, monitor: str, *, higher_is_better: bool) -> list[Any]:
    """The user's own callbacks; a monitor left open is filled in, and whether its higher values are better."""
    from lightning.pytorch.callbacks import Callback

    built = []
    for name, node in (settings.callbacks.extra or {}).items():
        filled = dict(node)
        if filled.get("monitor") == "auto":
            filled["monitor"] = monitor
        if filled.get("mode") == "auto":
            lower = str(filled.get("monitor")).endswith("loss")
            filled["mode"] = "max" if (higher_is_better if filled.get("monitor") == monitor else not lower) else "min"
        where = f"callbacks.extra.{name}"
        built.append(check_type(where, make(settings, where, filled), Callback))
    return built
