"""What sources of boxes share: boxes compared with their images, faults stopped at or counted, and the sample table.

A source lists its images and, for each box, image, label, corners and where it stands (`BoxList`). What is wrong is
collected in `Faults`: with data.on_bad=stop they are one error, with skip each kind is counted in the table's notes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from finetune.data.annotations import BOXES, Boxes
from finetune.data.decoding.images import header_size
from finetune.data.sources.headers import THREADS, patients_by_header
from finetune.data.sources.listing import need_columns, read_rows, shorten
from finetune.data.table import SampleTable
from finetune.data.targets import NO_CLASSES, box_labels
from finetune.errors import BadImage, FinetuneError, one_of

TARGETS = ("class", "boxes")
"""data.target of sources that have both."""
OVER = 1.0  # pixels that a box may reach over the border of its image: it is cut there, and nothing is said
SPLITS_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS_OF |= {"test": "test", "testing": "test"}
SIZES_COMPARED = 100  # images whose header is compared with the size that a listing gives


@dataclass
class Faults:
    """What is wrong with a listing, by kind, until `settle` says what becomes of it.

    Raises:
        FinetuneError: another `on_bad` than stop or skip.
    """

    on_bad: str = "stop"
    by_kind: dict[str, list[str]] = field(default_factory=dict)
    """Kind -> where each stands."""

    def __post_init__(self) -> None:
        if self.on_bad not in ("stop", "skip"):
            raise one_of("data.on_bad", self.on_bad, ("stop", "skip"))

    def add(self, kind: str, place: str) -> None:
        """One more of a kind (`box(es) without an area`), with the file, line, image or value that it is about."""
        self.by_kind.setdefault(kind, []).append(place)

    def settle(self) -> list[str]:
        """A sentence for each kind that is left out.

        Raises:
            FinetuneError: there are faults and on_bad=stop; names each kind, their number and the first.
        """
        if not self.by_kind:
            return []
        sentences = [f"{len(places):,} {kind}, the first: {places[0]}" for kind, places in self.by_kind.items()]
        if self.on_bad == "skip":
            return [f"Left out (data.on_bad=skip): {what}." for what in sentences]
        raise FinetuneError("; ".join(sentences) + ". Mend them, or leave them out with data.on_bad=skip.")


@dataclass
class BoxList:
    """Boxes of many images, in columns."""

    images: list[int] = field(default_factory=list)
    """The row of each box's image."""
    labels: list[str] = field(default_factory=list)
    corners: list[Sequence[float]] = field(default_factory=list)
    """left, top, right, bottom in pixels of the upright stored image; NaN for what is no number."""
    ignored: list[bool] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Where each stands, for messages."""
    lost: set[int] = field(default_factory=set)
    """Rows of images that have further boxes, which could not be read."""

    def add(self, image: int, label: str, corners: Sequence[float], place: str, *, ignored: bool = False) -> None:
        self.images.append(image)
        self.labels.append(label)
        self.corners.append(corners)
        self.ignored.append(ignored)
        self.places.append(place)

    def __len__(self) -> int:
        return len(self.images)

    def per_image(self, sizes: np.ndarray, faults: Faults) -> list[Boxes | None]:  # (N, 2) -> N
        """The boxes of each of N images, cut at its border. `sizes` are heights and widths, NaN where unknown.

        An image that loses boxes as faults keeps the others and is no longer complete; one that loses all is None: it
        is not empty, and nobody knows where its boxes are.
        """
        corners = np.array(self.corners, np.float64).reshape(-1, 4)
        images = np.array(self.images, np.int64)
        good = np.ones(len(self), bool)
        right, bottom = (sizes[images, axis] for axis in (1, 0))
        limits = np.where(np.isnan(right), np.inf, right), np.where(np.isnan(bottom), np.inf, bottom)
        cut = corners.copy()
        for axis in (0, 1):
            cut[:, axis::2] = np.clip(corners[:, axis::2], 0, limits[axis][:, None])
        outside = np.abs(np.where(np.isfinite(corners), corners - cut, 0)).max(axis=1, initial=0) > OVER
        flat = (cut[:, 2:] - cut[:, :2] <= 0).any(axis=1)
        for kind, wrong in (
            ("box(es) without four finite numbers", ~np.isfinite(corners).all(axis=1)),
            ("box(es) with the right or bottom before the left or top", (corners[:, 2:] < corners[:, :2]).any(axis=1)),
            ("box(es) without an area", (corners[:, 2:] == corners[:, :2]).any(axis=1)),
            ("box(es) that reach out of their image", outside),
            ("box(es) without an area inside their image", flat),
        ):
            for number in np.flatnonzero(wrong & good).tolist():
                height, width = sizes[images[number]].tolist()
                size = "" if height != height else f" in an image of {width:g} x {height:g}"
                faults.add(kind, f"{self.places[number]}: {[*map(float, self.corners[number])]}{size}")
            good &= ~wrong
        lost = self.lost | set(images[~good].tolist())
        of_image: list[list[int]] = [[] for _ in range(len(sizes))]
        for number in np.flatnonzero(good).tolist():
            of_image[images[number]].append(number)
        return [
            None
            if image in lost and not numbers
            else Boxes(
                cut[numbers],
                tuple(self.labels[number] for number in numbers),
                image not in lost,
                tuple(self.ignored[number] for number in numbers),
            )
            for image, numbers in enumerate(of_image)
        ]


def header_sizes(root: Path, paths: Sequence[str]) -> np.ndarray:  # -> (N, 2)
    """Height and width of each image by its header, NaN where that cannot be read: decoding says what is wrong."""

    def size(path: str) -> tuple[float, float]:
        try:
            return header_size(root / path)
        except BadImage:
            return np.nan, np.nan

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as threads:
        warnings.filterwarnings("ignore", module="pydicom")  # of broken headers, without the file's name
        return np.array(list(threads.map(size, paths)), np.float64).reshape(-1, 2)


def other_sizes(root: Path, paths: Sequence[str], sizes: np.ndarray, rows: Sequence[int], faults: Faults) -> list[int]:
    """Those of the rows whose image is not of the listed size: a resized copy, whose boxes are elsewhere.

    A fit that stops at faults looks at SIZES_COMPARED of them, one that skips them at all.
    """
    rows = [row for row in rows if not np.isnan(sizes[row]).any()]
    if faults.on_bad == "stop":
        rows = rows[:: -(-len(rows) // SIZES_COMPARED) or 1]
    real = header_sizes(root, [paths[row] for row in rows])
    other = [(row, size) for row, size in zip(rows, real.tolist(), strict=True) if size[0] == size[0]]
    other = [(row, size) for row, size in other if size != sizes[row].tolist()]
    for row, (height, width) in other:
        listed = f"{sizes[row, 1]:g} x {sizes[row, 0]:g}"
        faults.add(
            "images of another size than the annotations say", f"{paths[row]} is {width:g} x {height:g}, not {listed}"
        )
    return [row for row, _ in other]


def split_of(name: str) -> str | None:
    """train, val or test where a folder or file is called so: valid, instances_train2017, train_v2."""
    words = "".join(letter if letter.isalpha() else " " for letter in name.lower()).split()
    splits = {SPLITS_OF[word] for word in words if word in SPLITS_OF}
    return splits.pop() if len(splits) == 1 else None


def patients_from(file: str | Path, paths: Sequence[str]) -> list[str]:
    """The patient of each image by a CSV file with columns path and patient; path may be the file's name alone.

    Raises:
        FinetuneError: a column is absent, or an image has no patient or several.
    """
    rows = read_rows(Path(file))
    need_columns(rows, {"data.patients": "path"}, Path(file))
    need_columns(rows, {"data.patients": "patient"}, Path(file))
    cells = zip(rows["path"].str.strip(), rows["patient"].str.strip(), strict=True)
    known: dict[str, set[str]] = {}
    for path, patient in cells:
        known.setdefault(path.replace("\\", "/"), set()).add(patient)
    patients = []
    for path in paths:
        names = known.get(path) or known.get(PurePosixPath(path).name) or set()
        if len(names) != 1 or "" in names:
            what = f"several patients ({shorten(sorted(names))})" if len(names) > 1 else "no patient"
            raise FinetuneError(f"data.patients={file} gives {what} for {path}. Every image needs one.")
        patients.append(next(iter(names)))
    return patients


def boxed_table(
    root: Path,
    name: str,
    paths: Sequence[str],
    boxes: Sequence[Boxes | None],
    *,
    splits: Sequence[str | None],
    patients: Sequence[str] | None = None,
    notes: Iterable[str] = (),
) -> SampleTable:
    """The checked table of images whose target is boxes. Without `patients`, DICOM headers say whose an image is."""
    return with_boxes(bare_table(root, name, paths, splits=splits, patients=patients, notes=notes), boxes)


def bare_table(
    root: Path,
    name: str,
    paths: Sequence[str],
    *,
    splits: Sequence[str | None],
    patients: Sequence[str] | None = None,
    notes: Iterable[str] = (),
) -> SampleTable:
    """The table of images before it has a target. Without `patients`, DICOM headers say whose an image is."""
    notes = list(notes)
    if patients is None:
        by_header, header_notes = patients_by_header(root, paths)
        patients, notes = by_header, notes + header_notes
        if patients is None:
            notes.append("No patient is known: every image counts as its own patient (data.patients=FILE names them).")
    frame = pd.DataFrame({"path": list(paths), "patient": list(patients or paths), "split": list(splits)}, dtype=object)
    return SampleTable(frame, [], NO_CLASSES, root, name, has_patients=patients is not None, notes=notes)


def with_boxes(table: SampleTable, boxes: Sequence[Boxes | None]) -> SampleTable:
    """The checked table with boxes as its one target in place of its classes, and a note on what there is.

    Raises:
        FinetuneError: no image has a box.
    """
    frame = table.frame.drop(columns=[f"target_{name}" for name in table.classes])
    entries = list(boxes)
    if not box_labels(entries):
        raise FinetuneError(f"table {table.name}: none of its {len(table):,} images has a box (root: {table.root}).")
    return replace(
        table,
        frame=frame,
        classes=[],
        kind=NO_CLASSES,
        notes=[*table.notes, *_counted(entries)],
        annotations={**table.annotations, BOXES: entries},
        other_targets={BOXES: "boxes"},
    ).check()


def only_boxes(target: str, data: str) -> None:
    """Refuse another target of a source that has boxes alone.

    Raises:
        FinetuneError: naming the target.
    """
    if target != "boxes":
        raise FinetuneError(f"data.target={target}: data={data} gives boxes. Leave data.target out.")


def _counted(boxes: Sequence[Boxes | None]) -> list[str]:
    shown = sum(isinstance(entry, Boxes) and bool(entry.target_labels) for entry in boxes)
    unknown = sum(entry is None for entry in boxes)
    number = sum(len(entry.target_labels) for entry in boxes if entry is not None)
    ignored = sum(sum(entry.ignored) for entry in boxes if entry is not None)
    negative = len(boxes) - shown - unknown
    labels = len(box_labels(boxes))
    notes = [
        f"{number:,} boxes of {labels:,} label(s) in {shown:,} images; {negative:,} images have none and are negatives."
    ]
    if unknown:
        notes.append(f"Of {unknown:,} images the boxes are not known: they teach nothing and are not scored.")
    if ignored:
        notes.append(f"{ignored:,} boxes are marked as crowds or difficult: they are no targets and are not scored.")
    return notes
