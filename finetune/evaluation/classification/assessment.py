"""From the predictions of val and test to scores.json: fits on val, reports on the other splits.

Nothing is ever chosen on test: it is read after everything fitted on val is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.errors import FinetuneError, one_of
from finetune.evaluation.classification import calibration as calibrations
from finetune.evaluation.classification import conformal, own_metrics, reliability, selective, subgroups, thresholds
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.classification.conformal import Conformal
from finetune.evaluation.classification.harms import harms
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.summary import summarise
from finetune.evaluation.classification.thresholds import Criterion
from finetune.files import plain


@dataclass(frozen=True)
class FittedOnVal:
    """What was fitted on val, as it is stored in the model file."""

    calibration: Calibration | None = None
    operating_points: dict[str, dict[str, Any]] = field(default_factory=dict)
    selective: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per class the minimum confidence at which a share of images is answered; see `selective.fit`."""
    conformal: Conformal | None = None
    notes: list[str] = field(default_factory=list)
    """What could not be fitted, in sentences."""


@dataclass(frozen=True)
class Assessment:
    """The settings of an evaluation; conf/evaluation."""

    calibration: str = "auto"
    """auto, temperature, platt, isotonic or none."""
    operating_points: dict[str, Any] = field(default_factory=dict)
    """Name -> criterion: youden, f1, {sensitivity: x}, {specificity: x}, {ppv: x} or {cost: x}."""
    subgroups: list[str] | str | None = "all"
    """Metadata columns whose groups are scored separately: all, or a list."""
    resamples: int = 2000
    """Bootstrap resamples of the patients."""
    coverages: list[float] = field(default_factory=lambda: [0.95, 0.9, 0.8, 0.5])
    """Shares of images to answer, the most confident ones."""
    conformal: float | None = 0.1
    """Share of conformal sets that may miss the truth."""
    novelty: int = 2000
    """Maximum number of training images for the out-of-distribution score; read by the jobs."""
    thumbnails: int = 12
    """Most confident errors saved with their images and heat maps at the end of a fit; 0 for none."""
    test: bool = True
    """Whether a fit predicts and scores the test split; read by the jobs."""
    tta: list[str] = field(default_factory=list)
    """Views whose outputs are averaged: flip, shifts, crops; read by the jobs."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Scores of the user's own: name -> function of targets and probabilities; see `own_metrics`."""

    def __post_init__(self) -> None:
        if self.calibration not in calibrations.METHODS:
            raise one_of("evaluation.calibration", self.calibration, calibrations.METHODS)
        if isinstance(self.subgroups, str) and self.subgroups != "all":
            raise FinetuneError(f"evaluation.subgroups={self.subgroups} must be all, or a list: [{self.subgroups}].")
        selective.read_coverages(self.coverages)
        conformal.check_error(self.conformal)
        for name in ("resamples", "novelty", "thumbnails"):
            if getattr(self, name) < 0:
                raise FinetuneError(f"evaluation.{name}={getattr(self, name)} must be 0 or more.")
        self.criteria()

    def criteria(self) -> dict[str, Criterion]:
        """The criteria of the requested operating points, without those set to null."""
        requested = self.operating_points or {}
        return {str(name): Criterion.read(str(name), value) for name, value in requested.items() if value is not None}

    def check_columns(self, metadata: list[str]) -> None:
        """Fail on a missing subgroup column before training, not after it."""
        subgroups.wanted_columns(metadata, self.subgroups)

    def fit(self, val: Predictions | None) -> FittedOnVal:
        """Everything that `val` is large enough to fit."""
        if val is None:
            return FittedOnVal(notes=["There is no val split: nothing was fitted, no calibration and no threshold."])
        calibration, calibration_notes = calibrations.fit(val, self.calibration)
        points, point_notes = thresholds.fit_operating_points(val, self.criteria())
        confidence_cuts = selective.fit(val, selective.read_coverages(self.coverages), points)
        error = conformal.check_error(self.conformal)
        sets, set_notes = conformal.fit(val, error) if error else (None, [])
        return FittedOnVal(calibration, points, confidence_cuts, sets, [*calibration_notes, *point_notes, *set_notes])

    def score(
        self,
        predictions: Predictions,
        fitted: FittedOnVal,
        *,
        seed: int = 0,
        prevalence: Mapping[str, float] | None = None,
        split: str = "test",
        val: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The scores of one split that was not fitted on; `fitted` is applied unchanged.

        `harms` are the findings against the run, see harms.py; their sentences come first among the `warnings`.

        Args:
            val: the scores of val, to compare with.
        """
        scores = summarise(predictions, n_boot=self.resamples, seed=seed)
        options: dict[str, Any] = {"n_boot": self.resamples, "seed": seed}
        if fitted.calibration is not None:
            scores["calibration"] = calibration_scores(predictions, fitted.calibration, **options)
        if fitted.operating_points:
            scores["operating_points"] = thresholds.evaluate_operating_points(
                predictions, fitted.operating_points, **options
            )
        if fitted.selective:
            scores["selective"] = selective.evaluate(predictions, fitted.selective, **options)
        if fitted.conformal is not None:
            scores["conformal"] = conformal.evaluate(predictions, fitted.conformal, **options)
        if groups := subgroups.subgroups(predictions, self.subgroups, **options):
            scores["subgroups"] = groups
            scores["warnings"] = [*scores["warnings"], *subgroups.gap_warnings(groups)]
        if self.metrics:
            scores["own_metrics"] = own_metrics.scores(predictions, self.metrics, **options)
        if prevalence:
            scores["prevalence"] = scores_at_prevalence(predictions, fitted, prevalence, **options)
        scores = plain(scores)
        scores["harms"] = harms(scores, split, val)
        scores["warnings"] = [*(harm["text"] for harm in scores["harms"]), *scores["warnings"]]
        return scores


def calibration_scores(predictions: Predictions, calibration: Calibration, **options: Any) -> dict[str, Any]:
    """{method, fitted_on, classes: {class: {before, after, difference}}, and of a multiclass table "overall"}."""
    calibrated = calibration.probabilities(predictions.logits)
    reliability_scores = reliability.before_after(predictions, calibrated, **options)
    classes = {name: reliability_scores[name] for name in predictions.classes if name in reliability_scores}
    overall = {"overall": reliability_scores["overall"]} if "overall" in reliability_scores else {}
    return {"method": calibration.method, "fitted_on": calibration.fitted_on, "classes": classes, **overall}


def scores_at_prevalence(
    predictions: Predictions, fitted: FittedOnVal, prevalence: Mapping[str, float], **options: Any
) -> dict[str, Any]:
    """{given, found, fitted, operating_points}: PPV and NPV where the classes are as frequent as `prevalence` says."""
    points = dict(fitted.operating_points)
    if predictions.kind == "multilabel":
        half = dict.fromkeys(predictions.classes, 0.5)
        points["threshold_0.5"] = {"goal": "fixed", "value": 0.5, "split": None, "thresholds": half}
    truth = predictions.truth
    n_labelled = np.maximum((~np.isnan(truth)).sum(axis=0), 1)
    return {
        "given": dict(prevalence),
        "found": dict(zip(predictions.classes, ((truth == 1).sum(axis=0) / n_labelled).tolist(), strict=True)),
        "fitted": fitted.calibration.prevalence if fitted.calibration else {},
        "operating_points": thresholds.evaluate_operating_points(predictions, points, prevalence=prevalence, **options),
    }


def read_prevalence(value: Any, classes: list[str], kind: str) -> dict[str, float]:
    """The value of `prevalence=`: one number for every class of a multilabel model, or class: share.

    Raises:
        FinetuneError: a class that the model does not know, or no share between 0 and 1.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        if kind == "multiclass":
            raise FinetuneError(f"prevalence={value}: name the class, such as 'prevalence={{{classes[-1]}: 0.05}}'.")
        value = dict.fromkeys(classes, value)
    for name, share in value.items():
        if name not in classes:
            raise one_of("prevalence", name, classes)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise FinetuneError(f"prevalence={share} of {name} must lie between 0 and 1.")
    shares = {str(name): float(share) for name, share in value.items()}
    if kind == "multiclass":
        calibrations.multiclass_shares(dict.fromkeys(classes, 1 / len(classes)), shares)
    return shares
