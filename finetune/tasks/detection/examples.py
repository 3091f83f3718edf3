"""The worst, median and best images of a split with their true and detected boxes, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finetune import drawing
from finetune.drawing import LabelledBox
from finetune.evaluation.classification.thresholds import decision_thresholds
from finetune.evaluation.detection.assessment import DetectionFit
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.matching import RIGHT, WRONG, match
from finetune.pages.cases import Case, Cases, ranked
from finetune.runs.folder import RunFolder
from finetune.steps.task import Subject
from finetune.tasks.detection.predicting import placement

METRIC = "worst_error"
MAX_BYTES = 24_000  # of an overlay
MAX_BOXES = 20  # detections drawn in an image, the highest scores first


def write(
    folder: RunFolder, subject: Subject, detections: Detections, fitted: DetectionFit, number: int, hit: str
) -> None:
    """Write cases.json: about `number` images with their boxes, and the false positives of every image; `hit` is what
    counts as right, as for `match`."""
    limits = thresholds_of(fitted.operating_points, detections.classes)
    errors, false_positives = worst_errors(detections, limits, hit)  # (N, K), (N,)
    of_image = errors.max(axis=1, initial=0.0)
    chosen = ranked(of_image.tolist(), each=max(number // 3, 1), higher_is_better=False) if number else []
    row_of = {path: row for row, path in enumerate(subject.data.table.paths)}
    cases = []
    for image, rank in chosen:
        sample, patient = detections.images.iloc[image][["sample", "patient"]]
        plain, overlay = drawn(subject, row_of[str(sample)], detections, image, limits)
        of_class = dict(zip(detections.classes, errors[image].tolist(), strict=True))
        cases.append(Case(str(sample), str(patient), rank, float(of_image[image]), plain, overlay, of_class))
    Cases(METRIC, cases, false_positives=false_positives.tolist(), split=subject.split).write(folder.cases)


def thresholds_of(points: Mapping[str, Mapping[str, object]], classes: Sequence[str]) -> np.ndarray:  # -> (K,)
    """From which score a box of each class counts."""
    return np.array([about["threshold"] for about in decision_thresholds(points, classes).values()])


def worst_errors(detections: Detections, limits: np.ndarray, hit: str) -> tuple[np.ndarray, np.ndarray]:
    """How confident the worst error of each image and class is (N, K), and the false positives of each image (N,).

    Of a false positive from the threshold on it is the score; of a true box that no such detection matches, 1 less the
    score of the detection that does, or 1. It is 0 without an error.
    """
    true, n, k = detections.truths, len(detections), len(detections.classes)
    matching = match(detections, hit=hit)
    counts = matching.score >= limits[matching.label]
    status = matching.status[:, 0]
    errors, false_positives = np.zeros((n, k)), np.zeros(n, np.int64)
    wrong = counts & (status == WRONG)
    np.maximum.at(errors, (matching.image[wrong], matching.label[wrong]), matching.score[wrong])
    np.add.at(false_positives, matching.image[wrong], 1)
    score_of = np.zeros(len(true))
    right = status == RIGHT
    score_of[matching.truth[right, 0]] = matching.score[right]
    missed = matching.counted & (score_of < limits[true.label])
    np.maximum.at(errors, (true.image[missed], true.label[missed]), 1 - score_of[missed])
    return errors, false_positives


def drawn(subject: Subject, row: int, detections: Detections, image: int, limits: np.ndarray) -> tuple[str, str]:
    """The image of a row of the sample table as the network sees it, and the same with its true boxes and those that
    are detected from the thresholds on, as JPEG in base64."""
    data, place = subject.data, placement(subject.data, row)
    pixels = data.preprocessing.crop(data.images[row])
    true, boxes = detections.truths, detections.boxes
    of_true = true.take(np.flatnonzero((true.image == image) & ~true.ignored))
    rows = np.flatnonzero((boxes.image == image) & (boxes.score >= limits[boxes.label]))
    of_boxes = boxes.take(rows[np.argsort(-boxes.score[rows], kind="stable")[:MAX_BOXES]])

    def labelled(corners: np.ndarray, labels: np.ndarray, scores: np.ndarray | None = None) -> list[LabelledBox]:
        placed = place.boxes_to_square(corners)
        several = len(detections.classes) > 1
        return [
            LabelledBox(
                (left, top, right, bottom),
                detections.classes[labels[i]] if several else "",
                None if scores is None else float(scores[i]),
            )
            for (left, top, right, bottom), i in zip(placed.corners.tolist(), placed.numbers.tolist(), strict=True)
        ]

    overlay = drawing.with_boxes(
        pixels, labelled(of_true.corners, of_true.label), labelled(of_boxes.corners, of_boxes.label, of_boxes.score)
    )
    return drawing.jpeg(pixels, drawing.SIDE, MAX_BYTES), drawing.jpeg(overlay, max(overlay.shape[:2]), MAX_BYTES)
