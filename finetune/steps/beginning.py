"""What a training begins with, before an image is decoded: table, task, teacher, network with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.config import build
from finetune.config.settings import Settings
from finetune.data.table import SampleTable
from finetune.model_file import Model
from finetune.network import Network, NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.runs import data_record
from finetune.runs.folder import RunFolder
from finetune.steps import distillation, prepare, training
from finetune.steps.task import Task


@dataclass(frozen=True)
class Beginning:
    """The parts of a training, made from its settings."""

    table: SampleTable
    """Split, not yet audited."""
    task: Task
    teacher: Model | None
    spec: NetworkSpec
    network: Network
    preprocessing: Preprocessing
    weights: dict[str, Any]
    """Where the network's weights come from, for environment.json."""


def begin(settings: Settings, say: prepare.Say, recorded: RunFolder | None = None) -> Beginning:
    """Read and split the table, check it, and build the network.

    Args:
        recorded: folder of a resumed fit, whose split is used again, and whose images must be these.

    Raises:
        FinetuneError: settings, table or weights that do not go together.
    """
    table = prepare.load_table(build.source(settings).table(), settings.data, say, recorded=recorded)
    if recorded is not None and data_record.table_hash(recorded) is not None:
        data_record.check_samples(recorded, table)
    training.check_batches(settings.trainer, settings.data.batch_size, table)
    task = build.task(settings)
    task.check(table)
    teacher = distillation.load_teacher(settings, task)
    spec, network, pretrained, weights = training.make_network(settings, task.num_outputs(table), say)
    return Beginning(table, task, teacher, spec, network, build.preprocessing(settings, pretrained), weights)
