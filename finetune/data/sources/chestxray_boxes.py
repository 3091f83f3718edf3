"""The boxes of NIH ChestX-ray14: BBox_List_2017.csv, 984 boxes in 880 of the images, drawn by a radiologist."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.data.annotations import Box
from finetune.data.decoding.images import header_size
from finetune.data.findings import FINDINGS, NO_FINDING, canonical
from finetune.errors import BadImage, FinetuneError

LISTING = "BBox_List_2017.csv"
PUBLISHED = 1024  # side of the published pictures, whose pixels the boxes are in; not the OriginalImage of Data_Entry

BOXED = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)
"""The findings that have boxes; of the other six none was drawn."""


def read_boxes(root: Path, where: Mapping[str, str], *, scale: bool = True) -> tuple[dict[str, list[Box]], list[str]]:
    """Path of an image -> its boxes in pixels of the picture as it lies there; and a sentence where those are not the
    listed ones. `where` is stem -> path, as found below `root`.

    A picture of another size than the published 1024 pixels is taken for the whole of it made smaller: boxes shrink
    with it. The synthetic set lists pixels of its own pictures: `scale=False`.

    Raises:
        FinetuneError: a line that is no box, or of a finding that nobody knows.
    """
    boxes: dict[str, list[Box]] = {}
    for number, cells in _lines(root / LISTING):
        name, finding, numbers = _box(cells, root / LISTING, number)
        path = where.get(name.rpartition(".")[0])
        if path is not None:
            boxes.setdefault(path, []).append((finding, *numbers))
    if not scale:
        return boxes, []
    other = 0
    for path, found in list(boxes.items()):
        size = size_of(root / path)
        if size is None:  # decoding will say what is wrong with it
            del boxes[path]
        elif size != (PUBLISHED, PUBLISHED):
            other += 1
            by_y, by_x = (side / PUBLISHED for side in size)
            boxes[path] = [(name, x * by_x, y * by_y, w * by_x, h * by_y) for name, x, y, w, h in found]
    said = f"{other:,} of {len(boxes):,} images with boxes are not of the published {PUBLISHED} px: boxes are scaled."
    return boxes, [said] if other else []


def _lines(file: Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of every row; the header's own commas (`Bbox [x,y,w,h],,,`) name no columns."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as rows:
            return [(n, cells) for n, cells in enumerate(csv.reader(rows), start=1) if n > 1 and any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FinetuneError(f"{file} cannot be read: {error}.") from None


def _box(cells: list[str], file: Path, line: int) -> tuple[str, str, tuple[float, float, float, float]]:
    """Image, finding, and left, top, width, height."""
    try:
        name, finding = cells[0].strip(), canonical(cells[1])
        left, top, width, height = (float(cell) for cell in cells[2:6])
    except (ValueError, IndexError):
        raise FinetuneError(f"{file}, line {line}: {cells} is not IMAGE, FINDING, X, Y, WIDTH, HEIGHT.") from None
    if finding not in FINDINGS:
        raise FinetuneError(f"{file}, line {line}: {finding!r} is not a finding that is known here.")
    if not all(math.isfinite(v) and v >= 0 for v in (left, top, width, height)) or not width * height:
        raise FinetuneError(f"{file}, line {line}: {cells[2:6]} is no box; sides are above 0, places 0 or more.")
    return name, finding, (left, top, width, height)


def size_of(file: Path) -> tuple[int, int] | None:  # -> (H, W)
    """Of an image, by its header; None of one that cannot be read."""
    try:
        return header_size(file)
    except BadImage:
        return None


def known_boxes(
    listed: Sequence[Sequence[Box]], findings: Sequence[set[str]], synthetic: bool
) -> list[list[Box] | None]:
    """The boxes of each image where they are all that it has, else None.

    `listed` are its boxes of the findings that are learned, `findings` all of its labels. Of 112,120 images 880 were
    looked at for boxes, and in those a label may be without one: an image is known where each of its labels among
    BOXED has a box, or where it has No Finding. In the synthetic set every finding has its box.
    """
    return [
        list(boxes) if synthetic or names == {NO_FINDING} or (boxes and names <= {box[0] for box in boxes}) else None
        for boxes, names in zip(listed, findings, strict=True)
    ]
