"""Boxes of many images as COCO results, written as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluation.detection.detections import DetectedArrays
from finetune.placement import Placement

Calibrate = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""Scores (M,) and labels (M,) -> calibrated scores (M,)."""


class BoxesFile:
    """A list of {image_id, file_name, category_id, category, bbox, score} in COCO's form, with `calibrated` where it is
    known. `bbox` is left, top, width, height in pixels of the image as stored; images and categories are numbered from
    1. The file appears when it is closed; until then it has another name.

    Args:
        classes: their names, in the order of the labels.
        calibrate: gives calibrated scores, or None.
    """

    def __init__(self, path: Path, classes: Sequence[str], calibrate: Calibrate):
        self.path, self.classes, self.calibrate = path, list(classes), calibrate
        self.images = self.boxes = 0
        self._partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._partial.open("w", encoding="utf-8")
        self._file.write("[")

    def add(self, names: Sequence[str], outputs: Any, placements: Sequence[Placement]) -> None:
        """The boxes of N images, called by their paths."""
        for name, detected, placement in zip(names, outputs, placements, strict=True):
            self.images += 1
            for record in self._records(name, in_stored_image(detected, placement)):
                self._file.write((",\n" if self.boxes else "\n") + json.dumps(record, ensure_ascii=False))
                self.boxes += 1

    def _records(self, name: str, detected: DetectedArrays) -> list[dict[str, Any]]:
        corners, scores, labels = detected
        calibrated = self.calibrate(scores, labels)
        shares = [None] * len(scores) if calibrated is None else calibrated.tolist()
        records = []
        for (left, top, right, bottom), score, k, share in zip(
            corners.tolist(), scores.tolist(), labels.tolist(), shares, strict=True
        ):
            record = {"image_id": self.images, "file_name": name, "category_id": k + 1, "category": self.classes[k]}
            record |= {"bbox": [left, top, right - left, bottom - top], "score": score}
            known = share is not None and share == share
            records.append({**record, "calibrated": share} if known else record)
        return records

    def discard(self) -> None:
        """Remove the unfinished file."""
        try:
            self._file.close()  # which writes what is buffered, and fails on a full disk
        finally:
            self._partial.unlink(missing_ok=True)

    def close(self) -> str:
        """Finish the file, and say in a sentence what is in it."""
        self._file.write("\n]\n")
        self._file.close()
        os.replace(self._partial, self.path)
        return (
            f"{self.boxes:,} box{'' if self.boxes == 1 else 'es'} of any score, in pixels of the images as stored "
            f"-> {self.path}"
        )


def in_stored_image(detected: Any, placement: Placement) -> DetectedArrays:
    """Corners (M, 4) in pixels of the stored image, cut at its border, scores (M,) and labels (M,) of what a detector
    answers; boxes that lie outside, in the border that `fit=pad` adds, are left out.

    Args:
        detected: boxes (D, 4) in pixels of the network's square, scores (D,) and labels (D,).
    """
    boxes, scores, labels = (np.asarray(part) for part in detected)
    left, top, right, bottom = placement.visible
    corners = placement.boxes_to_stored(boxes).clip([left, top, left, top], [right, bottom, right, bottom])
    inside = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return corners[inside], scores[inside].astype(np.float64), labels[inside].astype(np.int64)
