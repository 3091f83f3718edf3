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
PUBLISHED = 1024  # side of the published images, whose pixels the boxes are in; not the OriginalImage of Data_Entry

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
    """Path of an image -> its boxes in pixels of the stored image; and a note if these differ from the listed ones.
    `where` is stem -> path, below `root`.

    An image of another size than the published 1024 pixels counts as the whole image resized: its boxes are scaled.
    The synthetic set lists pixels of the stored images: `scale=False`.

    Raises:
        FinetuneError: a line that is no box, or has an unknown finding.
    """
    boxes: dict[str, list[Box]] = {}
    for number, cells in _lines(root / LISTING):
        name, finding, numbers = _box(cells, root / LISTING, number)
        path = where.get(name.rpartition(".")[0])
        if path is not None:
            boxes.setdefault(path, []).append((finding, *numbers))
    if not scale:
        return boxes, []
    n_other_size = 0
    for path, image_boxes in list(boxes.items()):
        size = image_size(root / path)
        if size is None:  # decoding reports the reason
            del boxes[path]
        elif size != (PUBLISHED, PUBLISHED):
            n_other_size += 1
            by_y, by_x = (side / PUBLISHED for side in size)
            boxes[path] = [(name, x * by_x, y * by_y, w * by_x, h * by_y) for name, x, y, w, h in image_boxes]
    note = (
        f"{n_other_size:,} of {len(boxes):,} images with boxes are not of the published {PUBLISHED} px: "
        "boxes are scaled."
    )
    return boxes, [note] if n_other_size else []


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
        raise FinetuneError(f"{file}, line {line}: {finding!r} is an unknown finding.")
    if not all(math.isfinite(v) and v >= 0 for v in (left, top, width, height)) or not width * height:
        raise FinetuneError(f"{file}, line {line}: {cells[2:6]} is no box; sides are above 0, places 0 or more.")
    return name, finding, (left, top, width, height)


def image_size(file: Path) -> tuple[int, int] | None:  # -> (H, W)
    """Size of an image, by its header; None if it cannot be read."""
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
