"""The groups of a job's settings that all jobs share, with their types and bounds.

Each class owns the keys of one group. Keys of others (options of a data set, backbone, head, neck or
Lightning's Trainer) are collected in `options`. A mapping with `_target_` stays a node: config.build builds it.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import model_validator

from finetune.config.groups import Group, OpenGroup
from finetune.data.loading.progressive import Progressive
from finetune.data.loading.sampling import SAMPLERS
from finetune.errors import FinetuneError, one_of

Node = dict[str, Any]
"""What config.build makes an object of."""
Share = Annotated[float, Gt(0), Lt(1)]
ClassName = str | int | bool  # as YAML reads it


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
