"""The boxes of VinDr-CXR: annotations_train.csv by three readers, annotations_test.csv by a consensus."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from finetune.data.annotations import Boxes
from finetune.data.decoding.dicom import SUFFIXES
from finetune.data.findings import canonical
from finetune.data.sources.boxed import BoxList, Faults, header_sizes
from finetune.data.sources.chestxray_boxes import image_size
from finetune.data.sources.listing import need_columns, read_rows
from finetune.errors import FinetuneError

CORNERS = ("x_min", "y_min", "x_max", "y_max")
ALIKE = 0.5
"""Intersection over union from which the boxes that readers drew of one finding are taken for the same."""


class Drawn(NamedTuple):
    """A box as a row of the table has it."""

    image: str
    finding: str
    reader: str
    """Blank where the table has no readers."""
    corners: tuple[float, ...]
    """left, top, right, bottom in pixels of the DICOM."""
    place: str


def annotated(
    files: dict[str, Path], frame: pd.DataFrame, targets: np.ndarray, findings: list[str], root: Path
) -> tuple[list[Boxes], list[str]]:
    """The boxes of each row as they were drawn, and a sentence where they are not of the images as they lie there."""
    drawn, _ = _of_rows(files, frame, targets, findings, Faults())
    boxes = {
        row: Boxes(np.array([box.corners for box in of_row]), tuple(box.finding for box in of_row))
        for row, of_row in drawn.items()
    }
    beyond = [row for row, entry in boxes.items() if _beyond(entry, root / frame["path"][row])]
    none = Boxes(np.zeros((0, 4)), ())
    if beyond:  # made smaller, and nobody knows from what size: not even those that fit can be trusted
        return [Boxes(np.zeros((0, 4)), (), complete=False)] * len(frame), [
            f"Boxes are left out: they are in pixels of the DICOM, and {frame['path'][beyond[0]]} is a smaller image."
        ]
    return [boxes.get(row, none) for row in range(len(frame))], []


def as_targets(
    files: dict[str, Path], frame: pd.DataFrame, targets: np.ndarray, findings: list[str], root: Path, faults: Faults
) -> tuple[list[Boxes | None], list[str]]:
    """The boxes of each row, those of several readers merged; None of a split whose table is absent, and of an image
    for which a finding is unknown.

    Raises:
        FinetuneError: the images are smaller than the DICOM files whose pixels the boxes are in.
    """
    drawn, lost = _of_rows(files, frame, targets, findings, faults)
    boxes, number = BoxList(lost=lost), 0
    for row, of_row in drawn.items():
        number += len(of_row)
        for box in merged(of_row):
            boxes.add(row, box.finding, box.corners, box.place)
    sizes, shown = np.full((len(frame), 2), np.nan), sorted(drawn)
    sizes[shown] = header_sizes(root, [frame["path"][row] for row in shown])
    for row, corners in zip(boxes.images, boxes.corners, strict=True):
        path = frame["path"][row]
        if Path(path).suffix.lower() not in SUFFIXES and (np.array(corners)[[3, 2]] > sizes[row] + 1).any():
            raise FinetuneError(
                f"data.target=boxes: boxes are in pixels of the DICOM, and {path} is a smaller image, of "
                f"{sizes[row, 1]:g} x {sizes[row, 0]:g}. Use the DICOM files, or images of their size."
            )
    entries = boxes.per_image(sizes, faults)
    unknown = np.isnan(targets).any(axis=1) | ~frame["split"].isin(list(files)).to_numpy()
    notes = [
        f"{number:,} boxes of several readers are {len(boxes):,}: those of one finding with an intersection over union "
        f"of {ALIKE:g} or more are merged into their mean."
    ]
    merge = notes if number > len(boxes) else []
    return [None if unknown[row] else entry for row, entry in enumerate(entries)], merge


def merged(drawn: list[Drawn]) -> list[Drawn]:
    """Boxes of one image, those of different readers that mark the same as their mean.

    In the order of the table, each joins the box of its finding that it overlaps most, from ALIKE on, unless the same
    reader is in it already: as weighted boxes fusion (Solovyev et al., 2021) with equal weights.
    """
    groups: list[list[Drawn]] = []
    for box in drawn:
        best, most = None, ALIKE
        for group in groups:
            readers = {other.reader for other in group}
            if group[0].finding != box.finding or not box.reader or box.reader in readers:
                continue
            if (share := _overlap(_mean(group), box.corners)) >= most:
                best, most = group, share
        if best is None:
            groups.append([box])
        else:
            best.append(box)
    return [group[0]._replace(corners=_mean(group)) for group in groups]


def _mean(group: list[Drawn]) -> tuple[float, ...]:
    return tuple(np.mean([box.corners for box in group], axis=0).tolist())


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union."""
    width, height = (min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1))
    both = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both) if areas > both else 0.0


def _of_rows(
    files: dict[str, Path], frame: pd.DataFrame, targets: np.ndarray, findings: list[str], faults: Faults
) -> tuple[dict[int, list[Drawn]], set[int]]:
    """Row -> the boxes around findings that its label has; and the rows of boxes that are faults."""
    row_of = {
        (split, Path(path).stem): n for n, (split, path) in enumerate(zip(frame["split"], frame["path"], strict=True))
    }
    drawn: dict[int, list[Drawn]] = {}
    lost = set()
    for split, file in files.items():
        for box in _rows(file, faults):
            row = row_of.get((split, box.image))
            if row is None or box.finding not in findings or targets[row, findings.index(box.finding)] != 1:
                continue
            if box.corners:
                drawn.setdefault(row, []).append(box)
            else:
                lost.add(row)
    return drawn, lost


def _rows(file: Path, faults: Faults) -> list[Drawn]:
    """The rows that have a box, without corners where they are a fault; rows of images without one leave them blank."""
    rows = read_rows(file)
    need_columns(rows, {name: name for name in ("image_id", "class_name", *CORNERS)}, file)
    drawn = rows[(rows[list(CORNERS)].apply(lambda column: column.str.strip()) != "").any(axis=1)]
    numbers = np.column_stack([pd.to_numeric(drawn[side], errors="coerce").to_numpy(float) for side in CORNERS])
    good = np.isfinite(numbers).all(axis=1) & (numbers[:, 2:] >= numbers[:, :2]).all(axis=1)
    for line in drawn.index[~good]:
        text = (
            f"{file}, line {line + 2}: {', '.join(CORNERS)} are {rows.loc[line, list(CORNERS)].tolist()}; a box needs "
            "four numbers, the last two not below the first two, an image without one leaves all blank"
        )
        if faults.on_bad == "stop":
            raise FinetuneError(f"{text}. data.on_bad=skip leaves such boxes out.")
        faults.add("box(es) that are none", text)
    column = next((str(name) for name in rows.columns if str(name).lower() == "rad_id"), None)
    readers = drawn[column].str.strip() if column else [""] * len(drawn)
    cells = zip(drawn["image_id"].str.strip(), drawn["class_name"].str.strip(), readers, drawn.index, strict=True)
    return [
        Drawn(image, canonical(finding), reader, tuple(corners) if fits else (), f"{file}, line {line + 2}")
        for (image, finding, reader, line), corners, fits in zip(cells, numbers.tolist(), good, strict=True)
    ]


def _beyond(boxes: Boxes, image: Path) -> bool:
    """Whether a box reaches out of an image that is no DICOM; by a pixel it may."""
    size = None if image.suffix.lower() in SUFFIXES else image_size(image)
    if size is None:
        return False
    return bool((boxes.corners[:, 2:] > np.array([size[1], size[0]]) + 1).any())
