"""Images with a true box against those without: the highest score of an image as its prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.detection.detections import Detections
from finetune.statistics.intervals import delong

NOTHING = -1.0
"""Below every score: an image without a detection."""


def highest_scores(detections: Detections) -> np.ndarray:
    """(N, K) the highest score of each class in each image, NOTHING without a detection."""
    boxes = detections.boxes
    highest = np.full((len(detections), len(detections.classes)), NOTHING)
    np.maximum.at(highest, (boxes.image, boxes.label), boxes.score)
    return highest


def has_truth(detections: Detections) -> np.ndarray:
    """(N, K) of 1 and 0; NaN where all true boxes of the class are ignored."""
    true = detections.truths
    shape = (len(detections), len(detections.classes))
    counted, ignored = np.zeros((2, *shape), bool)
    for table, rows in ((counted, ~true.ignored), (ignored, true.ignored)):
        table[true.image[rows], true.label[rows]] = True
    return np.where(counted, 1.0, np.where(ignored, np.nan, 0.0))


def image_level(detections: Detections) -> dict[str, Any]:
    """{"any": {auroc, positives, negatives, unknown}, "classes": {class: {...}}}: AUROC of "has a true box" with its
    interval over patients (DeLong)."""
    truth, score, patient = has_truth(detections), highest_scores(detections), detections.patients.astype(str)
    patient = np.unique(patient, return_inverse=True)[1]
    any_truth = np.where((truth == 1).any(axis=1), 1.0, np.where(np.isnan(truth).any(axis=1), np.nan, 0.0))

    def scores(target: np.ndarray, highest: np.ndarray) -> dict[str, Any]:
        return {
            "auroc": delong(target, highest, patient).interval().as_dict(),
            "positives": int((target == 1).sum()),
            "negatives": int((target == 0).sum()),
            "unknown": int(np.isnan(target).sum()),
        }

    classes = {name: scores(truth[:, k], score[:, k]) for k, name in enumerate(detections.classes)}
    return {"any": scores(any_truth, score.max(axis=1)), "classes": classes}
