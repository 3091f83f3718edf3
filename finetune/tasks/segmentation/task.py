"""The task of segmentation, as the jobs use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from finetune import views
from finetune.config import build, data_targets
from finetune.config.settings import EvaluateSettings, ExplainSettings, Settings
from finetune.data.audit import other_targets
from finetune.data.regions import Regions
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.evaluation.segmentation.assessment import SegmentationAssessment, SegmentationFit
from finetune.evaluation.segmentation.table import CaseTable
from finetune.losses.segmentation import SegmentationLoss
from finetune.model_file import Model
from finetune.pages import report
from finetune.runs.folder import RunFolder
from finetune.steps.task import Subject, Task
from finetune.tasks.segmentation import console, examples, explaining, folders, mean_shape
from finetune.tasks.segmentation.cases import predict_cases
from finetune.tasks.segmentation.objective import DICE, MaskObjective
from finetune.training.objective import LOSS

MASK = "mask"
"""Name and type of the target."""


class Segmentation(Task):
    """The region of each pixel, or the regions that it is in, as the masks of the table have it."""

    name = "segment"
    gives = "regions"
    fitted_settings = ("thresholds", "tta")

    def __init__(self, settings: Settings):
        self.settings = settings
        self.assessment: SegmentationAssessment = build.check_type(
            "evaluation", build.make(settings, "evaluation", settings.evaluation), SegmentationAssessment
        )
        self.test, self.novelty = self.assessment.test, self.assessment.novelty
        self.mean_shape: np.ndarray | None = None
        """Label map (S, S) of the training masks' mean shape, once something was predicted and where it is known."""
        self.tta = views.check(self.assessment.tta, self.gives)
        self.loss: SegmentationLoss = build.make(settings, "loss", settings.loss, _convert_="all")
        if getattr(self.loss, "kind", None) != MASK:
            raise FinetuneError(
                f"loss={type(self.loss).__name__} is not for masks. With task=segment use loss=dice_ce, dice, "
                "dice_focal, pixel_cross_entropy or pixel_focal."
            )

    # -- before the training

    def check(self, table: SampleTable) -> None:
        """Masks that can be learned, and columns of subgroups that are there."""
        if table.regions is None or table.other_targets.get(MASK) != MASK:
            raise FinetuneError(
                f"table {table.name} has no masks, which task=segment learns (data.target=mask). "
                f"{data_targets.ways_out(MASK, self.settings.trust)}"
            )
        if self.settings.job in ("fit", "preview"):
            other_targets.check_masks(table)
        self.assessment.check_columns(table.metadata)

    def num_outputs(self, table: SampleTable) -> int:
        return len(regions_of(table))

    def objective(self, table: SampleTable, rows: np.ndarray) -> MaskObjective:
        known = any(table.annotations[MASK][row] is not None for row in table.rows("val").tolist())
        return MaskObjective(self.loss, regions_of(table), monitor=DICE if known else LOSS)

    def captions(self, batch: Mapping[str, Any], table: SampleTable) -> list[str]:
        """The share of pixels of each region."""
        regions = regions_of(table)
        captions = []
        for mask, known in zip(batch["mask"].numpy(), batch["mask_known"].numpy(), strict=True):
            shares = dict(zip(regions.names, regions.bits(mask).mean(axis=(1, 2)), strict=True))
            parts = [f"{name} {100 * share:.0f} %" for name, share in shares.items() if share > 0]
            captions.append(", ".join(parts) or "none" if known.any() else "unknown")
        return captions

    # -- predictions and what follows from them

    def predict(self, subject: Subject, fitted: SegmentationFit) -> CaseTable | None:
        """A case per image, counted on the pixels of the image as stored."""
        self.mean_shape = mean_shape.of_subject(subject) if self.mean_shape is None else self.mean_shape
        return predict_cases(subject, fitted, self.mean_shape, distances=self.assessment.distances)

    def fit(self, val: CaseTable | None) -> SegmentationFit:
        return self.assessment.fit(val)

    def unfitted(self) -> SegmentationFit:
        return SegmentationFit()

    def answers(self, table: SampleTable, fitted: SegmentationFit) -> SegmentAnswers:
        regions = regions_of(table)
        return SegmentAnswers.of(regions.names, regions.overlapping, fitted)

    def score(self, tables: Mapping[str, CaseTable], fitted: SegmentationFit) -> dict[str, Any]:
        """Of val with thresholds of 0.5, of test with those that were chosen on val."""
        scores: dict[str, Any] = {}
        for split, table in tables.items():  # val first: test is compared with it
            applied = self.unfitted() if split == "val" else fitted
            scores[split] = self.assessment.score(table, applied, split=split, val=scores.get("val"))
        return scores

    def add_files(self, run: RunFolder, subject: Subject, predictions: CaseTable, fitted: SegmentationFit) -> None:
        """The best, median and worst images with their outlines, and the mean shape of the training masks."""
        mean_shape.write(run, self.mean_shape)
        examples.write(run, subject, predictions, fitted, self.assessment.thumbnails)

    def report(self, folder: Path, scores: dict[str, Any] | None = None) -> None:
        report.write_report(folder, scores)

    def summary(self, scores: Mapping[str, Any], *, synthetic: bool) -> list[str]:
        return console.lines(scores, synthetic)

    # -- a finished model on other data

    def match(self, table: SampleTable, model: Model) -> SampleTable:
        """The table itself: its regions must be those of the model, in the same order."""
        answers = cast(SegmentAnswers, model.answers)
        regions = regions_of(table)
        if (regions.names, regions.overlapping) != (list(answers.classes), answers.overlapping):
            kinds = ["overlapping" if overlapping else "exclusive" for overlapping in
                     (answers.overlapping, regions.overlapping)]  # fmt: skip
            raise FinetuneError(
                f"The model knows the {kinds[0]} regions {', '.join(answers.classes)}; the data set has the {kinds[1]} "
                f"regions {', '.join(regions.names)}. Give the same, in this order: data.regions."
            )
        return table

    def shipped(self, model: Model, table: SampleTable) -> SegmentationFit:
        return cast(SegmentAnswers, model.answers).fitted()

    def evaluate(self, predictions: CaseTable, fitted: SegmentationFit, subject: Subject) -> dict[str, Any]:
        return self.assessment.score(predictions, fitted, split=subject.split)

    def score_files(self, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
        folders.score(self, settings, run, words)

    def explain(self, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]) -> None:
        explaining.explain(self, settings, model, run, words)


def regions_of(table: SampleTable) -> Regions:
    """The regions of the masks."""
    if table.regions is None:
        raise FinetuneError(f"table {table.name} has no masks.")
    return table.regions
