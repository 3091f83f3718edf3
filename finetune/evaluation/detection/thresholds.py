"""Operating points: score thresholds for a number of false positives per image on val, applied unchanged to test.

Each class has its threshold, and the number of false positives is that of this class. Among the thresholds that allow
no more of them on val, the lowest is taken: it finds the most. It lies halfway between two scores of val; from it on a
detection counts. With few patients in val the threshold is itself uncertain, and the intervals on test do not include
that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.matching import IGNORED, RIGHT, WRONG, Matching, match
from finetune.statistics import intervals
from finetune.statistics.intervals import Interval
from finetune.statistics.rates import rate

GOAL = "false_positives"


def read_levels(values: Sequence[Any], where: str = "evaluation.false_positives") -> list[float]:
    """Numbers of false positives per image, each above 0."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise FinetuneError(f"{where}={values} must be a list of numbers, such as [0.5, 1, 2].")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
            raise FinetuneError(f"{where}={list(values)}: {value} must be a number above 0.")
    return [float(value) for value in values]


def point_name(level: float) -> str:
    """The name of an operating point: fp_0.5."""
    return f"fp_{level:g}"


def in_words(level: float) -> str:
    """1 false positive per image"""
    return f"{level:g} false positive{'' if level == 1 else 's'} per image"


def best_threshold(score: np.ndarray, wrong: np.ndarray, most: float) -> float | None:
    """The lowest threshold with at most so many wrong detections.

    None if not even the highest score fulfils it, or there is no detection.

    Args:
        score, wrong: (n,) scores, and whether the detection is a false positive.
    """
    if not len(score):
        return None
    values, which = np.unique(-score, return_inverse=True)
    values = -values  # from high to low
    allowed = np.cumsum(np.bincount(which, wrong)) <= most * (1 + 1e-9)
    i = int(allowed.argmin()) if not allowed.all() else len(values)  # scores that count
    upper = values[i - 1] if i else 1.0
    lower = values[i] if i < len(values) else 0.0
    if lower >= upper:
        return float(upper) if i else None  # a detection with a score of 1 is one too many; or a score of 0 counts
    middle = (upper + lower) / 2
    return float(middle if lower < middle else upper)


def fit_operating_points(
    detections: Detections, levels: Sequence[float], *, split: str = "val", hit: str = "iou"
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Per operating point {goal, value, split, thresholds: {class: threshold}}, in plain values for the model file; and
    notes in sentences."""
    patients = len(np.unique(detections.patients.astype(str)))
    if levels and patients < intervals.MIN_PATIENTS:
        return {}, [f"{split} has {intervals.FEW_PATIENTS}: no operating point."]
    matching, points, notes = match(detections, hit=hit), {}, []
    shown = [name for k, name in enumerate(detections.classes) if (matching.label == k).any()]
    if levels and (silent := [name for name in detections.classes if name not in shown]):
        notes.append(f"{split} has no detection, so there is no operating point: {', '.join(silent)}.")
    for level in levels:
        thresholds: dict[str, float] = {}
        for k, name in enumerate(detections.classes):
            rows = (matching.label == k) & (matching.status[:, 0] != IGNORED)
            wrong = matching.status[rows, 0] == WRONG
            threshold = best_threshold(matching.score[rows], wrong, level * len(detections))
            if threshold is not None:
                thresholds[name] = threshold
        if unmet := [name for name in shown if name not in thresholds]:
            notes.append(f"No threshold gives {in_words(level)} in {split}: {', '.join(unmet)}.")
        if thresholds:
            points[point_name(level)] = {"goal": GOAL, "value": level, "split": split, "thresholds": thresholds}
    return points, notes


def evaluate_operating_points(
    detections: Detections,
    points: Mapping[str, Mapping[str, Any]],
    *,
    hit: str = "iou",
    matching: Matching | None = None,
) -> dict[str, Any]:
    """Per operating point {criterion, goal, goal_value, chosen_on, all: {...}, classes: {class: {threshold, ...}}}.

    The scores are sensitivity, false_positives (per image) and ppv, {value, low, high} each, and tp, fp, fn. `all`
    counts the boxes of all classes together.

    Args:
        matching: that of `hit`, where it is already known; its first threshold counts.
    """
    matching = match(detections, hit=hit) if matching is None else matching
    names, patient = np.unique(detections.patients.astype(str), return_inverse=True)
    n, k = len(names), len(detections.classes)
    images = np.bincount(patient, minlength=n)
    true = detections.truths
    truths = np.zeros((k, n))
    np.add.at(truths, (true.label[matching.counted], patient[true.image[matching.counted]]), 1)
    result: dict[str, Any] = {}
    for point, about in points.items():
        limits = np.array([about["thresholds"].get(name, np.nan) for name in detections.classes])
        shown = matching.score >= limits[matching.label]  # False where there is no threshold
        counts = []
        for status in (RIGHT, WRONG):
            rows = shown & (matching.status[:, 0] == status)
            table = np.zeros((k, n))
            np.add.at(table, (matching.label[rows], patient[matching.image[rows]]), 1)
            counts.append(table)
        has = ~np.isnan(limits)
        every = _scores(counts[0][has].sum(axis=0), counts[1][has].sum(axis=0), truths[has].sum(axis=0), images)
        classes = {
            name: {"threshold": float(limits[i]), **_scores(counts[0][i], counts[1][i], truths[i], images)}
            for i, name in enumerate(detections.classes)
            if has[i]
        }
        result[point] = {
            "criterion": in_words(about["value"]),
            "goal": about["goal"],
            "goal_value": about["value"],
            "chosen_on": about["split"],
            "all": every,
            "classes": classes,
        }
    return result


def _scores(right: np.ndarray, wrong: np.ndarray, truths: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """From the counts (P,) of each patient."""
    scores = {
        "sensitivity": _share(right, truths, "no true boxes"),
        "false_positives": rate(wrong, images),
        "ppv": _share(right, right + wrong, "no detection"),
    }
    counts = {"tp": right.sum(), "fp": wrong.sum(), "fn": (truths - right).sum()}
    return {**{m: i.as_dict() for m, i in scores.items()}, **{name: int(count) for name, count in counts.items()}}


def _share(part: np.ndarray, whole: np.ndarray, why: str) -> Interval:
    return intervals.share(part, whole) if whole.any() else Interval(np.nan, reason=why)
