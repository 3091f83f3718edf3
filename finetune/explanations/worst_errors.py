"""The worst errors of a network: the wrong answers it was surest of, spread over the classes."""

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
    """One wrong answer. Its heat map is that of class `k`: where it was missed, where it was seen."""

    row: int
    """Row of the predictions table."""
    k: int
    """The class it is about; of a multiclass table the class that was answered."""
    probability: float
    """Of class k."""
    kind: str | None = None
    """missed or false alarm; None of a multiclass table."""
    true: int | None = None
    """The right class; of a multiclass table alone."""
    margin: float = 0.0
    """How far it is from being right, in log odds; the largest is the worst."""

    def told(self, predictions: Predictions) -> dict[str, Any]:
        """{sample, patient, class, probability} with kind, or with true and answer."""
        about = predictions.frame.iloc[self.row]
        told = {"sample": str(about["sample"]), "patient": str(about["patient"]), "class": predictions.classes[self.k]}
        if self.kind is not None:
            told["kind"] = self.kind
        if self.true is not None:
            told |= {"true": predictions.classes[self.true], "answer": predictions.classes[self.k]}
        return {**told, "probability": self.probability}


def thresholds_of(operating_points: Mapping[str, Any], classes: list[str]) -> np.ndarray:  # -> (K,)
    """From which probability an answer is yes, by the one rule of `decision_thresholds`."""
    return np.array([about["threshold"] for about in decision_thresholds(operating_points, classes).values()])


def worst(
    predictions: Predictions, most: int, thresholds: np.ndarray | None = None, finding: str | None = None
) -> list[Wrong]:
    """At most `most` wrong answers, the surest first, taken from one class after the other.

    Multilabel: an answer is wrong by the class's threshold, and of a class missed images and false alarms take turns.
    Multiclass: the answer is the most probable class; turns go by the right class. `finding` leaves one class alone. Of
    a class each patient is shown once.
    """
    limits = np.full(len(predictions.classes), 0.5) if thresholds is None else thresholds
    queues = _multiclass(predictions) if predictions.kind == "multiclass" else _multilabel(predictions, limits)
    people = predictions.patients
    waiting = []
    for number, queue in enumerate(queues):
        if finding is None or predictions.classes[number] == finding:
            first = {(people[wrong.row], wrong.kind): wrong for wrong in reversed(queue)}  # the first of each stays
            waiting.append([wrong for wrong in queue if first[people[wrong.row], wrong.kind] is wrong])
    chosen: list[Wrong] = []
    for round_ in zip_longest(*waiting):
        chosen += sorted((wrong for wrong in round_ if wrong is not None), key=lambda wrong: -wrong.margin)
    return chosen[:most]


def count(predictions: Predictions, thresholds: np.ndarray | None = None, finding: str | None = None) -> int:
    """How many answers are wrong in all, or of one class."""
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
        true, said = int(truth[row].argmax()), int(answer[row])
        if true != said:
            margin = float(logits[row, said] - logits[row, true])
            queues[true].append(Wrong(int(row), said, float(probs[row, said]), true=true, margin=margin))
    return [sorted(queue, key=lambda wrong: -wrong.margin) for queue in queues]
