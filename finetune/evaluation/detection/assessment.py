"""From the detections of val and test to scores.json: fits on val, reports on the other splits.

Nothing is ever chosen on test: it is read after everything fitted on val is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.errors import FinetuneError, one_of
from finetune.evaluation.classification.calibration import METHODS, Calibration
from finetune.evaluation.classification.subgroups import wanted_columns
from finetune.evaluation.detection import calibration as calibrations
from finetune.evaluation.detection import subgroups, thresholds
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.harms import harms
from finetune.evaluation.detection.matching import HITS
from finetune.evaluation.detection.scorer import Scorer
from finetune.evaluation.detection.summary import summarise
from finetune.files import plain


@dataclass(frozen=True)
class DetectionFit:
    """What was fitted on val, as it is stored in the model file."""

    calibration: Calibration | None = None
    """Of the box scores."""
    operating_points: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> {goal, value, split, thresholds: {class: score}}."""
    notes: list[str] = field(default_factory=list)
    """What could not be fitted, in sentences."""


@dataclass(frozen=True)
class DetectionAssessment:
    """The settings of an evaluation of detections."""

    resamples: int = 2000
    """Bootstrap resamples of the patients."""
    false_positives: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    """False positives per image, of each class, for which score thresholds are chosen on val."""
    hit: str = "iou"
    """What counts as found in FROC and at operating points: iou (0.5 or more) or centre (in the true box)."""
    calibration: str = "auto"
    """Of box scores: auto (platt), temperature, platt, isotonic or none."""
    subgroups: list[str] | str | None = "all"
    """Metadata columns whose groups are scored separately: all, or a list."""
    novelty: int = 2000
    """Maximum number of training images for the out-of-distribution score; read by the jobs."""
    thumbnails: int = 12
    """Images saved with their true and detected boxes at the end of a fit; 0 for none."""
    test: bool = True
    """Whether a fit predicts and scores the test split; read by the jobs."""
    tta: list[str] = field(default_factory=list)
    """Views whose outputs are averaged: none is possible."""

    def __post_init__(self) -> None:
        for name in ("resamples", "novelty", "thumbnails"):
            if getattr(self, name) < 0:
                raise FinetuneError(f"evaluation.{name}={getattr(self, name)} must be 0 or more.")
        if self.hit not in HITS:
            raise one_of("evaluation.hit", self.hit, HITS)
        if self.calibration not in METHODS:
            raise one_of("evaluation.calibration", self.calibration, METHODS)
        if isinstance(self.subgroups, str) and self.subgroups != "all":
            raise FinetuneError(f"evaluation.subgroups={self.subgroups} must be all, or a list: [{self.subgroups}].")
        thresholds.read_levels(self.false_positives)

    def check_columns(self, metadata: list[str]) -> None:
        """Fail on a missing subgroup column before training, not after it."""
        wanted_columns(metadata, self.subgroups)

    def fit(self, val: Detections | None) -> DetectionFit:
        """Everything that `val` is large enough to fit."""
        if val is None:
            return DetectionFit(notes=["There is no val split: nothing was fitted, no calibration and no threshold."])
        if not len(val):
            return DetectionFit(
                notes=["No val image has known boxes: nothing was fitted, no calibration, no threshold."]
            )
        fitted, notes = calibrations.fit(val, self.calibration)
        levels = thresholds.read_levels(self.false_positives)
        points, point_notes = thresholds.fit_operating_points(val, levels, hit=self.hit)
        return DetectionFit(fitted, points, [*notes, *point_notes])

    def score(
        self,
        detections: Detections,
        fitted: DetectionFit,
        *,
        seed: int = 0,
        split: str = "test",
        val: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The scores of one split that was not fitted on; `fitted` is applied unchanged.

        `harms` are the problems of the run, see harms.py; their sentences come first among the `warnings`.

        Args:
            val: the scores of val, to compare with.
        """
        scorer = Scorer(detections, hit=self.hit)
        options: dict[str, Any] = {"n_boot": self.resamples, "seed": seed}
        scores = summarise(detections, hit=self.hit, scorer=scorer, **options)
        scores["reliability"] = calibrations.score_reliability(detections, matching=scorer.matching, **options)
        if fitted.calibration is not None:
            scores["calibration"] = calibrations.calibration_scores(
                detections, fitted.calibration, matching=scorer.matching, **options
            )
        if fitted.operating_points:
            scores["operating_points"] = thresholds.evaluate_operating_points(
                detections, fitted.operating_points, matching=scorer.hits
            )
        if groups := subgroups.subgroups(detections, self.subgroups, hit=self.hit, **options):
            scores["subgroups"] = groups
            scores["warnings"] = [*scores["warnings"], *subgroups.gap_warnings(groups)]
        scores = plain(scores)
        scores["harms"] = harms(scores, split, val)
        scores["warnings"] = [*(harm["text"] for harm in scores["harms"]), *scores["warnings"]]
        return scores
