"""The types that a target of the sample table may have, what their values are, and what splits are balanced over.

- finding: a column of 1, 0, NaN (unknown) or a soft value between; one of `classes`, kind=multilabel
- class: a column of 1 and 0 that sum to 1 over `classes`, kind=multiclass
- number: a column of finite numbers, NaN where unknown
- grade: a column of whole numbers of 0 or more that have an order, NaN where unknown
- mask: an annotation (data/annotations.py) of one MaskFile per row, None where unknown
- boxes: an annotation of Boxes, None where unknown

To learn a new type: give it a task, and add it to LEARNED. A source names targets that are no classes in
`SampleTable.other_targets`; table, splits, audit and loading need no change for the types above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.data.annotations import Annotation, Boxes, MaskFile

TYPE_OF_KIND = {"multilabel": "finding", "multiclass": "class"}
"""kind of the table -> type of its classes"""
NO_CLASSES = "none"
"""kind of a table without classes"""
COLUMNS = ("number", "grade")
"""Types of other targets that are a column target_<name>."""
ANNOTATED: dict[str, type[Annotation]] = {"mask": MaskFile, "boxes": Boxes}
"""Types of other targets that are annotations, at most one target of each."""
OTHER_TYPES = (*COLUMNS, *ANNOTATED)
LEARNED = ("finding", "class")
"""Types that a classification learns."""

QUANTILES = 5  # parts of equal size that splits are balanced over, for numbers
MAX_GRADES = 20  # distinct grades; more are balanced as numbers are


def wrong_values(values: np.ndarray, target_type: str) -> tuple[np.ndarray, str]:  # (N,) -> bool (N,)
    """Which values a number or grade cannot have, and what they must be."""
    wrong = np.isinf(values)
    if target_type == "number":
        return wrong, "must be finite, or NaN (unknown)"
    with np.errstate(invalid="ignore"):
        return wrong | (values < 0) | (values % 1 > 0), "must be a whole number of 0 or more, or NaN (unknown)"


def column_strata(values: np.ndarray, target_type: str) -> np.ndarray:  # (N,) -> bool (N, L)
    """A grade's value, or the fifth of the known numbers that a number is in; unknown ones are in none."""
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    distinct = np.unique(values[known])
    if target_type == "grade" and len(distinct) <= MAX_GRADES:
        return values[:, None] == distinct
    if not len(distinct):
        return np.zeros((len(values), 0), bool)
    edges = np.unique(np.quantile(values[known], np.arange(1, QUANTILES) / QUANTILES, method="inverted_cdf"))
    part = np.searchsorted(edges, values, side="left")  # an edge belongs to the part below it
    return (part[:, None] == np.arange(len(edges) + 1)) & known[:, None]


def annotation_strata(entries: Sequence[Annotation | None]) -> np.ndarray:  # (N,) -> bool (N, L)
    """Whether an image is annotated; of boxes each label, of runs of pixels whether any are marked, of masks in layers
    each region. No file is read: its layer counts as marked."""
    columns = [[entry is not None for entry in entries]]
    if any(isinstance(entry, MaskFile) for entry in entries):
        columns.append([isinstance(entry, MaskFile) and bool(entry.rle and entry.rle.strip()) for entry in entries])
    layers = [entry.layers or () if isinstance(entry, MaskFile) else () for entry in entries]
    marked = [{number for number, layer in of_row if layer.marked} for of_row in layers]
    columns += [[number in of_row for of_row in marked] for number in sorted(set().union(*marked))]
    shown = [set(entry.target_labels) if isinstance(entry, Boxes) else set() for entry in entries]
    columns += [[label in labels for labels in shown] for label in box_labels(entries)]
    return np.array(columns, bool).T


def box_labels(entries: Sequence[Annotation | None]) -> list[str]:
    """All labels of the boxes that are targets, in alphabetical order: their places are the numbers in a batch."""
    return sorted({label for entry in entries if isinstance(entry, Boxes) for label in entry.target_labels})


def types_in_words(types: dict[str, str]) -> str:
    """age (number), stage (grade)"""
    return ", ".join(f"{name} ({target_type})" for name, target_type in types.items())
