"""The true boxes of a sample table, as training and evaluation need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from finetune.config import data_targets
from finetune.data.annotations import Annotation, Boxes
from finetune.data.sources.listing import shorten
from finetune.data.table import SampleTable
from finetune.data.targets import box_labels
from finetune.errors import FinetuneError
from finetune.evaluation.detection.detections import TrueArrays

BOXES = "boxes"
"""Type of the target."""


def target_name(table: SampleTable) -> str:
    """Name of the target that holds the boxes.

    Raises:
        FinetuneError: the table has none.
    """
    names = [name for name, target_type in table.other_targets.items() if target_type == BOXES]
    if not names:
        raise FinetuneError(
            f"table {table.name} has no boxes, which task=detect learns (data.target=boxes). "
            f"{data_targets.ways_out(BOXES, [])}"
        )
    return names[0]


def boxes_of(table: SampleTable) -> Sequence[Annotation | None]:
    """The boxes of each row, None where they are not known."""
    return table.annotations[target_name(table)]


def labels_of(table: SampleTable) -> list[str]:
    """The labels of all boxes, whose places are the numbers in a batch."""
    return box_labels(boxes_of(table))


def known(table: SampleTable, rows: Iterable[int]) -> list[Boxes]:
    """The boxes of those rows of which they are known."""
    entries = boxes_of(table)
    return [entry for row in rows if isinstance(entry := entries[row], Boxes)]


def never_in_train(table: SampleTable) -> list[str]:
    """Labels without a box in train."""
    return sorted(set(labels_of(table)) - set(box_labels(known(table, table.rows("train").tolist()))))


def true_arrays(boxes: Boxes, classes: Sequence[str]) -> TrueArrays:
    """Corners (M, 4), numbers among `classes` (M,) and which are ignored (M,); boxes of other labels are left out."""
    rows = [i for i, label in enumerate(boxes.labels) if label in classes]
    numbers = np.array([classes.index(boxes.labels[i]) for i in rows], np.int64)
    return boxes.corners[rows], numbers, np.array(boxes.ignored, bool)[rows]


def with_labels(table: SampleTable, classes: Sequence[str], argument: str) -> SampleTable:
    """The table with the boxes of `classes` alone, which are compared by name.

    Raises:
        FinetuneError: it has no box of any of them.
    """
    labels = labels_of(table)
    if not set(labels) & set(classes):
        raise FinetuneError(
            f"The boxes of {table.name} are of {shorten(labels, 8)}, {argument} detects {shorten(classes, 8)}: no "
            "label is in both. task=detect compares them by name and reads no data.map: rename the labels of the data."
        )
    others = sorted(set(labels) - set(classes))
    if not others:
        return table
    entries = [_of_labels(entry, classes) if isinstance(entry, Boxes) else entry for entry in boxes_of(table)]
    note = f"{argument} does not detect {shorten(others, 8)}: boxes of these labels are left out."
    annotations = {**table.annotations, target_name(table): entries}
    return replace(table, annotations=annotations, notes=[*table.notes, note])  # type: ignore[arg-type]


def _of_labels(boxes: Boxes, classes: Sequence[str]) -> Boxes:
    rows = [i for i, label in enumerate(boxes.labels) if label in classes]
    labels, ignored = (tuple(values[i] for i in rows) for values in (boxes.labels, boxes.ignored))
    return Boxes(boxes.corners[rows], labels, boxes.complete, ignored)  # type: ignore[arg-type]
