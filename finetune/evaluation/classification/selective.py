"""Selective prediction: how many errors remain if the least confident predictions are referred to a person.

The confidence of a multiclass prediction is the probability of its most probable class; that of a multilabel class is
the distance of its log odds from the class's threshold. The minimum confidence that answers a requested share of the
images (the coverage) is fitted on val. Test shows the coverage reached, and the share of those that is wrong
(El-Yaniv and Wiener, 2010; Geifman and El-Yaniv, 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.thresholds import decision_thresholds
from finetune.statistics.curves import thinned
from finetune.statistics.intervals import MIN_PATIENTS
from finetune.statistics.shares import shares

ALL = "all classes"
"""The one row of a multiclass table."""
MAX_POINTS = 60  # of a curve in scores.json


def read_coverages(coverages: Sequence[Any] | None) -> list[float]:
    """The value of `evaluation.coverages=`, from the largest share down.

    Raises:
        FinetuneError: no share between 0 and 1.
    """
    for share in coverages or []:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise FinetuneError(
                f"evaluation.coverages={coverages}: {share} must lie between 0 and 1, such as [0.9, 0.5]."
            )
    return sorted({float(share) for share in coverages or []}, reverse=True)


def fit(
    val: Predictions, coverages: Sequence[float], points: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Per class (of a multiclass table: for all) {threshold, point, cuts: {coverage: minimum confidence}}.

    The thresholds are those of the first operating point that has one for the class, else 0.5. Classes with
    labels of fewer than 10 patients are left out.
    """
    fitted: dict[str, dict[str, Any]] = {}
    people = val.patients.astype(str)
    for name, about in thresholds_by_class(val, points).items():
        confidence, wrong = confidence_and_errors(val, name, about["threshold"])
        labelled = ~np.isnan(wrong)
        if coverages and len(np.unique(people[labelled])) >= MIN_PATIENTS:
            cuts = {
                f"{share:g}": float(np.quantile(confidence[labelled], 1 - share, method="lower")) for share in coverages
            }
            fitted[name] = {**about, "cuts": cuts}
    return fitted


def thresholds_by_class(predictions: Predictions, points: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{class: {threshold, point}} from which a class is positive; `point` is None where nothing was fitted."""
    if predictions.kind == "multiclass":
        return {ALL: {"threshold": None, "point": None}}
    return decision_thresholds(points, predictions.classes)


def confidence_and_errors(
    predictions: Predictions, name: str, threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of the predictions (N,), and whether they are wrong (N,): 1, 0, or NaN where the truth is unknown."""
    truth, probs = predictions.truth, predictions.probs
    if predictions.kind == "multiclass":
        right = np.take_along_axis(truth, predictions.logits.argmax(axis=1)[:, None], 1)[:, 0]
        return probs.max(axis=1), 1 - right
    assert threshold is not None
    k = predictions.classes.index(name)
    edge = scipy.special.logit(np.clip(threshold, 1e-12, 1 - 1e-12))
    wrong = np.where(np.isnan(truth[:, k]), np.nan, (probs[:, k] >= threshold) != (truth[:, k] == 1))
    return np.abs(predictions.logits[:, k] - edge), wrong


def evaluate(
    predictions: Predictions, fitted: Mapping[str, Mapping[str, Any]], *, n_boot: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Per class {threshold, point, rows, curve}: a row for each coverage, {target, coverage, errors, and of a
    multilabel class sensitivity, specificity} with intervals; curve is {coverage, errors} of all cuts, for a figure."""
    result: dict[str, Any] = {}
    quantities: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]] = {}
    for name, about in fitted.items():
        confidence, wrong = confidence_and_errors(predictions, name, about["threshold"])
        labelled = ~np.isnan(wrong)
        result[name] = {key: about[key] for key in ("threshold", "point")}
        result[name] |= {"rows": [], "curve": curve(confidence[labelled], wrong[labelled])}
        for requested, minimum in {"1": -np.inf, **about["cuts"]}.items():
            answered = labelled & (confidence >= minimum)
            quantities[name, requested, "coverage"] = (answered, labelled)  # 1 where all are answered
            quantities[name, requested, "errors"] = (wrong == 1, answered)
            if predictions.kind == "multilabel":
                positive = predictions.truth[:, predictions.classes.index(name)] == 1
                quantities[name, requested, "sensitivity"] = (wrong == 0, answered & positive)
                quantities[name, requested, "specificity"] = (wrong == 0, answered & ~positive)
    for (name, requested, metric), share in shares(predictions.patients, quantities, n_boot=n_boot, seed=seed).items():
        rows = result[name]["rows"]
        if metric == "coverage":
            rows.append({"target": float(requested)})
        rows[-1][metric] = share.as_dict()
    return result


def curve(confidence: np.ndarray, wrong: np.ndarray) -> dict[str, list[float]]:
    """Share of wrong predictions over the share of images answered, the most confident first; ties count together."""
    if not len(confidence):
        return {"coverage": [], "errors": []}
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(confidence[order]) != 0, True])
    answered = last + 1
    x, y = thinned(answered / len(confidence), np.cumsum(wrong[order])[last] / answered, MAX_POINTS)
    return {"coverage": x.tolist(), "errors": y.tolist()}
