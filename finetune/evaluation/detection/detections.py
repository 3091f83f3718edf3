"""The table of detections: the true and the detected boxes of each image. Evaluation reads nothing else."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.errors import FinetuneError
from finetune.evaluation.detection.frames import (
    BOX_COLUMNS,
    RESERVED,
    SIDES,
    SIZES,
    box_area,
    box_lines,
    flags,
    image_table,
    numbered,
    quoted,
    read_frame,
    typed,
)
from finetune.files import write_text_atomic

KINDS = ("class", "image", "truth", "detection")
"""What a row of the csv describes."""

TrueArrays = tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, np.ndarray]
DetectedArrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class TrueBoxes:
    """The true boxes of all images, M of them."""

    image: np.ndarray
    """(M,) row of the image in the table of images."""
    label: np.ndarray
    """(M,) number of the class."""
    corners: np.ndarray
    """(M, 4) float64 left, top, right, bottom in pixels of the image as stored."""
    ignored: np.ndarray
    """(M,) bool: a region where detections count neither as right nor as wrong (COCO's iscrowd). Any number of
    detections may lie in it, and it need not be detected."""
    area: np.ndarray
    """(M,) pixels: of the box, or of the object in it where COCO json says so. Only COCO's sizes read it."""

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: np.ndarray) -> TrueBoxes:
        return TrueBoxes(self.image[rows], self.label[rows], self.corners[rows], self.ignored[rows], self.area[rows])


@dataclass(frozen=True, eq=False)
class DetectedBoxes:
    """The detected boxes of all images, D of them; of equal scores the earlier one ranks first."""

    image: np.ndarray
    """(D,) row of the image in the table of images."""
    label: np.ndarray
    """(D,) number of the class."""
    corners: np.ndarray
    """(D, 4) float64 left, top, right, bottom in pixels of the image as stored."""
    score: np.ndarray
    """(D,) float64 from 0 to 1, as the network gives it."""

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: np.ndarray) -> DetectedBoxes:
        return DetectedBoxes(self.image[rows], self.label[rows], self.corners[rows], self.score[rows])


