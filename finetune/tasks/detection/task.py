"""The task of detection, as the jobs use it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from finetune import views
from finetune.config import build
from finetune.config.settings import EvaluateSettings, ExplainSettings, Settings
from finetune.data.audit.other_targets import check_boxes
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.evaluation.detection.answers import DETECT, DetectAnswers
from finetune.evaluation.detection.assessment import DetectionAssessment, DetectionFit
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.frames import RESERVED
from finetune.model_file import Model
from finetune.pages import report
from finetune.runs.folder import RunFolder
from finetune.steps.task import Subject, Task
from finetune.tasks.detection import console, examples, explaining, files
from finetune.tasks.detection.objective import DetectObjective
from finetune.tasks.detection.predicting import predict_detections
from finetune.tasks.detection.truths import labels_of, target_name, with_labels


class Detection(Task):
    """Boxes with a class and a score, as the table has them."""

    name = DETECT
    gives = "detections"
    fitted_settings = ("calibration", "false_positives", "tta")

    def __init__(self, settings: Settings):
        self.settings = settings
        self.assessment: DetectionAssessment = build.check_type(
            "evaluation", build.make(settings, "evaluation", settings.evaluation), DetectionAssessment
        )
        self.test, self.novelty = self.assessment.test, self.assessment.novelty
        self.tta = views.check(self.assessment.tta, self.gives)
        check_settings(settings)

    # -- before the training

    def check(self, table: SampleTable) -> None:
        """Boxes that can be learned, and columns of metadata that a table of detections can have."""
        target_name(table)
        if self.settings.job in ("fit", "preview"):
            check_boxes(table)
        self.assessment.check_columns(table.metadata)
        if taken := sorted(set(table.metadata) & set(RESERVED)):
            raise FinetuneError(
                f"table {table.name}: the metadata column {taken[0]!r} has the name of a column of the table of "
                "detections. Leave it out of data.metadata, or rename it."
            )

    def num_outputs(self, table: SampleTable) -> int:
        return len(labels_of(table))

    def objective(self, table: SampleTable, rows: np.ndarray) -> DetectObjective:
        return DetectObjective.of_table(table, self.settings.seed)

    def captions(self, batch: Mapping[str, Any], table: SampleTable) -> list[str]:
        """How many boxes of each label."""
        names = labels_of(table)
        captions = []
        for numbers, is_known in zip(batch["box_labels"], batch["boxes_known"].tolist(), strict=True):
            counts = Counter(names[number] for number in numbers.tolist())
            shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no box"
            captions.append(shown if is_known else "unknown")
        return captions

    # -- predictions and what follows from them

    def predict(self, subject: Subject, fitted: DetectionFit) -> Detections | None:
        """The table of detections; images whose true boxes are not known have no row in it."""
        return predict_detections(subject)

    def fit(self, val: Detections | None) -> DetectionFit:
        return self.assessment.fit(val)

    def unfitted(self) -> DetectionFit:
        return DetectionFit()

    def answers(self, table: SampleTable, fitted: DetectionFit) -> DetectAnswers:
        return DetectAnswers.with_fit(labels_of(table), fitted)

    def score(self, tables: Mapping[str, Detections], fitted: DetectionFit) -> dict[str, Any]:
        return console.scores(tables, self.assessment, fitted, self.settings.seed)

    def add_files(self, run: RunFolder, subject: Subject, predictions: Detections, fitted: DetectionFit) -> None:
        """Images with their true and detected boxes, in cases.json."""
        assessment = self.assessment
        examples.write(run, subject, predictions, fitted, assessment.thumbnails, assessment.hit)

    def report(self, folder: Path, scores: dict[str, Any] | None = None) -> None:
        report.write_report(folder, scores)

    def summary(self, scores: Mapping[str, Any], *, synthetic: bool) -> list[str]:
        return console.lines(scores, synthetic)

    # -- a finished model on other data

    def match(self, table: SampleTable, model: Model) -> SampleTable:
        """By the names of the labels.

        Raises:
            FinetuneError: no label of the boxes is a class of the model, or data.map is given.
        """
        if self.settings.data.map:
            raise FinetuneError(
                f"data.map={self.settings.data.map}: task=detect compares labels by name. Rename those of the data."
            )
        return with_labels(table, model.classes, f"model={model.path or 'MODEL'}")

    def shipped(self, model: Model, table: SampleTable) -> DetectionFit:
        labels = labels_of(table)
        return detect_answers(model).fitted([name for name in model.classes if name in labels])

    def evaluate(self, predictions: Detections, fitted: DetectionFit, subject: Subject) -> dict[str, Any]:
        return console.with_note(self.assessment.score(predictions, fitted, seed=self.settings.seed), predictions)

    def score_files(self, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
        files.score(self, settings, run, words)

    def explain(self, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]) -> None:
        explaining.explain(self, settings, model, run, words)


def detect_answers(model: Model) -> DetectAnswers:
    """The answers of a detector."""
    return cast(DetectAnswers, model.answers)


def check_settings(settings: Settings) -> None:
    """Refuse settings that no detector is trained with, before any data are read.

    Raises:
        FinetuneError: naming the key and what to type instead.
    """
    if settings.job not in ("fit", "preview"):
        return
    if settings.data.sampler != "none":
        raise FinetuneError(
            f"data.sampler={settings.data.sampler} is by the classes of whole images, of which task=detect has none. "
            "Leave it at none."
        )
    if settings.loss.get("_target_") != "finetune.losses.auto":
        raise FinetuneError(
            f"loss: {settings.loss.get('_target_')} is of labels. With task=detect the head brings its losses: leave "
            "loss=auto."
        )
    if settings.compile:
        raise FinetuneError("compile=true: task=detect trains parts of a network that are not compiled. Leave it out.")
