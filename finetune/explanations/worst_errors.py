"""The most confident errors of a network, spread over the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from scipy.special import logit

from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.thresholds import decision_thresholds

MISSED, ALARM = "missed", "false alarm"


@dataclass(frozen=True)
class Wrong:
    """One wrong prediction. Its heat map is that of class `k`, whether missed or a false alarm."""

    row: int
    """Row of the predictions table."""
    k: int
    """The class; of a multiclass table the predicted class."""
    probability: float
    """Of class k."""
    kind: str | None = None
    """missed or false alarm; None of a multiclass table."""
    true: int | None = None
    """The right class; of a multiclass table alone."""
    margin: float = 0.0
    """How far it is from being right, in log odds; the largest is the worst."""

    def to_dict(self, predictions: Predictions) -> dict[str, Any]:
        """{sample, patient, class, probability} with kind, or with true and answer."""
        sample_row = predictions.frame.iloc[self.row]
        entry = {
            "sample": str(sample_row["sample"]),
            "patient": str(sample_row["patient"]),
            "class": predictions.classes[self.k],
        }
        if self.kind is not None:
            entry["kind"] = self.kind
        if self.true is not None:
            entry |= {"true": predictions.classes[self.true], "answer": predictions.classes[self.k]}
        return {**entry, "probability": self.probability}


def thresholds_of(operating_points: Mapping[str, Any], classes: list[str]) -> np.ndarray:  # -> (K,)
    """The probability from which a prediction is positive, by the rule of `decision_thresholds`."""
    return np.array([about["threshold"] for about in decision_thresholds(operating_points, classes).values()])


def worst(
    predictions: Predictions, limit: int, thresholds: np.ndarray | None = None, finding: str | None = None
) -> list[Wrong]:
    """At most `limit` wrong predictions, the most confident first, taken from one class after the other.

    Multilabel: a prediction is wrong by the class's threshold; missed images and false alarms of a class alternate.
    Multiclass: the prediction is the most probable class; the true classes take turns. `finding` keeps one class only.
    Each patient is shown once per class.
    """
    limits = np.full(len(predictions.classes), 0.5) if thresholds is None else thresholds
    queues = _multiclass(predictions) if predictions.kind == "multiclass" else _multilabel(predictions, limits)
    people = predictions.patients
    waiting = []
    for number, queue in enumerate(queues):
        if finding is None or predictions.classes[number] == finding:
            first = {(people[wrong.row], wrong.kind): wrong for wrong in reversed(queue)}  # the first of each stays
            waiting.append([wrong for wrong in queue if first[people[wrong.row], wrong.kind] is wrong])
    selected: list[Wrong] = []
    for round_ in zip_longest(*waiting):
        selected += sorted((wrong for wrong in round_ if wrong is not None), key=lambda wrong: -wrong.margin)
    return selected[:limit]


def count(predictions: Predictions, thresholds: np.ndarray | None = None, finding: str | None = None) -> int:
    """The number of wrong predictions, in total or of one class."""
    limits = np.full(len(predictions.classes), 0.5) if thresholds is None else thresholds
    queues = _multiclass(predictions) if predictions.kind == "multiclass" else _multilabel(predictions, limits)
    return sum(len(q) for name, q in zip(predictions.classes, queues, strict=True) if finding in (None, name))


def _multilabel(predictions: Predictions, limits: np.ndarray) -> list[list[Wrong]]:
    truth, logits, probs = predictions.truth, predictions.logits, predictions.probs
    queues = []
    for k, limit in enumerate(limits):
        margin = logits[:, k] - logit(np.clip(limit, 1e-9, 1 - 1e-9))
        yes = probs[:, k] >= limit
        sides = []
        for kind, wrong in ((MISSED, (truth[:, k] == 1) & ~yes), (ALARM, (truth[:, k] == 0) & yes)):
            rows = np.flatnonzero(wrong)
            rows = rows[np.argsort(-np.abs(margin[rows]), kind="stable")]
            sides.append([Wrong(int(r), k, float(probs[r, k]), kind, margin=float(abs(margin[r]))) for r in rows])
        sides.sort(key=lambda side: -side[0].margin if side else 0.0)
        queues.append([wrong for pair in zip_longest(*sides) for wrong in pair if wrong is not None])
    return queues


def _multiclass(predictions: Predictions) -> list[list[Wrong]]:
    truth, logits, probs = predictions.truth, predictions.logits, predictions.probs
    queues: list[list[Wrong]] = [[] for _ in predictions.classes]
    answer = logits.argmax(axis=1)
    for row in np.flatnonzero(~np.isnan(truth).any(axis=1)):
        true, predicted = int(truth[row].argmax()), int(answer[row])
        if true != predicted:
            margin = float(logits[row, predicted] - logits[row, true])
            queues[true].append(Wrong(int(row), predicted, float(probs[row, predicted]), true=true, margin=margin))
    return [sorted(queue, key=lambda wrong: -wrong.margin) for queue in queues]
