"""What the audit counts and checks of targets that are no classes: numbers, grades, masks and boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.annotations import Boxes
from finetune.data.sources.listing import shorten
from finetune.data.table import SPLITS, SampleTable
from finetune.data.targets import COLUMNS

if TYPE_CHECKING:
    from finetune.data.cache.image_cache import ImageCache

MIN_KNOWN = 10  # images of a split with a known value, below which a score says little


def target_counts(table: SampleTable, rows: np.ndarray) -> dict[str, dict[str, Any]]:
    """Name of the target -> type, known and unknown images, and: of numbers their mean, range and quartiles; of grades
    images per grade; of boxes their number and boxes per label."""
    return {name: _counts(table, name, kind, rows) for name, kind in table.other_targets.items()}


def _counts(table: SampleTable, name: str, target_type: str, rows: np.ndarray) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if target_type in COLUMNS:
        values = table.frame[f"target_{name}"].to_numpy(np.float64)[rows]
        values = values[~np.isnan(values)]
        known = len(values)
        if target_type == "grade":
            grades, images = np.unique(values, return_counts=True)
            details = {"grades": {f"{grade:g}": n for grade, n in zip(grades.tolist(), images.tolist(), strict=True)}}
        elif known:
            low, lower, median, upper, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
            details = {"mean": float(values.mean()), "low": low, "quartiles": [lower, median, upper], "high": high}
    else:
        entries = [table.annotations[name][row] for row in rows.tolist()]
        known = sum(entry is not None for entry in entries)
        if target_type == "boxes":
            labels = Counter(label for entry in entries if isinstance(entry, Boxes) for label in entry.labels)
            details = {"boxes": labels.total(), "labels": dict(sorted(labels.items()))}
    return {"type": target_type, "known": known, "unknown": len(rows) - known, **details}


def rarely_known(table: SampleTable) -> Iterator[str]:
    """Targets that a split knows too rarely, numbers that never vary, grades that train never shows."""
    for name, target_type in table.other_targets.items():
        counts = {split: _counts(table, name, target_type, rows) for split in SPLITS if len(rows := table.rows(split))}
        for split, of_split in counts.items():
            if of_split["known"] < MIN_KNOWN:
                what = "there is little to learn from" if split == "train" else "its scores are uncertain"
                yield f"{split} has {of_split['known']} image(s) with a known {name} ({target_type}): {what}."
            if target_type == "number" and of_split["known"] > 1 and of_split["low"] == of_split["high"]:
                yield f"{split} has one value of {name} alone: {of_split['low']:g}."
            if target_type == "grade" and "train" in counts:
                absent = [grade for grade in of_split["grades"] if grade not in counts["train"]["grades"]]
                if absent:
                    yield f"{split} has grades of {name} that no train image has: {shorten(absent)}."


def boxes_outside(table: SampleTable, images: ImageCache) -> Iterator[str]:
    """Boxes of a target that reach out of their image by more than a pixel."""
    for name in (name for name, target_type in table.other_targets.items() if target_type == "boxes"):
        outside = []
        for row, entry in enumerate(table.annotations[name]):
            if isinstance(entry, Boxes) and len(entry) and row not in images.bad:
                height, width = images.sizes[row].tolist()
                corners = entry.corners
                if (corners[:, :2] < -1).any() or (corners[:, 2:] > np.array([width + 1, height + 1])).any():
                    outside.append(table.paths[row])
        if outside:
            yield f"{len(outside):,} image(s) have boxes of {name} that reach out of them: {shorten(outside)}."
