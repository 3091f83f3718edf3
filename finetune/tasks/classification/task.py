"""The task of classification, as the jobs use it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune import losses, views
from finetune.config import build
from finetune.config.settings import EvaluateSettings, ExplainSettings, Settings
from finetune.data.audit.audit import check_trainable
from finetune.data.class_map import to_model_classes
from finetune.data.table import SampleTable
from finetune.evaluation.answers import CLASSIFY
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.classification.assessment import Assessment, FittedOnVal, read_prevalence
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import log_odds
from finetune.evaluation.novelty import energy
from finetune.model_file import Model
from finetune.pages import report
from finetune.preprocessing import Preprocessing
from finetune.runs.folder import RunFolder
from finetune.steps.prediction import predict_arrays
from finetune.steps.task import Say, Subject
from finetune.tasks.classification import explaining, score_table, scoring
from finetune.tasks.classification.calibrated import write_calibrated
from finetune.tasks.classification.distilling import distilled
from finetune.tasks.classification.objective import AUROC, ClassObjective, has_auroc
from finetune.tasks.classification.shipped import class_answers, select_shipped
from finetune.tasks.classification.worst_errors import write_worst_errors
from finetune.training.objective import LOSS, Objective


class Classification:
    """Multiclass (softmax) or multilabel (a sigmoid per class), by the kind of the table."""

    name = CLASSIFY
    gives = "classes"
    fitted_settings: tuple[str, ...] = ("calibration", "operating_points", "coverages", "conformal", "tta")

    def __init__(self, settings: Settings):
        self.settings = settings
        self.assessment = make_assessment(settings)
        self.test, self.novelty = self.assessment.test, self.assessment.novelty
        self.tta = views.check(self.assessment.tta, self.gives)
        for kind in ("multilabel", "multiclass"):  # wrong options fail before data are read
            build.make(settings, "loss", settings.loss, _convert_="all", **_kind_option(settings, kind))

    # -- before the training

    def check(self, table: SampleTable) -> None:
        """Check that the labels can be trained on, subgroup columns exist, and the loss applies to the labels."""
        if self.settings.job in ("fit", "preview"):
            check_trainable(table)
            self.objective(table, table.rows("train"))
        self.assessment.check_columns(table.metadata)
        read_prevalence(self.prevalence, table.classes, table.kind)

    def num_outputs(self, table: SampleTable) -> int:
        return len(table.classes)

    def objective(self, table: SampleTable, rows: np.ndarray) -> ClassObjective:
        criterion = make_loss(self.settings, table.kind)
        weights = criterion.weights(table.classes, table.targets()[rows])
        return ClassObjective(criterion, weights, monitor=AUROC if has_auroc(table, "val") else LOSS)

    def distil(
        self,
        objective: Objective,
        table: SampleTable,
        teacher: Model,
        preprocessing: Preprocessing,
        *,
        weight: float,
        temperature: float,
    ) -> Objective:
        return distilled(objective, table, teacher, preprocessing, weight=weight, temperature=temperature)

    def captions(self, batch: Mapping[str, Any], table: SampleTable) -> list[str]:
        """The positive classes, those of soft labels and mixed images with their share, and how many are unknown."""
        captions = []
        for target in batch["target"].tolist():
            positive = [
                name if value == 1 else f"{name} {value:.2f}"
                for name, value in zip(table.classes, target, strict=True)
                if value >= 0.005
            ]
            unknown = sum(map(math.isnan, target))
            captions.append(", ".join(positive or ["none"]) + (f" ({unknown} unknown)" if unknown else ""))
        return captions

    # -- predictions and scores

    def predict(self, subject: Subject, fitted: FittedOnVal) -> Predictions | None:
        """A row per image. On a multilabel table a multiclass model gives the log odds of its classes, so that their
        sigmoid is the model's probability."""
        predicted = predict_arrays(subject)
        if predicted is None:
            return None
        index, logits = predicted
        table, model = subject.data.table, subject.model
        if model is not None and class_answers(model).kind != table.kind:
            columns = [model.classes.index(name) for name in table.classes]
            logits = log_odds(logits.astype(np.float64))[:, columns]
        rows = table.frame.iloc[index]
        return Predictions.from_arrays(
            rows["path"].tolist(),
            rows["patient"].tolist(),
            table.classes,
            table.kind,
            table.targets()[index],
            logits,
            rows[table.metadata].reset_index(drop=True),
        )

    def energy(self, outputs: Any, subject: Subject) -> np.ndarray:
        kind = subject.data.table.kind if subject.model is None else class_answers(subject.model).kind
        return energy(outputs, kind)

    def fit(self, val: Predictions | None) -> FittedOnVal:
        return self.assessment.fit(val)

    def unfitted(self) -> FittedOnVal:
        return FittedOnVal()

    def answers(self, table: SampleTable, fitted: FittedOnVal) -> ClassAnswers:
        return ClassAnswers.of(table.classes, table.kind, fitted)

    def score(self, tables: Mapping[str, Predictions], fitted: FittedOnVal) -> dict[str, Any]:
        return scoring.compute_scores(tables, self.assessment, fitted, self.settings.seed)

    def add_files(self, run: RunFolder, subject: Subject, predictions: Predictions, fitted: FittedOnVal) -> None:
        """The most confident errors."""
        class_indices = None if subject.model is None else [subject.model.classes.index(c) for c in predictions.classes]
        thumbnails = self.assessment.thumbnails
        write_worst_errors(
            run, subject.network, subject.data, predictions, thumbnails, fitted.operating_points, class_indices
        )

    def report(self, folder: Path, scores: dict[str, Any] | None = None) -> None:
        report.write_report(folder, scores)

    def summary(self, scores: Mapping[str, Any], *, synthetic: bool) -> list[str]:
        return scoring.summary_lines(scores, synthetic)

    # -- a finished model on other data

    @property
    def prevalence(self) -> Any:
        """The value of `prevalence=`; None where the job has none."""
        return self.settings.prevalence if isinstance(self.settings, EvaluateSettings) else None

    def match(self, table: SampleTable, model: Model) -> SampleTable:
        """By the names of the classes and `data.map`: see `to_model_classes`."""
        return to_model_classes(table, model.classes, class_answers(model).kind, self.settings.data.map)

    def shipped(self, model: Model, table: SampleTable) -> FittedOnVal:
        return select_shipped(model, table.kind)

    def evaluate(self, predictions: Predictions, fitted: FittedOnVal, subject: Subject) -> dict[str, Any]:
        prevalence = read_prevalence(self.prevalence, predictions.classes, predictions.kind)
        return self.assessment.score(predictions, fitted, seed=self.settings.seed, prevalence=prevalence)

    def add_evaluation_files(
        self, run: RunFolder, subject: Subject, predictions: Predictions, fitted: FittedOnVal, say: Say
    ) -> None:
        """The most confident errors; and probabilities for `prevalence`, where it is set."""
        if prevalence := read_prevalence(self.prevalence, predictions.classes, predictions.kind):
            write_calibrated(run.calibrated(subject.split), predictions, fitted.calibration, prevalence, say)
        self.add_files(run, subject, predictions, fitted)

    def score_files(self, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
        score_table.score_table(self, settings, run, words)

    def explain(self, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]) -> None:
        explaining.explain(self, settings, model, run, words)


def make_assessment(settings: Settings) -> Assessment:
    """The settings of the evaluation, with the user's metrics."""
    if not settings.evaluation:
        return Assessment()  # a run of a version without this config group
    assessment: Assessment = build.check_type(
        "evaluation", build.make(settings, "evaluation", settings.evaluation), Assessment
    )
    metrics = {name: build.metric(name, path, settings.trust) for name, path in assessment.metrics.items()}
    return replace(assessment, metrics=metrics)


def make_loss(settings: Settings, kind: str) -> losses.Loss:
    """The loss, after checking that it applies to the labels."""
    criterion = build.make(settings, "loss", settings.loss, _convert_="all", **_kind_option(settings, kind))
    losses.check_kind(criterion, kind)
    return criterion


def _kind_option(settings: Settings, kind: str) -> dict[str, str]:
    return {"kind": kind} if settings.loss["_target_"] == "finetune.losses.auto" else {}
