"""The settings of a job with their types and bounds. Defaults and descriptions are in conf/.

Each class owns the keys of one group. Keys of others (options of a data set, backbone, head, neck or
Lightning's Trainer) are collected in `options`. A mapping with `_target_` stays a node: config.build builds it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from finetune.config.values import type_error_of, unknown_key
from finetune.data.loading.sampling import SAMPLERS
from finetune.errors import FinetuneError, one_of

Node = dict[str, Any]
"""What config.build makes an object of."""
Share = Annotated[float, Gt(0), Lt(1)]
ClassName = str | int | bool  # as YAML reads it


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


PathText = Annotated[str, BeforeValidator(_as_text)]  # a folder may be called 2024


class Group(BaseModel):
    """Immutable settings with exactly these keys and strict types: 1e3 is no integer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OpenGroup(Group):
    """Settings with further keys, collected in `options`."""

    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def gather(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        declared = {key: value for key, value in values.items() if key in cls.model_fields and key != "options"}
        return {**declared, "options": {key: value for key, value in values.items() if key not in declared}}

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys and values, with those of `options`."""
        declared = {name: getattr(self, name) for name in type(self).model_fields if name != "options"}
        return {**declared, **self.options}


class AuditSettings(Group):
    """data.audit"""

    on_leak: Literal["stop", "warn"]
    near: bool


class DataSettings(OpenGroup):
    """Settings of every data set; `options` are those of the chosen one."""

    name: str
    root: str | None
    reference: str | None = None
    image_size: Annotated[int, Ge(8)]
    fit: str
    batch_size: Annotated[int, Ge(1)]
    num_workers: Annotated[int, Ge(0)]
    seed: Annotated[int, Ge(0)]
    val_fraction: Share
    test_fraction: Share
    folds: Annotated[int, Ge(2)]
    fold: int | None
    sampler: str
    views: Annotated[int, Ge(1)] | None = None
    map: dict[ClassName, ClassName | list[ClassName]] | None = None
    cache: str
    on_bad: Literal["stop", "skip"]
    target: Literal["class", "mask", "boxes"] = "class"
    audit: AuditSettings
    source: Node

    @model_validator(mode="after")
    def check(self) -> "DataSettings":
        if self.sampler not in SAMPLERS:
            raise one_of("data.sampler", self.sampler, SAMPLERS)
        if self.val_fraction + self.test_fraction >= 1:
            raise FinetuneError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} leave nothing to "
                "train on: together they must stay below 1."
            )
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise FinetuneError(f"data.fold={self.fold} must lie between 0 and data.folds - 1 = {self.folds - 1}.")
        return self


class BackboneSettings(OpenGroup):
    """Settings of every backbone; `options` are those of its family."""

    name: str
    weights: str | None
    in_channels: Literal[1, 3]


class HeadSettings(OpenGroup):
    """A head by its name."""

    name: str


class NeckSettings(OpenGroup):
    """A neck by its name; None for no neck."""

    name: str | None = None


class TrainerSettings(OpenGroup):
    """Lightning's Trainer, whose further arguments are `options`. config.trainer lists the unsupported ones."""

    max_epochs: int
    max_steps: int
    max_time: Any
    devices: int | str | list[int] | None
    accelerator: str
    num_nodes: int
    sync_batchnorm: bool = False
    precision: Any
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    gradient_clip_algorithm: str | None
    deterministic: bool | str | None
    benchmark: bool | None
    check_val_every_n_epoch: int | None
    num_sanity_val_steps: int | None
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    log_every_n_steps: int | None
    enable_progress_bar: bool | None
    enable_model_summary: bool | None
    detect_anomaly: bool
    profiler: str | None

    @property
    def set_arguments(self) -> dict[str, Any]:
        """The arguments that have a value."""
        return {key: value for key, value in self.arguments.items() if value is not None}


class CallbackSettings(Group):
    """Checkpoints, and callbacks of the user's by name."""

    keep_all_checkpoints: bool = False
    extra: dict[str, Node] | None


class Settings(Group):
    """What every job has."""

    resolved: dict[str, Any]
    """The whole configuration as plain values: what config.yaml, checkpoints and other ranks get."""
    job: str
    seed: int
    compile: bool
    frozen_cache: Literal["auto", "on", "half", "off"] = "auto"
    debug_run: bool = False
    demo: bool
    trust: list[str] = []
    task: Node = {"_target_": "finetune.tasks.classification.Classification", "name": "classify"}
    data: DataSettings
    backbone: BackboneSettings
    neck: NeckSettings = NeckSettings()
    head: HeadSettings
    transforms: Node
    loss: Node
    optimizer: Node
    schedule: Node
    finetuning: Node
    trainer: TrainerSettings
    logger: dict[str, Node] | None
    callbacks: CallbackSettings
    evaluation: Node = {}


class FitSettings(Settings):
    """job=fit"""


class PreviewSettings(Settings):
    """job=preview"""

    steps: Annotated[int, Ge(1)]


Split = Literal["train", "val", "test", "all"]


class EvaluateSettings(Settings):
    """job=evaluate"""

    model: str
    split: Split | None
    prevalence: Any
    predictions: str | None
    labels: str | None
    image: str | None
    label: str | list[str] | None
    patient: str | None


class ExplainSettings(Settings):
    """job=explain"""

    model: str
    split: Split | None
    images: PathText | list[PathText] | None
    method: str
    finding: str | None
    worst: Annotated[int, Ge(0)]
    located: Annotated[int, Ge(0)]
    sanity: bool


class PredictSettings(Settings):
    """job=predict"""

    model: str
    input: PathText | list[PathText]
    output: str | None
    batch_size: Annotated[int, Ge(1)]


class CompareSettings(Settings):
    """job=compare"""

    runs: str | list[str]
    split: str


JOBS: dict[str, type[Settings]] = {
    "fit": FitSettings,
    "evaluate": EvaluateSettings,
    "explain": ExplainSettings,
    "predict": PredictSettings,
    "preview": PreviewSettings,
    "compare": CompareSettings,
}
"""Job -> its settings."""


def parse(config: Mapping[str, Any]) -> Settings:
    """The settings of a job from its resolved configuration.

    Raises:
        FinetuneError: a key that does not exist, or a value of another type or beyond its bounds; names key and value.
    """
    job = config.get("job")
    if job not in JOBS:
        raise one_of("job", job, JOBS)
    group = JOBS[str(job)]
    try:
        return group.model_validate({**config, "resolved": dict(config)})
    except ValidationError as error:
        raise _explained(error, group, config) from None


def _explained(error: ValidationError, group: type[BaseModel], config: Mapping[str, Any]) -> FinetuneError:
    """The first of pydantic's errors in terms of the key, its value and the choices."""
    first = error.errors()[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), FinetuneError):
        return cause
    path, value, known = _locate(first["loc"], group, config)
    key, kind = ".".join(path), first["type"]
    if kind == "extra_forbidden":
        return unknown_key(".".join(path[:-1]), path[-1], value, known)
    if kind == "missing":
        return FinetuneError(f"{key} has no value.")
    key_errors = [detail for detail in error.errors() if detail["loc"][: len(path)] == first["loc"][: len(path)]]
    choices = [choice for detail in key_errors for choice in _choices(detail)]
    if choices:
        return one_of(key, value, choices)
    bounds = {"greater_than_equal": "must be {ge} or more", "greater_than": "must lie between 0 and 1"}
    bounds["less_than"] = bounds["greater_than"]
    if kind in bounds:
        return FinetuneError(f"{key}={value} {bounds[kind].format(**first['ctx'])}.")
    return type_error_of(key, value, key_errors)


def _locate(location: tuple[int | str, ...], group: Any, config: Mapping[str, Any]) -> tuple[list[str], Any, list[str]]:
    """The dotted key of an error, its value, and the keys known beside it."""
    path: list[str] = []
    value: Any = config
    known: list[str] = []
    for name in location:
        if not (isinstance(group, type) and issubclass(group, BaseModel)):
            break  # within a value
        known = [key for key in group.model_fields if key not in ("resolved", "options")]
        path.append(str(name))
        value = value.get(name) if isinstance(value, Mapping) else None
        group = group.model_fields[str(name)].annotation if name in group.model_fields else None
    return path, value, known


def _choices(detail: Any) -> list[str]:
    """The values that a Literal has."""
    if detail["type"] != "literal_error":
        return []
    return [part.strip(" '") for part in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]
