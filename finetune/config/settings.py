"""The settings of a job with their types and bounds. Defaults and descriptions are in conf/.

Each class owns the keys of one group. Keys of others (options of a data set, backbone, head, neck or
Lightning's Trainer) are collected in `options`. A mapping with `_target_` stays a node: config.build builds it.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, ValidationError, model_validator

from finetune.config.groups import Group, OpenGroup, PathText
from finetune.config.setting_errors import explained
from finetune.data.loading.progressive import Progressive
from finetune.data.loading.sampling import SAMPLERS
from finetune.errors import FinetuneError, MissingExtra, one_of
from finetune.tiles import Tiling
from finetune.tuning.space import Entry, read

Node = dict[str, Any]
"""What config.build makes an object of."""
Share = Annotated[float, Gt(0), Lt(1)]
ClassName = str | int | bool  # as YAML reads it
CLASSIFICATION = {"_target_": "finetune.tasks.classification.Classification", "name": "classify"}
"""The task of configurations from before there were others."""


class AuditSettings(Group):
    """data.audit"""

    on_leak: Literal["stop", "warn"]
    near: bool


class ProgressiveSettings(Group):
    """data.progressive"""

    epochs: Annotated[int, Ge(0)] = 0
    start: Share = 0.5
    multiple: Annotated[int, Ge(1)] = 32

    @property
    def schedule(self) -> Progressive | None:
        """None where every epoch has full size."""
        return Progressive(self.epochs, self.start, self.multiple) if self.epochs else None


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
    versions: Annotated[int, Ge(1)] | None = None
    progressive: ProgressiveSettings = ProgressiveSettings()
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
    trust: list[str] = Field(default_factory=list)
    task: Node = Field(default_factory=lambda: dict(CLASSIFICATION))
    data: DataSettings
    backbone: BackboneSettings
    neck: NeckSettings = NeckSettings()
    head: HeadSettings
    transforms: Node
    mixing: Node = Field(default_factory=dict)
    loss: Node
    optimizer: Node
    schedule: Node
    finetuning: Node
    averaging: Node = Field(default_factory=dict)
    teacher: PathText | None = None
    teacher_weight: Annotated[float, Gt(0), Le(1)] = 0.5
    teacher_temperature: Annotated[float, Gt(0)] = 2.0
    trainer: TrainerSettings
    logger: dict[str, Node] | None
    callbacks: CallbackSettings
    evaluation: Node = Field(default_factory=dict)


class FitSettings(Settings):
    """job=fit"""

    find: list[Literal["lr", "batch_size"]] = Field(default_factory=list)


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
    root: PathText | None
    output: str | None
    batch_size: Annotated[int, Ge(1)]
    fast: bool
    operating_point: str | None
    tile: int | None
    overlap: float
    heatmaps: PathText | None
    finding: str | None

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut into tiles; None for whole images. Raises a FinetuneError where they cannot be."""
        return Tiling.of(self.tile, self.overlap)


class ExportSettings(Settings):
    """job=export"""

    model: str
    output: str | None
    format: Literal["onnx", "torch_export", "torchscript"]
    precision: Literal["fp32", "int8"]
    size: Literal["any", "square"]
    images: Annotated[int, Ge(1)]
    input: PathText | list[PathText] | None
    split: Literal["val", "test"]


class CompareSettings(Settings):
    """job=compare"""

    runs: str | list[str]
    split: str


class SoupSettings(Settings):
    """job=soup"""

    runs: str | list[str]
    method: Literal["greedy", "uniform"]


class PushSettings(Settings):
    """job=push"""

    model: PathText
    to: str
    private: bool
    licence: str | None
    dataset: str | None
    dry_run: bool


class TuneSettings(Settings):
    """job=tune"""

    search: dict[str, Any]
    study: PathText
    storage: str | None
    trials: Annotated[int, Ge(1)]
    startup: Annotated[int, Ge(1)]
    pruner: Literal["median", "hyperband", "none"]
    warmup: Annotated[int, Ge(0)]
    top: Annotated[int, Ge(1)]
    repeats: Annotated[int, Ge(0)]
    keep_checkpoints: bool

    @model_validator(mode="after")
    def check(self) -> "TuneSettings":
        if find_spec("optuna") is None:
            raise MissingExtra("job=tune needs the package optuna", "tune")
        read(self.search)
        if not re.fullmatch(r"[\w][\w.+-]*", self.study):
            raise FinetuneError(f"study={self.study} names a folder: use letters, digits, and any of . _ + -")
        if self.storage is not None and "://" not in self.storage:
            raise FinetuneError(
                f"storage={self.storage} is not the URL of a database, such as sqlite:///FILE.db or postgresql://HOST/NAME."
            )
        return self

    @property
    def space(self) -> dict[str, Entry]:
        """What is varied."""
        return read(self.search)


JOBS: dict[str, type[Settings]] = {
    "fit": FitSettings,
    "evaluate": EvaluateSettings,
    "explain": ExplainSettings,
    "predict": PredictSettings,
    "preview": PreviewSettings,
    "export": ExportSettings,
    "compare": CompareSettings,
    "soup": SoupSettings,
    "push": PushSettings,
    "tune": TuneSettings,
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
        raise explained(error, group, config) from None
