"""Detections as COCO json, so that other tools read them, and from it (https://cocodataset.org/#format-data).

One file holds the truth (images, annotations, categories), the other the results, a list of {image_id, category_id,
bbox, score}. A box is left, top, width, height; images, annotations and categories are numbered from 1. COCO knows no
patients: they stand as `patient` beside each image's `file_name`, the metadata as `metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.errors import FinetuneError
from finetune.evaluation.detection.detections import DetectedBoxes, Detections, TrueBoxes
from finetune.evaluation.detection.frames import SIZES, box_area, image_table
from finetune.evaluation.image_names import match_images
from finetune.files import plain, write_text_atomic


def to_coco(detections: Detections) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The truth and the results, in plain values."""
    images = []
    for i, row in enumerate(detections.images.to_dict("records")):
        width, height = (row[name] for name in SIZES)
        sides = {"width": int(width), "height": int(height)} if np.isfinite([width, height]).all() else {}
        extra = {"metadata": {name: row[name] for name in detections.metadata}} if detections.metadata else {}
        images.append({"id": i + 1, "file_name": row["sample"], **sides, "patient": row["patient"], **extra})
    true, boxes = detections.truths, detections.boxes
    columns = [true.image + 1, true.label + 1, _sides(true.corners), true.area, true.ignored.astype(int)]
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = [{"id": i + 1, **record} for i, record in enumerate(_objects(keys, columns))]
    columns = [boxes.image + 1, boxes.label + 1, _sides(boxes.corners), boxes.score]
    results = _objects(("image_id", "category_id", "bbox", "score"), columns)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(detections.classes)]
    truth = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    return plain(truth), results


def write_coco(detections: Detections, truth: str | Path, results: str | Path) -> None:
    """Write both files."""
    for path, value in zip((truth, results), to_coco(detections), strict=True):
        write_text_atomic(path, json.dumps(value, ensure_ascii=False, allow_nan=False))


def read_coco(truth: str | Path, results: str | Path | None = None) -> Detections:
    """The table of a truth file and, if there is one, of a results file.

    The area of an annotation is that of the file, as COCO's sizes go by the object's outline. `patient` (or
    `patient_id`) of an image is its patient, else the image stands for itself.

    Raises:
        FinetuneError: it is no COCO json, or a box is of an image or a category that is not in it.
    """
    where, value = str(truth), read_json(truth)
    if not isinstance(value, Mapping) or not {"images", "annotations", "categories"} <= set(value):
        raise FinetuneError(f"{where} is no COCO truth: it needs an object with images, annotations and categories.")
    images = _records(value["images"], where, "images", ("id",))
    categories = sorted(
        _records(value["categories"], where, "categories", ("id", "name")), key=lambda c: str(c["name"])
    )
    if all(isinstance(category["id"], int) for category in categories):
        categories.sort(key=lambda category: category["id"])
    annotations = _records(value["annotations"], where, "annotations", ("image_id", "category_id", "bbox"))
    rows = _numbers(images, where, "images")
    labels = _numbers(categories, where, "categories")
    image, label, corners = _boxes(annotations, rows, labels, where)
    ignored = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    area = _floats([a.get("area", np.nan) for a in annotations], where, "area")
    truths = TrueBoxes(image, label, corners, ignored, np.where(np.isnan(area), box_area(corners), area))
    boxes = DetectedBoxes(*_boxes([], rows, labels, where), np.zeros(0))
    if results is not None:
        boxes = read_results(
            results, rows, labels, _samples(images), [str(category["name"]) for category in categories]
        )
    metadata = pd.DataFrame([image["metadata"] if isinstance(image.get("metadata"), dict) else {} for image in images])
    metadata = metadata.reset_index(drop=True) if len(metadata.columns) else pd.DataFrame(index=range(len(images)))
    sizes = _floats([[i.get("width", np.nan), i.get("height", np.nan)] for i in images], where, "width or height")
    table = image_table(
        _samples(images),
        [image.get("patient", image.get("patient_id")) for image in images],
        metadata,
        sizes.reshape(-1, 2),
    )
    names = [str(category["name"]) for category in categories]
    return Detections(table, truths, boxes, names, [str(name) for name in metadata.columns]).checked(where)


