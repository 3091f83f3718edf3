"""From the predictions of val and test to all that scores.json says: what is fitted on val is told of the others.

Nothing is ever chosen on test: it is read once what val gave is fixed.
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
from finetune.evaluation.classification.thresholds import Wish
from finetune.files import plain


@dataclass(frozen=True)
class Fitted:
    """What val gave, as it travels in the model file."""

    calibration: Calibration | None = None
    operating_points: dict[str, dict[str, Any]] = field(default_factory=dict)
    selective: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per class how sure an answer must be for a share of images to be answered; see `selective.fit`."""
    conformal: Conformal | None = None
    notes: list[str] = field(default_factory=list)
    """What could not be fitted, in sentences."""


@dataclass(frozen=True)
class Assessment:
    """What is wished of an evaluation; conf/evaluation."""

    calibration: str = "auto"
    """auto, temperature, platt, isotonic or none."""
    operating_points: dict[str, Any] = field(default_factory=dict)
    """Name -> wish: youden, f1, {sensitivity: x}, {specificity: x}, {ppv: x} or {cost: x}."""
    subgroups: list[str] | str | None = "all"
    """Metadata columns whose groups are scored apart: all, or a list."""
    resamples: int = 2000
    """Bootstrap resamples of the patients."""
    coverages: list[float] = field(default_factory=lambda: [0.95, 0.9, 0.8, 0.5])
    """Shares of images to answer, the surest ones."""
    conformal: float | None = 0.1
    """How often the truth may be missing in conformal sets."""
    novelty: int = 2000
    """Training images at most that say what is typical; read by the jobs."""
    thumbnails: int = 12
    """Worst errors shown with their pictures and heat maps at the end of a fit; 0 for none."""
    test: bool = True
    """Whether a fit predicts and scores the test split; read by the jobs."""
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
        self.wishes()

    def wishes(self) -> dict[str, Wish]:
        """The operating points that are wished, without those set to null."""
        given = self.operating_points or {}
        return {str(name): Wish.read(str(name), wish) for name, wish in given.items() if wish is not None}

    def check_columns(self, metadata: list[str]) -> None:
        """Refuse subgroups of a column that is not there, before hours of training rather than after."""
        subgroups.wanted_columns(metadata, self.subgroups)

    def fit(self, val: Predictions | None) -> Fitted:
        """All that is fitted on `val`, as far as it is large enough."""
        if val is None:
            return Fitted(notes=["There is no val split: nothing was fitted, no calibration and no threshold."])
        calibration, of_calibration = calibrations.fit(val, self.calibration)
        points, of_points = thresholds.chosen(val, self.wishes())
        sureness = selective.fit(val, selective.read_coverages(self.coverages), points)
        error = conformal.check_error(self.conformal)
        sets, of_sets = conformal.fit(val, error) if error else (None, [])
        return Fitted(calibration, points, sureness, sets, [*of_calibration, *of_points, *of_sets])

    def told(
        self,
        predictions: Predictions,
        fitted: Fitted,
        *,
        seed: int = 0,
        prevalence: Mapping[str, float] | None = None,
        split: str = "test",
        val: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The scores of one split that was not fitted on; what `fitted` holds is applied to it as it is.

        `harms` are what speaks against the run, see harms.py; their sentences come first among the `warnings`.

        Args:
            val: the scores of val, to be compared.
        """
        told = summarise(predictions, n_boot=self.resamples, seed=seed)
        options: dict[str, Any] = {"n_boot": self.resamples, "seed": seed}
        if fitted.calibration is not None:
            told["calibration"] = calibration_told(predictions, fitted.calibration, **options)
        if fitted.operating_points:
            told["operating_points"] = thresholds.applied(predictions, fitted.operating_points, **options)
        if fitted.selective:
            told["selective"] = selective.applied(predictions, fitted.selective, **options)
        if fitted.conformal is not None:
            told["conformal"] = conformal.applied(predictions, fitted.conformal, **options)
        if groups := subgroups.subgroups(predictions, self.subgroups, **options):
            told["subgroups"] = groups
            told["warnings"] = [*told["warnings"], *subgroups.shown(groups)]
        if self.metrics:
            told["own_metrics"] = own_metrics.scores(predictions, self.metrics, **options)
        if prevalence:
            told["prevalence"] = prevalence_told(predictions, fitted, prevalence, **options)
        told = plain(told)
        told["harms"] = harms(told, split, val)
        told["warnings"] = [*(harm["text"] for harm in told["harms"]), *told["warnings"]]
        return told


def calibration_told(predictions: Predictions, calibration: Calibration, **options: Any) -> dict[str, Any]:
    """{method, fitted_on, classes: {class: {before, after, difference}}, and of a multiclass table "overall"}."""
    calibrated = calibration.probabilities(predictions.logits)
    found = reliability.before_after(predictions, calibrated, **options)
    classes = {name: found[name] for name in predictions.classes if name in found}
    overall = {"overall": found["overall"]} if "overall" in found else {}
    return {"method": calibration.method, "fitted_on": calibration.fitted_on, "classes": classes, **overall}


def prevalence_told(
    predictions: Predictions, fitted: Fitted, prevalence: Mapping[str, float], **options: Any
) -> dict[str, Any]:
    """{given, found, fitted, operating_points}: PPV and NPV where the classes are as frequent as `prevalence` says."""
    points = dict(fitted.operating_points)
    if predictions.kind == "multilabel":
        half = dict.fromkeys(predictions.classes, 0.5)
        points["threshold_0.5"] = {"goal": "fixed", "value": 0.5, "split": None, "thresholds": half}
    truth = predictions.truth
    known = np.maximum((~np.isnan(truth)).sum(axis=0), 1)
    return {
        "given": dict(prevalence),
        "found": dict(zip(predictions.classes, ((truth == 1).sum(axis=0) / known).tolist(), strict=True)),
        "fitted": fitted.calibration.prevalence if fitted.calibration else {},
        "operating_points": thresholds.applied(predictions, points, prevalence=prevalence, **options),
    }


def read_prevalence(given: Any, classes: list[str], kind: str) -> dict[str, float]:
    """What `prevalence=` says: one number for every class of a multilabel model, or class: share.

    Raises:
        FinetuneError: a class that the model does not know, or no share between 0 and 1.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if kind == "multiclass":
            raise FinetuneError(
                f"prevalence={given}: say of which class, such as 'prevalence={{{classes[-1]}: 0.05}}'."
            )
        given = dict.fromkeys(classes, given)
    for name, share in given.items():
        if name not in classes:
            raise one_of("prevalence", name, classes)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise FinetuneError(f"prevalence={share} of {name} must lie between 0 and 1.")
    shares = {str(name): float(share) for name, share in given.items()}
    if kind == "multiclass":
        calibrations.multiclass_shares(dict.fromkeys(classes, 1 / len(classes)), shares)
    return shares
