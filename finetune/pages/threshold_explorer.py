"""The scores at every threshold, per class: the numbers of the report's slider."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.evaluation import metrics
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.metrics.classify import CLASSIFY
from finetune.statistics import intervals
from finetune.statistics.curves import thinned

MAX_THRESHOLDS = 80  # per class
METRICS = metrics.names(at_threshold=True)


def part(predictions: Predictions, scores: Mapping[str, Any], limit: int) -> dict[str, Any] | None:
    """The slider's numbers and script; the page allows only this script."""
    classes = explored(predictions, scores.get("operating_points") or {}, limit, scores.get("threshold"))
    if not classes:
        return None
    script = (Path(__file__).parent / "explorer.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(classes, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return {"script": Markup(script), "script_hash": Markup(f"sha256-{digest}"), "data": Markup(data)}


def explored(
    predictions: Predictions, points: Mapping[str, Mapping[str, Any]], limit: int, threshold: float | None = None
) -> list[dict[str, Any]]:
    """Per class (the `limit` with the most positives): thresholds of `prob_<class>` from the highest down, how many are
    true and false positives there, and the limits of METRICS; `points` are the thresholds fitted on val, `threshold`
    that of the table of scores, both of which are included.

    The limits are those of `intervals.share`, as in the tables: the same counts have the same interval everywhere.
    """
    truth, probs = predictions.truth, predictions.probs
    patient = np.unique(predictions.patients.astype(str), return_inverse=True)[1]
    positives = (truth == 1).sum(axis=0)
    both = [k for k in range(len(predictions.classes)) if positives[k] and (truth[:, k] == 0).any()]
    result = []
    for k in sorted(sorted(both, key=lambda k: -positives[k])[:limit]):
        labelled = ~np.isnan(truth[:, k])
        name = predictions.classes[k]
        thresholds_of_points = {
            p: float(about["classes"][name]["threshold"]) for p, about in points.items() if name in about["classes"]
        }
        also = [*thresholds_of_points.values(), *([threshold] if isinstance(threshold, float) else [])]
        numbers = of_class(truth[labelled, k] == 1, probs[labelled, k], patient[labelled], also)
        result.append({"name": name, **numbers, "points": thresholds_of_points})
    return result


def of_class(
    positive: np.ndarray, prob: np.ndarray, patient: np.ndarray, required: Sequence[float] = ()
) -> dict[str, Any]:
    """The numbers of one class from (n,) labelled predictions: thresholds along the ROC curve and the `required` ones,
    from one that calls nothing positive down to one that calls everything positive."""
    order = np.argsort(-prob, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(prob[order]) != 0, True])
    true, false = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    # evenly along the ROC curve: where it is steep a small step of the threshold changes much
    along = prob[order][last][np.isin(true + false, np.add(*thinned(true, false, MAX_THRESHOLDS)))]
    end = scale_end(max([float(prob.max()), *required]))
    above = end if end > prob.max() else np.nextafter(1, 2)
    thresholds = np.unique(np.r_[along, np.asarray(required, np.float64), above])[::-1]
    patient = np.unique(patient, return_inverse=True)[1]
    limits: dict[str, list[list[float | None]]] = {name: [] for name in METRICS}
    right_yes, wrong_yes = [], []
    for threshold in thresholds:
        yes = prob >= threshold
        right_yes.append(int((positive & yes).sum()))
        wrong_yes.append(int((~positive & yes).sum()))
        counts = {"tp": positive & yes, "fp": ~positive & yes, "fn": positive & ~yes, "tn": ~positive & ~yes}
        for name in METRICS:
            entry = CLASSIFY[name]
            right, whole = (np.any([counts[key] for key in keys], axis=0) for keys in (entry.right, entry.whole))
            limits[name].append(share_limits(right, whole, patient))
    return {
        "end": end,
        "thresholds": thresholds.tolist(),
        "true": right_yes,
        "false": wrong_yes,
        "positives": int(positive.sum()),
        "negatives": int((~positive).sum()),
        "limits": limits,
    }


def scale_end(largest: float) -> float:
    """Where the slider's scale, which begins at 0, ends: 1, 0.5, 0.2, 0.1 ..., the lowest that lies above `largest`."""
    end = 1.0
    for exponent in range(6):
        for step in (5, 2, 1):
            if (lower := step / 10 ** (exponent + 1)) <= largest:
                return end
            end = lower
    return end


def share_limits(right: np.ndarray, whole: np.ndarray, patient: np.ndarray) -> list[float | None]:
    """95 % limits of the share of `whole` that is `right`, (n,) each, with patients as the unit."""
    interval = intervals.share(np.bincount(patient, right), np.bincount(patient, whole))
    return [None if np.isnan(x) else round(x, 4) for x in (interval.low, interval.high)]
