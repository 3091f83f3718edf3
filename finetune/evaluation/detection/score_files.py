"""Anybody's detections against anybody's true boxes: files of other tools -> the table of detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from finetune.errors import FinetuneError
from finetune.evaluation.detection.coco_json import read_coco, read_results
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.frames import RESERVED, SIDES, SIZES, read_frame, typed


def score_files(predictions: str | Path, labels: str | Path) -> Detections:
    """The table of the boxes that `predictions` holds and of the true boxes that `labels` holds.

    - predictions: COCO results (json), or a csv with the columns sample, label, left, top, right, bottom, score.
    - labels: COCO truth (json), or a csv with the columns sample, label, left, top, right, bottom, a row per true box.
      An image without any is a row whose label is blank. Columns patient, ignored, area, image_width and image_height
      count if they are there; others are metadata, those of an image's first row.

    Boxes are in pixels of the image as stored, in both files. A sample of a csv is a file_name of COCO's images; an
    image_id of COCO results is an id of COCO's truth, or a sample of the csv, and then category_id is a label. Of the
    json that job=predict writes, file_name and category count instead.

    Raises:
        FinetuneError: a file cannot be read, or a detection is of an image or of a class that `labels` does not know.
    """
    from_json = Path(predictions).suffix.lower() == ".json"
    if Path(labels).suffix.lower() == ".json":
        return read_coco(labels, predictions) if from_json else _with_csv(read_coco(labels), predictions)
    truth = _truth(labels)
    if not from_json:
        return _with_csv(truth, predictions)
    rows = {sample: i for i, sample in enumerate(truth.images["sample"])}
    names = {name: k for k, name in enumerate(truth.classes)}
    for numbers in (rows, names):  # ids may be whole numbers in json
        numbers |= {int(name): i for name, i in numbers.items() if name.isdecimal() and str(int(name)) == name}
    boxes = read_results(predictions, rows, names, list(truth.images["sample"]), truth.classes)
    return Detections(truth.images, truth.truths, boxes, truth.classes, truth.metadata).checked(str(predictions))


def _truth(path: str | Path) -> Detections:
    frame = read_frame(path, needed=("sample", "label", *SIDES))
    text = frame["label"].str.strip()
    true, images = frame[text != ""], frame.drop_duplicates("sample").reset_index(drop=True)
    known = [name for name in (*RESERVED, "kind") if name in frame.columns]
    if "patient" in frame.columns:
        people = frame[frame["patient"] != ""].groupby("sample")["patient"].nunique()
        if (several := people[people > 1]).size:
            raise FinetuneError(f"{path}: image {several.index[0]!r} has rows of {several.iloc[0]} patients.")
    classes = sorted(set(true["label"]))
    if not classes:
        raise FinetuneError(f"{path}: no row has a label, so there is no class to score.")
    if half := [side for side in SIDES if true[side].isna().any()]:
        sample = true["sample"][true[half[0]].isna()].iloc[0]
        raise FinetuneError(f"{path}: a box of {sample!r} has no {half[0]}.")
    metadata = typed(images[[name for name in frame.columns if name not in known]])
    nothing = pd.DataFrame({name: np.zeros(0) for name in ("sample", "label", *SIDES, "score")})
    columns = ["sample", *(name for name in ("patient", *SIZES) if name in frame.columns)]
    return Detections.from_frames(images[columns], metadata, true, nothing, classes, str(path))


def _with_csv(truth: Detections, path: str | Path) -> Detections:
    frame = read_frame(path, needed=("sample", "label", *SIDES, "score"))
    nothing = frame.iloc[:0]
    boxes = Detections.from_frames(
        truth.images, pd.DataFrame(index=range(len(truth))), nothing, frame, truth.classes, str(path)
    ).boxes
    return Detections(truth.images, truth.truths, boxes, truth.classes, truth.metadata)
