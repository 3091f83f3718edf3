"""Boxes in the format of YOLO: data=yolo data.root=DIR, a text file per image.

A line of labels/NAME.txt is `class centre_x centre_y width height`, the last four as parts of the image's sides; the
class is a number from 0 into the names of data.yaml or a line of classes.txt.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import yaml

from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.data.sources.assemble import need_root
from finetune.data.sources.boxed import BoxList, Faults, boxed_table, header_sizes, only_boxes, patients_from, split_of
from finetune.data.sources.listing import shorten
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError

WANTED = "images/, labels/ and data.yaml or classes.txt"
NAMES = ("data.yaml", "dataset.yaml", "classes.txt", "labels/classes.txt", "obj.names")


@dataclass
class Yolo:
    """Source of boxes: DIR/images/NAME.jpg and DIR/labels/NAME.txt, names in DIR/data.yaml or DIR/classes.txt.

    images/train, train/images and the like are the given splits. An image without a file in labels/, or with an empty
    one, is a negative.
    """

    targets: ClassVar[tuple[str, ...]] = ("boxes",)
    """The values of `target` that these data have."""
    root: str | Path | None = None
    """Folder with images/ and labels/, or with train/images and train/labels and so on."""
    patients: str | Path | None = None
    """CSV file with columns path and patient."""
    on_bad: str = "stop"
    """What an annotation that makes no sense does: stop, or skip."""
    target: str = "boxes"
    """boxes"""

    def __post_init__(self) -> None:
        only_boxes(self.target, "yolo")

    def table(self) -> SampleTable:
        """One row per image.

        Raises:
            FinetuneError: no images or no names; a fault, unless on_bad=skip.
        """
        root = need_root(self.root, "yolo", WANTED)
        names, faults = _names(root), Faults(self.on_bad)
        files = _files(root)
        paths = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES) and _label_file(path)]
        if not paths:
            raise FinetuneError(f"data.root={root} has no images below a folder images/. Wanted: {WANTED}.")
        texts = [_label_file(path) for path in paths]
        there = set(files)
        splits = [next(filter(None, map(split_of, PurePosixPath(path).parts[:-1])), None) for path in paths]
        if any(splits) and not all(splits):
            raise FinetuneError(
                f"data.root={root}: {paths[splits.index(None)]} lies in no folder train, val or test, but others do."
            )
        notes, lines = [], []
        for row, text in enumerate(texts):
            if text in there:
                lines += [(row, *line) for line in _lines(root / text)]
        if absent := sum(text not in there for text in texts):
            notes.append(f"{absent:,} images have no file in labels/: they are negatives, as the format has it.")
        labels = {file for file in files if "labels" in file.split("/")[:-1] and file.endswith(".txt")}
        for file in sorted(labels - {*texts, *NAMES}):
            faults.add("files of labels without an image", file)
        shown = sorted({row for row, *_ in lines})
        sizes = np.full((len(paths), 2), np.nan)
        sizes[shown] = header_sizes(root, [paths[row] for row in shown])
        boxes = BoxList()
        for row, number, sides, place in lines:
            height, width = sizes[row].tolist()
            if sides is None:
                faults.add("lines that are not CLASS X Y WIDTH HEIGHT", place)
                boxes.lost.add(row)
            elif not 0 <= number < len(names):
                faults.add("boxes of a class without a name", f"{place}: class {number} of {len(names)}")
                boxes.lost.add(row)
            elif width != width:  # the image cannot be read, and decoding says why
                boxes.lost.add(row)
            else:
                x, y, w, h = sides
                corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
                boxes.add(row, names[number], corners, place)
        entries = boxes.per_image(sizes, faults)
        return boxed_table(
            root,
            root.absolute().name,
            paths,
            entries,
            splits=splits,
            patients=patients_from(self.patients, paths) if self.patients else None,
            notes=[*notes, *faults.settle()],
        )


def _files(root: Path) -> list[str]:
    """Every file below root that is not hidden, sorted."""
    files, walked = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in walked:  # a link that leads back
            folders.clear()
            continue
        walked.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(folder).relative_to(root).as_posix()
        files += [name if prefix == "." else f"{prefix}/{name}" for name in names if not name.startswith(".")]
    return sorted(files)


def _label_file(path: str) -> str:
    """images/train/a.jpg -> labels/train/a.txt: the last folder `images` is exchanged; blank without one."""
    parts = path.split("/")
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if not places:
        return ""
    parts[places[-1]] = "labels"
    return PurePosixPath(*parts).with_suffix(".txt").as_posix()


def _names(root: Path) -> list[str]:
    file = next((root / name for name in NAMES if (root / name).is_file()), None)
    if file is None:
        raise FinetuneError(f"data.root={root} has none of {', '.join(NAMES)}, which give the classes their names.")
    try:
        text = file.read_text(encoding="utf-8-sig")
        listed = yaml.safe_load(text) if file.suffix == ".yaml" else {"names": text.split("\n")}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FinetuneError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    names = listed.get("names") if isinstance(listed, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise FinetuneError(f"{file}: names must be a list, or a number from 0 for each: {{0: mass, 1: node}}.")
    names = [str(name).strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names or len(set(names)) < len(names):
        raise FinetuneError(
            f"{file}: the names of the classes must be distinct and not blank, not {shorten(names, 8)}."
        )
    return names


def _lines(file: Path) -> list[tuple[int, list[float] | None, str]]:
    """Number of the class, the four numbers (None where a line has none) and where they stand, for each line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"{file} cannot be read: {error}.") from None
    lines: list[tuple[int, list[float] | None, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells, place = line.split(), f"{file}, line {number}"
        if not cells:
            continue
        try:
            label, *sides = (float(cell) for cell in cells)
        except ValueError:
            label, sides = 0.5, []
        if len(sides) != 4 or label % 1:
            lines.append((-1, None, f"{place}: {line[:60]!r}"))
        else:
            lines.append((int(label), sides, place))
    return lines
