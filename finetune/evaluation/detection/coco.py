"""COCO's table of scores, equal to that of pycocotools (Lin et al., 2014, "Microsoft COCO"); -1 there is NaN here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.evaluation.classification.scores import mean_of_defined
from finetune.evaluation.detection.detections import DetectedArrays, Detections, TrueArrays
from finetune.evaluation.detection.matching import RIGHT, Matching, match
from finetune.evaluation.detection.precision import AveragePrecision
from finetune.evaluation.detection.scorer import IOUS, MAX_DETECTIONS

AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
"""Square pixels of the image as stored. COCO made these limits for its photographs."""


def coco_scores(detections: Detections, matching: Matching | None = None) -> dict[str, dict[str, float]]:
    """{"all": {metric: mean over the classes with true boxes}, class: {metric: value}}.

    The metrics are those of pycocotools: ap (mean over IoU 0.50 to 0.95), ap50, ap75, ap_small, ap_medium, ap_large,
    ar_1, ar_10, ar_100 (mean recall with so many detections per image and class), ar_small, ar_medium, ar_large.

    Args:
        matching: at IOUS, where it is already known.
    """
    names = detections.classes
    whole = match(detections, IOUS) if matching is None else matching
    precision, recall = _by_class(detections, whole)
    columns = {"ap": precision.mean(axis=1), "ap50": precision[:, 0], "ap75": precision[:, IOUS.index(0.75)]}
    sizes = {size: _by_class(detections, match(detections, IOUS, areas=areas)) for size, areas in AREAS.items()}
    columns |= {f"ap_{size}": sizes[size][0].mean(axis=1) for size in AREAS}
    columns |= {f"ar_{most}": _recall(detections, whole, most) for most in (1, 10)}
    columns["ar_100"] = recall.mean(axis=1)
    columns |= {f"ar_{size}": sizes[size][1].mean(axis=1) for size in AREAS}
    by_class = {name: {metric: float(values[k]) for metric, values in columns.items()} for k, name in enumerate(names)}
    return {"all": {metric: float(mean_of_defined(values)) for metric, values in columns.items()}, **by_class}


def mean_ap50(images: Sequence[tuple[np.ndarray, ...]]) -> float:
    """The mean over the classes of COCO's average precision at an IoU of 0.5; NaN where no image has a true box.

    Args:
        images: of each its true boxes (M, 4), their labels (M,), the detected boxes (D, 4), their scores (D,) and
            labels (D,); where some true boxes are ignored, which (M,). Labels are numbers of classes from 0.
    """
    numbers = [int(image[place].max()) for image in images for place in (1, 4) if len(image[place])]
    truths: list[TrueArrays] = [(*image[:2], *image[5:]) for image in images]  # type: ignore[misc]
    detected: list[DetectedArrays] = [(boxes, scores, labels) for _, _, boxes, scores, labels, *_ in images]
    names = [str(i) for i in range(len(images))]
    classes = [str(k) for k in range(max(numbers, default=0) + 1)]
    detections = Detections.from_arrays(names, names, classes, truths, detected)
    return float(mean_of_defined(_by_class(detections, match(detections))[0][:, 0]))


def _by_class(detections: Detections, matching: Matching) -> tuple[np.ndarray, np.ndarray]:
    """Average precision (K, T) and recall (K, T) with all MAX_DETECTIONS."""
    results = []
    for k, truths in enumerate(_truths(detections, matching)):
        rows = np.flatnonzero((matching.label == k) & (matching.rank < MAX_DETECTIONS))
        nobody = np.zeros(len(rows), int)
        ranked = AveragePrecision(matching.status[rows], matching.score[rows], nobody, np.array([truths]))
        results.append([values[:, 0] for values in ranked.scores(np.ones((1, 1)))])
    precision, recall = np.array(results).transpose(1, 0, 2)
    return precision, recall


def _recall(detections: Detections, matching: Matching, most: int) -> np.ndarray:
    """(K,) mean recall over the thresholds with the `most` best detections of an image and class."""
    right = (matching.status == RIGHT).mean(axis=1) * (matching.rank < most)
    total = np.bincount(matching.label, right, len(detections.classes))
    truths = _truths(detections, matching)
    return np.divide(total, truths, out=np.full(len(truths), np.nan), where=truths > 0)


def _truths(detections: Detections, matching: Matching) -> np.ndarray:
    """(K,) true boxes that are to be found."""
    return np.bincount(detections.truths.label[matching.counted], minlength=len(detections.classes)).astype(np.float64)
