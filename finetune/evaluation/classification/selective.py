"""Selective prediction: how many errors are left when the least sure answers go to a person instead.

How sure an answer is: of a multiclass table the probability of its most probable class, of a multilabel class how far
its log odds lie from the class's threshold. How sure is sure enough to answer a wished share of images (its coverage)
is read off val; test says how many are answered then, and how many of those answers are wrong (El-Yaniv and Wiener,
2010; Geifman and El-Yaniv, 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import logit

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.thresholds import decision_thresholds
from finetune.statistics.curves import thinned
from finetune.statistics.intervals import MIN_PATIENTS
from finetune.statistics.shares import shares

ALL = "all classes"
"""The one row of a multiclass table."""
MAX_POINTS = 60  # of a curve in scores.json


def read_coverages(given: Sequence[Any] | None) -> list[float]:
    """What `evaluation.coverages=` says, from the largest share down.

    Raises:
        FinetuneError: no share between 0 and 1.
    """
    for share in given or []:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise FinetuneError(f"evaluation.coverages={given}: {share} must lie between 0 and 1, such as [0.9, 0.5].")
    return sorted({float(share) for share in given or []}, reverse=True)


def fit(
    val: Predictions, coverages: Sequence[float], points: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Per class (of a multiclass table: for all) {threshold, point, cuts: {coverage: least sureness}}.

    The thresholds are those of the first operating point that has one for the class, else 0.5. Classes of which fewer
    than 10 patients are known are left out.
    """
    cut: dict[str, dict[str, Any]] = {}
    people = val.patients.astype(str)
    for name, about in decided(val, points).items():
        sure, wrong = answers(val, name, about["threshold"])
        known = ~np.isnan(wrong)
        if coverages and len(np.unique(people[known])) >= MIN_PATIENTS:
            cuts = {f"{share:g}": float(np.quantile(sure[known], 1 - share, method="lower")) for share in coverages}
            cut[name] = {**about, "cuts": cuts}
    return cut


def decided(predictions: Predictions, points: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{class: {threshold, point}} by which a multilabel class says yes; `point` is None where nothing was chosen."""
    if predictions.kind == "multiclass":
        return {ALL: {"threshold": None, "point": None}}
    return decision_thresholds(points, predictions.classes)


def answers(predictions: Predictions, name: str, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    """How sure the answers are (N,), and whether they are wrong (N,): 1, 0, or NaN where the truth is not known."""
    truth, probs = predictions.truth, predictions.probs
    if predictions.kind == "multiclass":
        right = np.take_along_axis(truth, predictions.logits.argmax(axis=1)[:, None], 1)[:, 0]
        return probs.max(axis=1), 1 - right
    assert threshold is not None
    k = predictions.classes.index(name)
    edge = logit(np.clip(threshold, 1e-12, 1 - 1e-12))
    wrong = np.where(np.isnan(truth[:, k]), np.nan, (probs[:, k] >= threshold) != (truth[:, k] == 1))
    return np.abs(predictions.logits[:, k] - edge), wrong


def applied(
    predictions: Predictions, fitted: Mapping[str, Mapping[str, Any]], *, n_boot: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Per class {threshold, point, rows, curve}: a row for each coverage, {wished, coverage, errors, and of a
    multilabel class sensitivity, specificity} with intervals; curve is {coverage, errors} of all cuts, to be drawn."""
    told: dict[str, Any] = {}
    asked: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]] = {}
    for name, about in fitted.items():
        sure, wrong = answers(predictions, name, about["threshold"])
        known = ~np.isnan(wrong)
        told[name] = {key: about[key] for key in ("threshold", "point")}
        told[name] |= {"rows": [], "curve": curve(sure[known], wrong[known])}
        for wished, cut in {"1": -np.inf, **about["cuts"]}.items():
            kept = known & (sure >= cut)
            asked[name, wished, "coverage"] = (kept, known)  # 1 where all are answered, and no more to be said of it
            asked[name, wished, "errors"] = (wrong == 1, kept)
            if predictions.kind == "multilabel":
                positive = predictions.truth[:, predictions.classes.index(name)] == 1
                asked[name, wished, "sensitivity"] = (wrong == 0, kept & positive)
                asked[name, wished, "specificity"] = (wrong == 0, kept & ~positive)
    for (name, wished, metric), share in shares(predictions.patients, asked, n_boot=n_boot, seed=seed).items():
        rows = told[name]["rows"]
        if metric == "coverage":
            rows.append({"wished": float(wished)})
        rows[-1][metric] = share.as_dict()
    return told


def curve(sure: np.ndarray, wrong: np.ndarray) -> dict[str, list[float]]:
    """Share of answers that are wrong, over the share of images answered, the surest first; equals come together."""
    if not len(sure):
        return {"coverage": [], "errors": []}
    order = np.argsort(-sure, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(sure[order]) != 0, True])
    answered = last + 1
    x, y = thinned(answered / len(sure), np.cumsum(wrong[order])[last] / answered, MAX_POINTS)
    return {"coverage": x.tolist(), "errors": y.tolist()}
