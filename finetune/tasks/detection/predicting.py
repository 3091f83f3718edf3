"""From a network and a split to the table of detections, in pixels of the images as stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.data.loading.module import ImageData
from finetune.evaluation.detection.boxes_file import in_stored_image
from finetune.evaluation.detection.detections import DetectedArrays, Detections
from finetune.placement import Placement
from finetune.steps.prediction import predict_each
from finetune.steps.task import Subject
from finetune.tasks.detection.truths import boxes_of, labels_of, true_arrays


def predict_detections(subject: Subject) -> Detections | None:
    """The true and the detected boxes of every image of the rows whose true boxes are known, None on all ranks but the
    first. The classes are those of the table, in the order of the network's."""
    data, table = subject.data, subject.data.table
    of_network = labels_of(table) if subject.model is None else subject.model.classes
    classes = [name for name in of_network if name in labels_of(table)]
    numbers = np.array([classes.index(name) if name in classes else -1 for name in of_network], np.int64)

    def keep(batch: Mapping[str, Any], outputs: Sequence[Any]) -> list[DetectedArrays]:
        return [
            _of_classes(in_stored_image(detected, placement(data, row)), numbers)
            for row, detected in zip(np.asarray(batch["index"]).tolist(), outputs, strict=True)
        ]

    detected = predict_each(subject, keep)
    if detected is None:
        return None
    entries = boxes_of(table)
    rows = [row for row in detected if entries[row] is not None]
    frame = table.frame.iloc[rows]
    detections = Detections.from_arrays(
        frame["path"].tolist(),
        frame["patient"].tolist(),
        classes,
        [true_arrays(entries[row], classes) for row in rows],  # type: ignore[arg-type]
        [detected[row] for row in rows],
        frame[table.metadata].reset_index(drop=True),
        data.images.sizes[rows][:, ::-1],  # height and width -> width and height
    )
    detections.unlabelled = len(detected) - len(rows)
    return detections


def placement(data: ImageData, row: int) -> Placement:
    """Where the image of a row lies in the network's square."""
    height, width = data.images.sizes[row].tolist()
    return data.preprocessing.placement(height, width)


def _of_classes(detected: DetectedArrays, numbers: np.ndarray) -> DetectedArrays:
    """The boxes of the requested classes; `numbers` (K,) are theirs, -1 of those that are not."""
    corners, scores, labels = detected
    labels = numbers[labels]
    requested = labels >= 0
    return corners[requested], scores[requested], labels[requested]
