"""What the audit counts and checks of targets that are no classes: numbers, grades, masks and boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.annotations import Boxes
from finetune.data.regions import BACKGROUND
from finetune.data.sources.listing import shorten
from finetune.data.table import SPLITS, SampleTable
from finetune.data.targets import COLUMNS, box_labels
from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from finetune.data.cache.image_cache import ImageCache
    from finetune.data.cache.mask_cache import MaskCache

MIN_KNOWN = 10  # images of a split with a known value, below which a score says little


def target_counts(table: SampleTable, rows: np.ndarray, cache: ImageCache | None = None) -> dict[str, dict[str, Any]]:
    """Name of the target -> type, known and unknown images, and: of numbers their mean, range and quartiles; of grades
    images per grade; of boxes their number, images without one (negatives), ignored boxes, and per label images and
    boxes. With `cache`, of boxes also each label's median area in % of the image's; of masks the empty ones, and per
    region the images that it is known of, those that show it, and its share of the pixels of the former."""
    return {name: _counts(table, name, kind, rows, cache) for name, kind in table.other_targets.items()}


def _counts(
    table: SampleTable, name: str, target_type: str, rows: np.ndarray, cache: ImageCache | None = None
) -> dict[str, Any]:
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
            details = _box_counts(entries, None if cache is None else cache.sizes[rows])
        elif cache is not None and cache.masks is not None:
            details = _of_regions(cache.masks, rows)
    return {"type": target_type, "known": known, "unknown": len(rows) - known, **details}


def _box_counts(entries: Sequence[object], sizes: np.ndarray | None) -> dict[str, Any]:
    boxes: defaultdict[str, int] = defaultdict(int)
    images: defaultdict[str, int] = defaultdict(int)
    areas: defaultdict[str, list[float]] = defaultdict(list)
    negative = ignored = 0
    for place, entry in enumerate(entries):
        if not isinstance(entry, Boxes):
            continue
        labels = entry.target_labels
        negative += not labels
        ignored += sum(entry.ignored)
        for label in set(labels):
            images[label] += 1
        whole = np.nan if sizes is None else float(sizes[place].prod()) or np.nan  # 0 x 0 of an image that is not read
        sides = entry.corners[:, 2:] - entry.corners[:, :2]
        for label, out, area in zip(entry.labels, entry.ignored, sides.prod(axis=1).tolist(), strict=True):
            if not out:
                boxes[label] += 1
                areas[label].append(100 * area / whole)
    medians = {label: float(np.nanmedian(values)) for label, values in areas.items() if not np.isnan(values).all()}
    return {
        "boxes": sum(boxes.values()),
        "negative": negative,
        "ignored": ignored,
        "labels": {
            label: {"images": images[label], "boxes": boxes[label], "median_area": medians.get(label)}
            for label in sorted(boxes)
        },
    }


def _of_regions(masks: MaskCache, rows: np.ndarray) -> dict[str, Any]:
    known, pixels = masks.known[rows], masks.pixels[rows]  # (n, K)
    images, area = known.sum(axis=0), masks.preprocessing.stored_size**2
    shares = np.where(known, pixels, 0).sum(axis=0) / np.maximum(1, images * area)
    shown = masks.shown[rows].sum(axis=0)
    regions = {
        name: {"known": int(images[k]), "images": int(shown[k]), "share": float(shares[k])}
        for k, name in enumerate(masks.regions.names)
        if name != BACKGROUND
    }
    return {"empty": int((known.any(axis=1) & ~masks.shown[rows].any(axis=1)).sum()), "regions": regions}


def regions_shown(table: SampleTable, images: ImageCache) -> Iterator[str]:
    """Regions that no image of a split shows, and those that few do.

    Raises:
        FinetuneError: no train image shows any region, so that nothing can be learned.
    """
    if (masks := images.masks) is None:
        return
    for split in SPLITS:
        rows = np.setdiff1d(table.rows(split), list(images.bad))
        if not len(rows):
            continue
        of_regions = _of_regions(masks, rows)["regions"]
        never = [name for name, n in of_regions.items() if not n["images"]]
        few = [f"{name} ({n['images']})" for name, n in of_regions.items() if 0 < n["images"] < MIN_KNOWN]
        if split == "train" and len(never) == len(of_regions):
            known = int(masks.known[rows].any(axis=1).sum())
            raise FinetuneError(
                f"table {table.name}: no train image shows {shorten(never, 8)}: of {len(rows):,} train images "
                f"{known:,} have a known mask, and each is empty. Are the masks in the right place, and their values "
                "regions?"
            )
        if never:
            end = "it cannot be learned" if split == "train" else "it has no score there"
            yield f"{split} has no image with the region {shorten(never, 8)}: {end}."
        if few:
            what = "there is little to learn from" if split == "train" else "their scores say little"
            yield f"{split} has fewer than {MIN_KNOWN} images with the region {shorten(few, 8)}: {what}."


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


def labels_lacking(table: SampleTable) -> Iterator[str]:
    """Labels of boxes that train, or a split that is scored, never shows."""
    for name in _boxes(table):
        split_rows = {split: rows for split in SPLITS if len(rows := table.rows(split))}
        shown = {split: set(_counts(table, name, "boxes", rows)["labels"]) for split, rows in split_rows.items()}
        for split, labels in shown.items():
            if lacking := sorted(set(box_labels(table.annotations[name])) - labels):
                end = "it cannot be learned" if split == "train" else "its average precision is undefined there"
                yield f"{split} has no box of {shorten(lacking, 20)} ({name}): {end}."


def equal_boxes(table: SampleTable) -> Iterator[str]:
    """Boxes of one label that are there twice in an image: each would have to be found."""
    for name in _boxes(table):
        count, rows = 0, []
        for row, entry in enumerate(table.annotations[name]):
            if isinstance(entry, Boxes) and len(entry) > 1:
                distinct = len({(label, *corners) for label, *corners in entry.sides()})
                count += len(entry) - distinct
                rows += [row] * (distinct < len(entry))
        if rows:
            paths = shorten(table.frame["path"].iloc[rows])
            yield f"{count:,} boxes of {name} equal another one of their image and label, in {len(rows):,}: {paths}."


def check_boxes(table: SampleTable) -> None:
    """Raise a FinetuneError where boxes are to be learned and no train image has one."""
    for name in _boxes(table):
        counts = {split: _counts(table, name, "boxes", table.rows(split)) for split in SPLITS}
        if not counts["train"]["boxes"]:
            others = ", ".join(f"{counts[split]['boxes']:,} in {split}" for split in SPLITS[1:])
            raise FinetuneError(
                f"table {table.name}: no train image has a box of {name} ({others}), so there is nothing to learn. "
                "Annotate train images, or have the splits drawn here (without data.split, data.official_split=false)."
            )


def _boxes(table: SampleTable) -> list[str]:
    return [name for name, target_type in table.other_targets.items() if target_type == "boxes"]


def boxes_outside(table: SampleTable, images: ImageCache) -> Iterator[str]:
    """Boxes of a target that reach out of their image by more than a pixel."""
    for name in _boxes(table):
        outside = []
        for row, entry in enumerate(table.annotations[name]):
            if isinstance(entry, Boxes) and len(entry) and row not in images.bad:
                height, width = images.sizes[row].tolist()
                corners = entry.corners
                if (corners[:, :2] < -1).any() or (corners[:, 2:] > np.array([width + 1, height + 1])).any():
                    outside.append(table.paths[row])
        if outside:
            yield f"{len(outside):,} image(s) have boxes of {name} that reach out of them: {shorten(outside)}."


TABLE_CHECKS: tuple[Callable[[SampleTable], Iterator[str]], ...] = (rarely_known, labels_lacking, equal_boxes)
"""What the audit checks of other targets without an image."""
