"""The scores of detections by class, under any weights of the patients: what intervals and comparisons are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.evaluation.classification.scores import mean_of_defined
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.froc import GRID, LEVELS, Froc
from finetune.evaluation.detection.matching import Matching, match
from finetune.evaluation.detection.precision import AveragePrecision

IOUS = tuple(float(threshold) for threshold in np.linspace(0.5, 0.95, 10))
"""COCO's thresholds; its floating-point values too."""
MAX_DETECTIONS = 100
"""Detections of an image and class that count for average precision, as in COCO. FROC counts all of them."""
METRICS = ("ap50", "ap", "ap75", "froc")


@dataclass
class Scores:
    """Values per resample."""

    classes: dict[str, np.ndarray]
    """(K, B) per metric, NaN where undefined."""
    curve: np.ndarray
    """(K, G, B) sensitivity at each level of GRID."""

    def macro(self) -> dict[str, np.ndarray]:
        """(B,) per metric: the mean over the classes in which it is defined."""
        return {metric: mean_of_defined(values) for metric, values in self.classes.items()}


class Scorer:
    """Matched once and sorted once.

    Args:
        ious: thresholds of the average precisions; without 0.75 there is no ap75, without all ten no ap.
        hit: what counts as found in FROC: an IoU of 0.5, or the centre in the true box; see matching.py.
        matching: at these thresholds, where it is already known.
    """

    def __init__(
        self,
        detections: Detections,
        *,
        ious: Sequence[float] = IOUS,
        hit: str = "iou",
        matching: Matching | None = None,
    ):
        self.detections, self.ious = detections, tuple(ious)
        names, self.patient = np.unique(detections.patients.astype(str), return_inverse=True)
        self.n_patients = len(names)
        self.matching = match(detections, ious) if matching is None else matching
        self.hits = self.matching if hit == "iou" else match(detections, hit=hit)
        self.images = np.bincount(self.patient, minlength=self.n_patients)
        true = detections.truths
        self.truths = np.zeros((len(detections.classes), self.n_patients))
        counted = self.matching.counted
        np.add.at(self.truths, (true.label[counted], self.patient[true.image[counted]]), 1)
        self.precisions, self.frocs = [], []
        for k in range(len(detections.classes)):
            rows = np.flatnonzero((self.matching.label == k) & (self.matching.rank < MAX_DETECTIONS))
            self.precisions.append(AveragePrecision(*self._columns(self.matching, rows), self.truths[k]))
            rows = np.flatnonzero(self.hits.label == k)
            status, score, patient = self._columns(self.hits, rows)
            self.frocs.append(Froc(status[:, 0], score, patient, self.truths[k], self.images))

    def _columns(self, matching: Matching, rows: np.ndarray) -> tuple[Any, Any, Any]:
        """Status, score and patient in the order of the images, in which COCO breaks ties."""
        return matching.status[rows], matching.score[rows], self.patient[matching.image[rows]]

    def __call__(self, weight: np.ndarray) -> Scores:
        """Patient weights (P, B) -> the scores."""
        if not self.n_patients:
            empty = np.full((len(self.precisions), weight.shape[1]), np.nan)
            metrics = dict.fromkeys(("ap50", "froc"), empty)
            return Scores(metrics, np.full((len(empty), len(GRID), weight.shape[1]), np.nan))
        precision = np.stack([ranked.scores(weight)[0] for ranked in self.precisions])  # (K, T, B)
        curve = np.stack([froc.sensitivity(GRID, weight) for froc in self.frocs])
        metrics = {"ap50": precision[:, self.ious.index(0.5)]}
        if self.ious == IOUS:
            metrics |= {"ap": precision.mean(axis=1), "ap75": precision[:, self.ious.index(0.75)]}
        metrics["froc"] = curve[:, np.isin(GRID, LEVELS)].mean(axis=1)
        return Scores(metrics, curve)

    def values(self) -> Scores:
        """The scores themselves: every patient once, B = 1."""
        return self(np.ones((self.n_patients, 1)))


def joined(chunks: Sequence[Scores]) -> Scores | None:
    """Chunks of resamples, one after the other."""
    if not chunks:
        return None
    classes = {m: np.concatenate([chunk.classes[m] for chunk in chunks], axis=-1) for m in chunks[0].classes}
    return Scores(classes, np.concatenate([chunk.curve for chunk in chunks], axis=-1))
