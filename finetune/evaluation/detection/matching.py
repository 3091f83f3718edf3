"""Which detection is which true box: the greedy rule of COCO, for all images and thresholds at once.

In each image and class the detections take their boxes in the order of their scores (of equal ones the earlier first).
A detection takes the true box of the highest IoU that is still free, if that IoU reaches the threshold; a box that is
not ignored goes before one that is. So each true box is found once, and a second detection of it is a false positive.
In an ignored region the overlap is the share of the detection that lies in it; it is never used up.

With hit="centre" a detection hits a true box that its centre lies in, as in LUNA16 and CAMELYON16. As there, a second
detection of a box counts neither as right nor as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from finetune.errors import one_of
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.frames import box_area

HITS = ("iou", "centre")
RIGHT, WRONG, IGNORED = 1, 0, -1
PAIRS_AT_ONCE = 2**21
ALMOST_ONE = 1 - 1e-10  # as COCO: an IoU of 1 that rounding has made smaller still counts


@dataclass(frozen=True, eq=False)
class Matching:
    """What became of each detection. Detections are sorted by image, class and score, `order` says from where."""

    order: np.ndarray
    """(D,) rows of `Detections.boxes`."""
    image: np.ndarray
    """(D,)"""
    label: np.ndarray
    """(D,)"""
    score: np.ndarray
    """(D,)"""
    rank: np.ndarray
    """(D,) place among the detections of its image and class, from 0."""
    status: np.ndarray
    """(D, T) int8 for each threshold: RIGHT, WRONG or IGNORED."""
    truth: np.ndarray
    """(D, T) row of `Detections.truths` that it took, -1 for none."""
    counted: np.ndarray
    """(M,) bool: true boxes that are to be found, in the order of `Detections.truths`; the others are ignored."""
    thresholds: tuple[float, ...]


def match(
    detections: Detections,
    thresholds: Sequence[float] = (0.5,),
    *,
    hit: str = "iou",
    areas: tuple[float, float] = (0.0, np.inf),
) -> Matching:
    """Match by an IoU of at least each of the `thresholds`, or by the centre.

    Args:
        areas: least and most pixels; true boxes of another area are ignored, as are detections of another area that
            match nothing.
    """
    if hit not in HITS:
        raise one_of("hit", hit, HITS)
    true, boxes, k = detections.truths, detections.boxes, max(len(detections.classes), 1)
    order = np.lexsort((-boxes.score, boxes.image * k + boxes.label))
    group = (boxes.image * k + boxes.label)[order]
    true_order = np.argsort(true.image * k + true.label, kind="stable")
    true_group = (true.image * k + true.label)[true_order]
    crowd = true.ignored[true_order]
    ignored = crowd | (true.area[true_order] < areas[0]) | (true.area[true_order] > areas[1])
    limits = np.minimum(np.asarray(thresholds, np.float64), ALMOST_ONE)
    corners = boxes.corners[order]
    least = -np.inf if hit == "centre" else float(limits.min())
    detection, box, overlap = _pairs(group, corners, true_group, true.corners[true_order], crowd, hit, least)
    taken = _greedy(group, detection, box, overlap, crowd, ignored, np.full(1, -np.inf) if hit == "centre" else limits)
    matched = taken >= 0
    status = matched.astype(np.int8)
    if len(ignored):
        status[matched & ignored[taken]] = IGNORED
    if hit == "centre":
        again = np.zeros(len(order), bool)
        again[detection] = True
        status[~matched & again[:, None]] = IGNORED
    area = box_area(corners)
    status[~matched & ((area < areas[0]) | (area > areas[1]))[:, None]] = IGNORED
    counted = np.zeros(len(true), bool)
    counted[true_order] = ~ignored
    rows = true_order if len(true_order) else np.zeros(1, np.int64)
    return Matching(
        order,
        boxes.image[order],
        boxes.label[order],
        boxes.score[order],
        _place(group),
        status,
        np.where(matched, rows[taken], -1),
        counted,
        tuple(thresholds),
    )


def iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | bool = False) -> np.ndarray:
    """Boxes (n, 4) and (n, 4) -> (n,) intersection over union; over the area of `a` where b is a crowd. 0 without any
    area."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area = box_area(a)
    union = np.where(crowd, area, area + box_area(b) - intersection)
    return np.divide(intersection, union, out=np.zeros(len(a)), where=intersection > 0)


def _pairs(
    group: np.ndarray,
    corners: np.ndarray,
    true_group: np.ndarray,
    true_corners: np.ndarray,
    crowd: np.ndarray,
    hit: str,
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections and true boxes of the same group that overlap enough: their numbers and their IoU, (n,) each."""
    first = np.searchsorted(true_group, group, "left")
    count = np.searchsorted(true_group, group, "right") - first
    ends = np.cumsum(count)
    parts = []
    start = 0
    while start < len(group):
        upto = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + PAIRS_AT_ONCE, "right"))
        upto = max(upto, start + 1)
        n = count[start:upto]
        detection = np.repeat(np.arange(start, upto), n)
        box = np.arange(len(detection)) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first[start:upto], n)
        a, b = corners[detection], true_corners[box]
        overlap = iou(a, b, crowd[box])
        if hit == "centre":
            centre = (a[:, :2] + a[:, 2:]) / 2
            near = ((centre >= b[:, :2]) & (centre <= b[:, 2:])).all(axis=1)
        else:
            near = overlap >= least
        parts.append((detection[near], box[near], overlap[near]))
        start = upto
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    detection, box, overlap = (np.concatenate(column) for column in zip(*parts, strict=True))
    return detection, box, overlap


def _greedy(
    group: np.ndarray,
    detection: np.ndarray,
    box: np.ndarray,
    overlap: np.ndarray,
    crowd: np.ndarray,
    ignored: np.ndarray,
    limits: np.ndarray,
) -> np.ndarray:
    """(D, T) the true box that each detection takes, -1 for none.

    In round r the r-th detection of every group, of those that overlap anything, takes its box: groups do not
    depend on each other.
    """
    taken = np.full((len(group), len(limits)), -1, np.int64)
    if not len(detection):
        return taken
    candidates = np.unique(detection)
    round_of = np.zeros(len(group), np.int64)
    round_of[candidates] = _place(group[candidates])
    # of a detection's boxes: not ignored first, then by IoU; of equals COCO takes the last
    best_first = np.lexsort((-box, -overlap, ignored[box], detection, round_of[detection]))
    detection, box, overlap = detection[best_first], box[best_first], overlap[best_first]
    fits = overlap[:, None] >= limits
    again = crowd[box][:, None]
    used = np.zeros((len(crowd), len(limits)), bool)
    edges = np.searchsorted(round_of[detection], np.arange(int(round_of.max()) + 2))
    for begin, end in pairwise(edges.tolist()):
        pairs = slice(begin, end)
        free = fits[pairs] & (~used[box[pairs]] | again[pairs])
        n = end - begin
        place = np.where(free, np.arange(n)[:, None], n)
        starts = np.flatnonzero(np.r_[True, np.diff(detection[pairs]) != 0])
        first = np.minimum.reduceat(place, starts, axis=0)  # (detections of this round, T)
        row, threshold = np.nonzero(first < n)
        chosen = box[begin + first[row, threshold]]
        taken[detection[begin + starts[row]], threshold] = chosen
        used[chosen, threshold] = True
    return taken


def _place(group: np.ndarray) -> np.ndarray:
    """(n,) sorted groups -> the place of each entry within its group, from 0."""
    if not len(group):
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