@dataclass(eq=False)
class Detections:
    """Images with their true and detected boxes. Build it by `from_arrays` or `read`, which check them.

    An image without any box is a row of `images`; an image whose boxes nobody drew has no place here.

    Example:
        >>> test = Detections.read("outputs/latest/predictions_test.csv")
        >>> len(test), test.classes, len(test.truths), len(test.boxes)
        (700, ['Mass', 'Nodule'], 96, 4210)
    """

    images: pd.DataFrame
    """One row per image: sample, patient, image_width and image_height (NaN where unknown), then the metadata."""
    truths: TrueBoxes
    boxes: DetectedBoxes
    classes: list[str]
    metadata: list[str] = field(default_factory=list)
    """Names of the metadata columns."""
    unlabelled: int = 0
    """Images that were detected in but have no row, as their true boxes are not known; no part of the csv."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def frame(self) -> pd.DataFrame:
        """The table of images."""
        return self.images

    @property
    def patients(self) -> np.ndarray:
        """(N,) names of each image's patient; an image without one stands for itself."""
        return self.images["patient"].to_numpy(object)

    @classmethod
    def from_arrays(
        cls,
        samples: Sequence[str],
        patients: Sequence[str | None],
        classes: Sequence[str],
        truths: Sequence[TrueArrays],
        boxes: Sequence[DetectedArrays],
        metadata: pd.DataFrame | None = None,
        sizes: np.ndarray | None = None,
    ) -> Detections:
        """The table of N images.

        Args:
            truths: per image corners (M, 4) and numbers of the classes (M,), and, if some are, which are ignored (M,).
            boxes: per image corners (D, 4), scores (D,) and numbers of the classes (D,).
            sizes: (N, 2) width and height of each image as stored.

        Raises:
            FinetuneError: shapes or names do not fit together, or a box or score is none.
        """
        n = len(samples)
        for name, part in (("patients", patients), ("truths", truths), ("boxes", boxes), ("sizes", sizes)):
            if part is not None and len(part) != n:
                raise FinetuneError(f"{name} has {len(part)} entries for {n} samples.")
        true_columns = [(c, k, rest[0] if rest else np.zeros(len(k), bool)) for c, k, *rest in truths]
        image, (corners, label, ignored) = _joined(true_columns, "truths", samples)
        true = TrueBoxes(image, label.astype(np.int64), corners, ignored.astype(bool), box_area(corners))
        image, (corners, score, label) = _joined(boxes, "boxes", samples)
        detected = DetectedBoxes(image, label.astype(np.int64), corners, score.astype(np.float64))
        images = image_table(samples, patients, metadata, sizes)
        names = [] if metadata is None else [str(column) for column in metadata.columns]
        return cls(images, true, detected, [str(name) for name in classes], names).checked()

    def select(self, rows: np.ndarray) -> Detections:
        """The table of some images, (N,) bool."""
        number = np.cumsum(rows) - 1
        true = self.truths.take(np.flatnonzero(rows[self.truths.image]))
        boxes = self.boxes.take(np.flatnonzero(rows[self.boxes.image]))
        true, boxes = replace(true, image=number[true.image]), replace(boxes, image=number[boxes.image])
        return Detections(self.images[rows].reset_index(drop=True), true, boxes, self.classes, self.metadata)

    def reordered(self, place: np.ndarray) -> Detections:
        """The table with image i in row place[i], (N,); boxes keep their order within it."""
        images = self.images.iloc[np.argsort(place)].reset_index(drop=True)
        true = replace(self.truths, image=place[self.truths.image])
        boxes = replace(self.boxes, image=place[self.boxes.image])
        true = true.take(np.argsort(true.image, kind="stable"))
        boxes = boxes.take(np.argsort(boxes.image, kind="stable"))
        return Detections(images, true, boxes, self.classes, self.metadata)

    def write(self, path: str | Path) -> Path:
        """Write a csv with a row per class, image, true box and detected box, which the column `kind` tells apart.

        Every float is in full precision: reading it back gives the same bits.
        """
        columns = ["kind", "sample", "patient", *BOX_COLUMNS, *SIZES, *self.metadata]
        text = io.StringIO()
        text.write(",".join(map(quoted, columns)) + "\n")
        images = self.images[["sample", "patient", *SIZES, *self.metadata]].assign(kind="image")
        for part in (pd.DataFrame({"kind": "class", "label": self.classes}), images):
            part.reindex(columns=columns).to_csv(text, index=False, header=False, lineterminator="\n")
        true, boxes, samples = self.truths, self.boxes, list(map(quoted, self.images["sample"]))
        names, blank = list(map(quoted, self.classes)), "," * (len(SIZES) + len(self.metadata))
        area = np.where(true.area != box_area(true.corners), true.area, np.nan)
        about = [np.full(len(true), np.nan), true.ignored, area]
        text.writelines(box_lines("truth", true.image, true.label, true.corners, about, samples, names, blank))
        about = [boxes.score, np.zeros(len(boxes), bool), np.full(len(boxes), np.nan)]
        text.writelines(box_lines("detection", boxes.image, boxes.label, boxes.corners, about, samples, names, blank))
        return write_text_atomic(path, text.getvalue())

    @classmethod
    def read(cls, path: str | Path) -> Detections:
        """A table that `write` made, or the like: without rows of kind `class` the classes are the labels, sorted.

        Raises:
            FinetuneError: it is no table of detections, a box is none, or a box is of an image without a row.
        """
        frame = read_frame(path, needed=("kind", "sample", *SIDES, "label", "score"))
        where = str(path)
        if unknown := sorted(set(frame["kind"]) - set(KINDS)):
            raise FinetuneError(f"{where}: kind={unknown[0]!r} is not known. Choose from {', '.join(KINDS)}.")
        parts = {kind: frame[frame["kind"] == kind] for kind in KINDS}
        images = parts["image"]
        metadata = typed(images[[name for name in frame.columns if name not in RESERVED]])
        labels = sorted({*parts["truth"]["label"], *parts["detection"]["label"]})
        classes = list(parts["class"]["label"]) or labels
        return cls.from_frames(images, metadata, parts["truth"], parts["detection"], classes, where)

    @classmethod
    def from_frames(
        cls,
        images: pd.DataFrame,
        metadata: pd.DataFrame,
        true: pd.DataFrame,
        detected: pd.DataFrame,
        classes: Sequence[str],
        where: str,
    ) -> Detections:
        """The table from rows of text files, whose columns are those of RESERVED; blank columns may lack.

        Raises:
            FinetuneError: a box is of a sample that is no image, or of a class that is not among the classes.
        """
        rows = {name: i for i, name in enumerate(images["sample"])}
        numbers = {name: i for i, name in enumerate(classes)}

        def arrays(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            image = numbered(frame["sample"], rows, "image of the table", where)
            label = numbered(frame["label"], numbers, f"class; the classes are {', '.join(classes)}", where)
            return image, label, frame[list(SIDES)].to_numpy(np.float64)

        image, label, corners = arrays(true)
        ignored = flags(true["ignored"], where) if "ignored" in true else np.zeros(len(true), bool)
        area = true["area"].to_numpy(np.float64) if "area" in true else np.full(len(true), np.nan)
        truths = TrueBoxes(image, label, corners, ignored, np.where(np.isnan(area), box_area(corners), area))
        boxes = DetectedBoxes(*arrays(detected), detected["score"].to_numpy(np.float64))
        sizes = images[list(SIZES)].to_numpy(np.float64) if set(SIZES) <= set(images.columns) else None
        patients = list(images["patient"]) if "patient" in images else [""] * len(images)
        table = image_table(list(images["sample"]), patients, metadata, sizes)
        return cls(table, truths, boxes, list(classes), list(map(str, metadata.columns))).checked(where)

    def checked(self, where: str = "detections") -> Detections:
        """Itself. Raises a FinetuneError for what evaluation cannot use: names, box or score."""
        if not self.classes:
            raise FinetuneError(f"{where}: there are no classes.")
        names = [*map(str, self.images.columns)]
        for what, values in (("class", self.classes), ("sample", list(self.images["sample"])), ("column", names)):
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise FinetuneError(f"{where}: {what} {twice[0]!r} is there twice.")
        if taken := sorted(set(self.metadata) & set(RESERVED)):
            raise FinetuneError(f"{where}: metadata column {taken[0]!r} has a name of the table; rename it.")
        samples = self.images["sample"].to_numpy(object)
        for what, part in (("true box", self.truths), ("detection", self.boxes)):
            if (bad := (part.label < 0) | (part.label >= len(self.classes))).any():
                i = int(np.flatnonzero(bad)[0])
                raise FinetuneError(
                    f"{where}: a {what} of {samples[part.image[i]]!r} has the class number {part.label[i]}; "
                    f"there are {len(self.classes)} classes, from 0."
                )
            corners = part.corners
            bad = ~np.isfinite(corners).all(axis=1) | (corners[:, 2:] < corners[:, :2]).any(axis=1)
            if bad.any():
                i = int(np.flatnonzero(bad)[0])
                raise FinetuneError(
                    f"{where}: {corners[i].tolist()} of {samples[part.image[i]]!r} is no box: a {what} needs left, "
                    "top, right, bottom, four finite numbers, the last two not below the first two."
                )
        if (bad := ~((self.boxes.score >= 0) & (self.boxes.score <= 1))).any():
            i = int(np.flatnonzero(bad)[0])
            raise FinetuneError(
                f"{where}: score={self.boxes.score[i]} of a detection of {samples[self.boxes.image[i]]!r} must lie "
                "between 0 and 1."
            )
        if (bad := ~((self.truths.area >= 0) & np.isfinite(self.truths.area))).any():
            i = int(np.flatnonzero(bad)[0])
            raise FinetuneError(f"{where}: area={self.truths.area[i]} of a true box must be a number of 0 or more.")
        return self


def _joined(
    parts: Sequence[tuple[np.ndarray, ...]], where: str, samples: Sequence[str]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per image corners and two columns -> the row of each box's image, and all of them one after the other."""
    columns: list[list[np.ndarray]] = [[], [], []]
    for sample, (boxes, first, second) in zip(samples, parts, strict=True):
        corners, n = np.asarray(boxes, np.float64), len(first)
        if corners.size == 4 * n == 0:
            corners = np.zeros((0, 4))
        if corners.shape != (n, 4) or len(second) != n:
            raise FinetuneError(
                f"{where} of {sample!r} have boxes of the shape {corners.shape} beside {n} and {len(second)} values; "
                "they need (M, 4), (M,) and (M,)."
            )
        for column, values in zip(columns, (corners, first, second), strict=True):
            column.append(np.asarray(values))
    image = np.repeat(np.arange(len(parts)), [len(corners) for corners in columns[0]])
    if not parts:
        return image, (np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    corners, first, second = (np.concatenate(column) for column in columns)
    return image, (corners, first, second)
