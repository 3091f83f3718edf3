"""The scores of boxes as probabilities: how often a detection of that score is right (at an IoU of 0.5).

A detection is one prediction, right or wrong; those in ignored regions are left out. Calibration, its methods and the
number of patients that they need are those of classification, with the log odds of the score in place of the logit.
Precision depends on how many detections a network gives: a calibration holds for the same network, score floor and
suppression of overlaps alone. Kueppers et al. (2020, "Multivariate confidence calibration for object detection").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy

from finetune.evaluation.classification import calibration, reliability
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.reliability import BINS
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.matching import IGNORED, RIGHT, Matching, match
from finetune.statistics import intervals
from finetune.statistics.intervals import Interval

EDGE = 1e-9
"""Scores are taken no nearer to 0 and 1 than this: their log odds are finite."""


def box_log_odds(score: np.ndarray) -> np.ndarray:
    """(n,) scores -> (n,) finite log odds."""
    return np.asarray(scipy.special.logit(np.clip(score, EDGE, 1 - EDGE)))


def box_predictions(detections: Detections, matching: Matching | None = None) -> Predictions:
    """One row per detection that is not ignored: of its class 1 if it is right, else 0; of the others NaN."""
    matching = match(detections) if matching is None else matching
    rows = np.flatnonzero(matching.status[:, 0] != IGNORED)
    targets = np.full((len(rows), len(detections.classes)), np.nan)
    targets[np.arange(len(rows)), matching.label[rows]] = matching.status[rows, 0] == RIGHT
    logits = np.repeat(box_log_odds(matching.score[rows])[:, None], len(detections.classes), axis=1)
    people = np.unique(detections.patients.astype(str), return_inverse=True)[1]
    numbers = np.char.mod("%d", np.arange(len(rows)))
    patients = np.char.mod("%d", people[matching.image[rows]])
    return Predictions.from_arrays(numbers, patients, detections.classes, "multilabel", targets, logits)  # type: ignore[arg-type]


def fit(detections: Detections, method: str = "auto", split: str = "val") -> tuple[Calibration | None, list[str]]:
    """The calibration of the box scores, None if there are too few patients with right and with wrong detections; and
    notes in sentences."""
    if method == "none":
        return None, []
    fitted, notes = calibration.fit(box_predictions(detections), method, split)
    of_boxes = "patients with a right or a wrong detection of"
    return fitted, [note.replace("patients with or without", of_boxes) for note in notes]


def calibrated_scores(calibration: Calibration, score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Scores (n,) and numbers of the classes (n,) -> the share of such detections that is right (n,); NaN for a class
    without a calibration."""
    logits = np.repeat(box_log_odds(score)[:, None], len(calibration.classes), axis=1)
    return np.take_along_axis(calibration.probabilities(logits), np.asarray(label)[:, None], axis=1)[:, 0]


def calibration_scores(
    detections: Detections,
    fitted: Calibration,
    *,
    matching: Matching | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """{method, fitted_on, classes: {class: {before, after, difference}}} of ece, brier and log_loss."""
    predictions = box_predictions(detections, matching)
    calibrated = fitted.probabilities(predictions.logits)
    classes = reliability.before_after(predictions, calibrated, n_boot=n_boot, seed=seed)
    return {"method": fitted.method, "fitted_on": fitted.fitted_on, "classes": classes}


def score_reliability(
    detections: Detections, *, matching: Matching | None = None, n_boot: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Per class {ece: {value, low, high}, n, bins: [{score, count, precision: {value, low, high}}]}: mean score and
    share of right detections in bins of the score."""
    matching = match(detections) if matching is None else matching
    names, patient = np.unique(detections.patients.astype(str), return_inverse=True)
    result: dict[str, dict[str, Any]] = {}
    columns = []
    for k in range(len(detections.classes)):
        rows = np.flatnonzero((matching.label == k) & (matching.status[:, 0] != IGNORED))
        right = (matching.status[rows, 0] == RIGHT).astype(np.float64)
        columns.append((right, matching.score[rows], patient[matching.image[rows]]))
    gaps = [reliability.gaps_per_patient(*column, len(names)) for column in columns]
    totals = [np.bincount(people, minlength=len(names)).astype(np.float64) for *_, people in columns]
    chunks: list[np.ndarray] = []
    for weight in intervals.resamples(len(names), n_boot if len(names) else 0, seed):
        errors = [np.abs(gap @ weight).sum(axis=0) for gap in gaps]
        n = np.stack(totals) @ weight
        chunks.append(np.divide(np.stack(errors), n, out=np.full(n.shape, np.nan), where=n > 0))
    samples = np.concatenate(chunks, axis=1) if chunks else np.zeros((len(gaps), 0))
    for k, name in enumerate(detections.classes):
        right, score, people = columns[k]
        error = Interval(np.nan, reason="no detection")
        if len(score):
            value = reliability.binned(right, score).error()
            chance = reliability.by_chance(gaps[k], np.array([len(score)]), seed)
            error = reliability.interval(value, samples[k], float(chance[0]), int((totals[k] > 0).sum()))
        result[name] = {"ece": error.as_dict(), "n": len(score), "bins": _bins(right, score, people, len(names))}
    return result


def _bins(right: np.ndarray, score: np.ndarray, patient: np.ndarray, n_patients: int) -> list[dict[str, Any]]:
    """Of each bin that holds a detection its mean score, count and precision."""
    number = np.minimum((score * BINS).astype(int), BINS - 1)
    described = []
    for b in np.unique(number):
        rows = number == b
        correct, total = (np.bincount(patient[rows], w, n_patients) for w in (right[rows], np.ones(rows.sum())))
        share = intervals.share(correct, total).as_dict()
        described.append({"score": float(score[rows].mean()), "count": int(rows.sum()), "precision": share})
    return described
