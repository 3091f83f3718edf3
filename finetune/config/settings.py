"""The settings of each job with their types and bounds; setting_groups has the groups that all share. Defaults and
descriptions are in conf/.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field, ValidationError, model_validator

from finetune.config.groups import Group, PathText
from finetune.config.setting_errors import explained
from finetune.config.setting_groups import AuditSettings as AuditSettings
from finetune.config.setting_groups import (
    BackboneSettings,
    CallbackSettings,
    DataSettings,
    HeadSettings,
    NeckSettings,
    Node,
    TrainerSettings,
)
from finetune.config.setting_groups import ProgressiveSettings as ProgressiveSettings
from finetune.data.decoding.images import MAX_PIXELS
from finetune.errors import FinetuneError, MissingExtra, one_of
from finetune.tiles import Tiling
from finetune.tuning.space import Entry, read

CLASSIFICATION = {"_target_": "finetune.tasks.classification.Classification", "name": "classify"}
"""The task of configurations from before there were others."""
SERVE_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Of the extra `serve`, as they are imported."""


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


class ServeSettings(Settings):
    """job=serve"""

    model: str
    host: str
    port: Annotated[int, Ge(0), Le(65535)]
    hosts: list[str]
    token_file: PathText | None
    max_mb: Annotated[float, Gt(0)]
    max_megapixels: Annotated[float, Gt(0), Le(MAX_PIXELS / 1e6)]
    timeout: Annotated[float, Gt(0)]
    max_waiting: Annotated[int, Ge(1)]
    max_batch: Annotated[int, Ge(1)]
    max_wait_ms: Annotated[float, Ge(0)]
    decoders: Annotated[int, Ge(1)]
    threads: Annotated[int, Ge(1)] | None

    @model_validator(mode="after")
    def check(self) -> "ServeSettings":
        if missing := [name for name in SERVE_PACKAGES if find_spec(name) is None]:
            raise MissingExtra(f"job=serve needs the packages {', '.join(missing)}", "serve")
        return self


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
    "serve": ServeSettings,
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
