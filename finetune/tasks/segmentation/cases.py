"""From a network and a split to the case table, image by image: no mask stays in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.data.annotations import MaskFile
from finetune.data.loading.module import ImageData
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.evaluation.segmentation.assessment import SegmentationFit
from finetune.evaluation.segmentation.cases import Case
from finetune.evaluation.segmentation.collect import HALF, CaseCollector
from finetune.evaluation.segmentation.table import SPACING, CaseTable
from finetune.placement import Placement
from finetune.steps.prediction import predict_each
from finetune.steps.task import Subject

PIXEL_SPACING = "pixel_spacing"
"""Metadata column with the side of a pixel in mm; SPACING are height and width."""


def predict_cases(
    subject: Subject, fitted: SegmentationFit, mean_shape: np.ndarray | None = None, *, distances: bool = True
) -> CaseTable | None:
    """A case for each image of the rows; None on all ranks but the first.

    Args:
        mean_shape: label map (S, S) of the training masks' mean shape, in the network's square.
    """
    data = subject.data
    regions = data.table.regions
    assert regions is not None  # Segmentation.check
    answers = SegmentAnswers.of(regions.names, regions.overlapping, fitted)

    def keep(batch: Mapping[str, Any], logits: np.ndarray) -> list[Case]:
        collector = CaseCollector(regions.names, regions.overlapping, dict(fitted.thresholds), distances)
        for row, of_image in zip(np.asarray(batch["index"]).tolist(), logits, strict=True):
            add_case(collector, data, row, of_image, answers, mean_shape)
        return collector.cases

    cases = predict_each(subject, keep)
    if cases is None:
        return None
    thresholds = {name: fitted.thresholds.get(name, HALF) for name in answers.regions}
    marked = thresholds if regions.overlapping else None
    return CaseTable.from_cases(list(cases.values()), answers.regions, regions.overlapping, marked)


def add_case(
    collector: CaseCollector,
    data: ImageData,
    row: int,
    logits: np.ndarray,
    answers: SegmentAnswers,
    mean_shape: np.ndarray | None = None,
) -> None:
    """The case of one row of the table, of its logits (K, S, S)."""
    place, truth = placement(data, row), true_mask(data, row)
    entry = data.table.annotations["mask"][row]
    regions = data.table.regions
    assert regions is not None  # Segmentation.check
    known = entry.known(regions) if isinstance(entry, MaskFile) else np.zeros(len(regions), bool)
    frame = data.table.frame.iloc[row]
    metadata = {name: frame[name] for name in data.table.metadata if name not in SPACING}
    options: dict[str, Any] = {"known": known, "spacing": spacing(frame), "metadata": metadata}
    if mean_shape is not None:
        options["mean_shape"] = place.mask_to_stored(mean_shape)
    if answers.overlapping:
        probabilities = answers.stored_probabilities(logits, place)
        collector.update_probabilities(frame["path"], frame["patient"], probabilities, truth, **options)
    else:
        collector.update(frame["path"], frame["patient"], answers.label_map(logits, place), truth, **options)


def placement(data: ImageData, row: int) -> Placement:
    """Where the image lies in the network's square."""
    height, width = (int(side) for side in data.images.sizes[row])
    return data.preprocessing.placement(height, width)


def true_mask(data: ImageData, row: int) -> np.ndarray:  # -> uint8 (H, W)
    """The mask of an image as stored; nothing where it is not known."""
    height, width = (int(side) for side in data.images.sizes[row])
    entry = data.table.annotations["mask"][row]
    if not isinstance(entry, MaskFile):
        return np.zeros((height, width), np.uint8)
    return entry.read(data.table.root, data.table.regions, (height, width))


def spacing(row: Any) -> tuple[float, float] | None:
    """Millimetres between rows and between columns, from the metadata of an image; None where it does not say."""
    names = SPACING if all(name in row for name in SPACING) else (PIXEL_SPACING, PIXEL_SPACING)
    try:
        steps = [float(row[name]) for name in names if name in row]
    except (TypeError, ValueError):
        return None
    return (steps[0], steps[1]) if len(steps) == 2 and all(0 < step < np.inf for step in steps) else None
