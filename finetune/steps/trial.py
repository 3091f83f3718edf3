"""A training of a search: the first half of a fit. The best epoch predicts val; the test split is never predicted."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.config import build
from finetune.config.settings import Settings
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.evaluation.answers import PredictionsTable
from finetune.runs.folder import RunFolder
from finetune.steps import distillation, prepare, training
from finetune.steps.beginning import begin
from finetune.steps.task import Subject, Task
from finetune.steps.training import FitResult
from finetune.training.callbacks import EpochReport
from finetune.training.launch import ranks


@dataclass(frozen=True)
class Comparison:
    """What makes the scores of trainings comparable."""

    val: str
    """Hash of the val images and their targets."""
    monitor: str
    """The score, such as val/auroc."""
    higher_is_better: bool


@dataclass(frozen=True)
class TrialResult:
    """What a training of a search leaves."""

    fit: FitResult
    stopped: bool
    """Whether it was stopped early."""
    predictions: PredictionsTable | None
    """Of val; None for a training that was stopped early, and on all ranks but the first."""


def comparison_of(task: Task, table: SampleTable) -> Comparison:
    """By what trainings on this table are compared.

    Raises:
        FinetuneError: there is no val image.
    """
    rows = table.rows("val")
    if not len(rows):
        raise FinetuneError("A search compares scores on val, and there is no val image: see data.val_fraction.")
    objective = task.objective(table, table.rows("train"))
    frame = table.frame.iloc[rows]
    names = "\x1f".join(f"{path}\x1f{patient}" for path, patient in zip(frame["path"], frame["patient"], strict=True))
    targets = frame[table.target_columns].to_csv(index=False)
    digest = hashlib.sha256(f"{names}\x1e{targets}".encode()).hexdigest()
    return Comparison(digest, objective.monitor, objective.higher_is_better)


def prepare_search(settings: Settings, run: RunFolder, say: prepare.Say) -> Comparison:
    """Read, split, decode and audit the data of the typed configuration, before the first trial.

    Within `auditing_once`, trials on the same images repeat no audit.
    """
    if settings.demo:
        prepare.make_demo_images(settings.data, settings.trainer.max_epochs, say)
    begun = begin(settings, say)
    table, _, _ = prepare.decode_and_audit(settings.data, begun.table, begun.preprocessing, say, run)
    return comparison_of(begun.task, table)


def train(
    settings: Settings,
    run: RunFolder,
    words: list[str],
    say: prepare.Say,
    *,
    comparison: Comparison | None = None,
    report: Callable[[int, float], bool] | None = None,
    hint: str | None = None,
    keep_checkpoints: bool = False,
) -> TrialResult:
    """Train one configuration in its run folder, on all ranks, and predict val with the best epoch's weights.

    Args:
        comparison: on the first rank: what the training must share with the others of the search.
        report: on the first rank: takes (epoch, score), and says whether to stop.
        hint: what is printed when it is stopped by hand.

    Raises:
        FinetuneError: settings, data or losses that cannot be trained, or other val images than those of the search.
    """
    first = ranks.rank() == 0
    begun = begin(settings, say)
    task, teacher, network, preprocessing = begun.task, begun.teacher, begun.network, begun.preprocessing
    if first:
        run.begin(settings.resolved, words)
        run.note(weights=begun.weights)
    table, images, _ = prepare.decode_and_audit(settings.data, begun.table, preprocessing, say, run if first else None)
    if comparison is not None:
        check_comparison(comparison, comparison_of(task, table))
    augment, mixing = build.augment(settings), build.mixing(settings)
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, preprocessing, augment, mixing)
    if teacher is not None:
        for sentence in distillation.check_images(settings, teacher, data):
            say(f"WARNING: {sentence}")
    subject = Subject(
        network, data, data.rows("val"), "val", None, settings.trainer.accelerator, settings.seed, task.tta
    )
    epochs = EpochReport(report)
    predictions = None
    try:
        with ranks.launch(settings.resolved, run.path) as place:
            result = training.train(settings, run, task, network, data, say, place, teacher, [epochs], hint)
            if not epochs.stopped:
                predictions = task.predict(subject, task.unfitted())
    finally:
        if first and not keep_checkpoints:
            shutil.rmtree(run.checkpoints, ignore_errors=True)
    if predictions is not None:
        predictions.write(run.predictions("val"))
    return TrialResult(result, epochs.stopped, predictions)


def check_comparison(expected: Comparison, actual: Comparison) -> None:
    """Refuse a training whose score cannot be compared.

    Raises:
        FinetuneError: other val images, or another score.
    """
    if actual.val != expected.val:
        raise FinetuneError(
            "The val images or their targets are not those of the search: a searched key changes the splits or the "
            "labels, so scores cannot be compared."
        )
    if actual.monitor != expected.monitor:
        raise FinetuneError(f"{actual.monitor} chooses the best epoch here, the search compares {expected.monitor}.")


def describe(result: FitResult) -> dict[str, Any]:
    """The result in plain values."""
    return {"score": result.score, "epoch": result.epoch}