def read_results(
    path: str | Path, rows: Mapping[Any, int], labels: Mapping[Any, int], samples: Sequence[str], classes: Sequence[str]
) -> DetectedBoxes:
    """The detections of a results file; `rows` and `labels` say what its image_id and category_id stand for.

    Where all of them have `file_name` and `category`, as job=predict writes them, these count instead: they are
    compared with the names of `samples` and `classes`.
    """
    where = str(path)
    records = _records(read_json(path), where, "results", ("image_id", "category_id", "bbox", "score"))
    if records and all({"file_name", "category"} <= set(record) for record in records):
        names = list(dict.fromkeys(str(record["file_name"]) for record in records))
        numbers, _ = match_images(names, samples)
        rows = {name: number for name, number in zip(names, numbers.tolist(), strict=True) if number >= 0}
        labels = {name: k for k, name in enumerate(classes)}
        records = [{**r, "image_id": str(r["file_name"]), "category_id": str(r["category"])} for r in records]
    score = _floats([record["score"] for record in records], where, "score")
    return DetectedBoxes(*_boxes(records, rows, labels, where), score)


def _samples(images: list[dict[str, Any]]) -> list[str]:
    return [str(image.get("file_name", image["id"])) for image in images]


def read_json(path: str | Path) -> Any:
    """The value of a json file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{path} cannot be read as json: {error}") from error


def _objects(keys: tuple[str, ...], columns: list[np.ndarray]) -> list[dict[str, Any]]:
    return [dict(zip(keys, row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _records(values: Any, where: str, what: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        raise FinetuneError(f"{where}: {what} must be a list of objects with {', '.join(keys)}.")
    for i, record in enumerate(values):
        if not isinstance(record, dict) or not set(keys) <= set(record):
            lacking = sorted(set(keys) - set(record)) if isinstance(record, dict) else list(keys)
            raise FinetuneError(f"{where}: entry {i} of {what} lacks {lacking[0]}.")
        if odd := [key for key in ("id", "image_id", "category_id") if not isinstance(record.get(key, 0), int | str)]:
            raise FinetuneError(f"{where}: {odd[0]} of entry {i} of {what} must be a number or a name.")
    return values


def _numbers(records: list[dict[str, Any]], where: str, what: str) -> dict[Any, int]:
    numbers = {record["id"]: i for i, record in enumerate(records)}
    if len(numbers) < len(records):
        raise FinetuneError(f"{where}: two of its {what} have the same id.")
    return numbers


def _boxes(
    records: list[dict[str, Any]], rows: Mapping[Any, int], labels: Mapping[Any, int], where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (M,), label (M,) and corners (M, 4)."""
    columns = []
    for key, numbers in (("image_id", rows), ("category_id", labels)):
        numbered = [numbers.get(record[key], -1) for record in records]
        if -1 in numbered:
            raise FinetuneError(
                f"{where}: a box has {key}={records[numbered.index(-1)][key]!r}, which is not in the truth."
            )
        columns.append(np.array(numbered, np.int64))
    if odd := [r["bbox"] for r in records if not isinstance(r["bbox"], list) or len(r["bbox"]) != 4]:
        raise FinetuneError(f"{where}: bbox={str(odd[0])[:80]} must be left, top, width, height.")
    sides = _floats([record["bbox"] for record in records], where, "bbox").reshape(-1, 4)
    return columns[0], columns[1], np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)


def _floats(values: list[Any], where: str, what: str) -> np.ndarray:
    try:
        return np.array([[np.nan if v is None else v for v in r] if isinstance(r, list) else r for r in values], float)
    except (TypeError, ValueError, OverflowError):
        raise FinetuneError(f"{where}: {what} must be a number everywhere.") from None


def _sides(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
