"""Boxes and masks in the format of COCO: data=coco data.root=DIR, or data.annotations=FILE.json.

Lin et al., ECCV 2014; https://cocodataset.org/#format-data. `bbox` is left, top, width, height in pixels,
`segmentation` polygons or RLE: see coco_masks.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from finetune.data.sources.assemble import need_root
from finetune.data.sources.boxed import (
    BoxList,
    Faults,
    bare_table,
    boxed_table,
    header_sizes,
    other_sizes,
    patients_from,
    split_of,
)
from finetune.data.sources.coco_masks import ShapeList
from finetune.data.sources.listing import absent_note, list_files, present, shorten
from finetune.data.sources.masks import check_target, layered, with_masks
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError

WANTED = "images/ and annotations/*.json in the format of COCO"
NAN = float("nan")
KEYS = {"boxes": ("image_id", "category_id", "bbox"), "mask": ("image_id", "category_id")}
"""Target -> what an annotation must have; without a segmentation its image is not known, so that it is not dropped."""
Add = Callable[[int, str, dict[str, Any], str], None]
"""Takes the row of an image, a label, an annotation, and where that stands."""


@dataclass
class _Listed:
    """The images of all files, in order."""

    paths: list[str] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    sizes: list[tuple[float, float]] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    """Names, in the order of the files."""
    listed: int = 0
    """Images in the files, those that are absent too."""


@dataclass
class Coco:
    """Source of boxes or masks: DIR/annotations/*.json, DIR/*.json or DIR/SPLIT/*.json, with the images below DIR.

    Several files are the given splits by their names (instances_train2017.json, val.json); one file is split here. Of
    COCO's own files instances_* alone are read. An image without annotations is a negative. Boxes with iscrowd=1 are
    marked as ignored, masks with it belong to their region. Images may have a patient_id.
    """

    targets: ClassVar[tuple[str, ...]] = ("boxes", "mask")
    """The values of `target` that these data have."""
    root: str | Path | None = None
    """Folder with the images and the annotations."""
    annotations: str | Path | None = None
    """One file of annotations; null is all files below root."""
    patients: str | Path | None = None
    """CSV file with columns path and patient, where images have no patient_id."""
    on_bad: str = "stop"
    """What an annotation that makes no sense does: stop, or skip."""
    target: str = "boxes"
    """boxes, or mask: what the segmentations of each category cover together."""
    regions: list[str] | None = None
    """With target=mask, the categories to learn, in order; None is all."""
    overlapping: bool | None = None
    """With target=mask, whether a pixel may be in several categories; None is true."""

    def __post_init__(self) -> None:
        check_target(self.target, self.targets)

    def table(self) -> SampleTable:
        """One row per image that is present.

        Raises:
            FinetuneError: a file that is no COCO JSON; a fault, unless on_bad=skip.
        """
        if self.annotations and not self.root:
            file = Path(self.annotations)
            root = file.parent.parent if file.parent.name == "annotations" else file.parent
        else:
            root = need_root(self.root, "coco", WANTED)
        files = [Path(self.annotations)] if self.annotations else _files(root)
        if not files:
            raise FinetuneError(f"data.root={root} has no annotations/*.json or *.json. Set data.annotations=FILE.")
        splits = _splits(files)
        images, boxes, shapes, faults, notes = _Listed(), BoxList(), ShapeList(), Faults(self.on_bad), []
        add = shapes.add if self.target == "mask" else partial(_add_box, boxes)
        for file, split in zip(files, splits, strict=True):
            notes += _add_file(file, split, root, images, add, KEYS[self.target], faults, boxes.lost)
        if not images.paths:
            raise FinetuneError(
                f"data.root={root}: none of the {images.listed:,} images of {shorten(f.name for f in files)} is there. "
                "Set data.root=DIR to the folder that their file_name starts from."
            )
        notes += absent_note(len(images.paths), images.listed, root)
        name = "coco" if not self.annotations else Path(self.annotations).stem
        patients, patient_notes = self._patients(images)
        notes += patient_notes
        if self.target == "mask":
            shared = layered(self.regions, images.categories, self.overlapping, "categories")
            masks = shapes.per_image(images.sizes, shared, faults)
            notes += faults.settle()
            table = bare_table(root, name, images.paths, splits=images.splits, patients=patients, notes=notes)
            return with_masks(table, masks, shared)
        sizes = np.array(images.sizes, np.float64).reshape(-1, 2)
        shown = sorted(set(boxes.images))
        resized = other_sizes(root, images.paths, sizes, shown, faults)
        if unknown := [row for row in shown if np.isnan(sizes[row]).any()]:
            sizes[unknown] = header_sizes(root, [images.paths[row] for row in unknown])
        entries = boxes.per_image(sizes, faults)
        for row in resized:
            entries[row] = None
        notes += faults.settle()
        return boxed_table(root, name, images.paths, entries, splits=images.splits, patients=patients, notes=notes)

    def _patients(self, images: _Listed) -> tuple[list[str] | None, list[str]]:
        if self.patients:
            return patients_from(self.patients, images.paths), []
        if not any(images.patients):
            return None, []
        lacking = sum(not name for name in images.patients)
        note = f"{lacking:,} images have no patient_id; each counts as a patient of its own."
        pairs = zip(images.patients, images.paths, strict=True)
        return [name or path for name, path in pairs], [note] * (lacking > 0)


def _files(root: Path) -> list[Path]:
    folders = [root / "annotations", root, *(root / name for name in list_files(root) if split_of(name))]
    for group in (folders[:1], folders[1:2], folders[2:]):
        files = [folder / name for folder in group for name in list_files(folder) if name.lower().endswith(".json")]
        if files:
            return [file for file in files if file.name.startswith("instances")] or files
    return []


def _splits(files: list[Path]) -> list[str | None]:
    if len(files) == 1:
        return [None]
    splits = [split_of(file.stem) or split_of(file.parent.name) for file in files]
    if lacking := [file.name for file, split in zip(files, splits, strict=True) if split is None]:
        raise FinetuneError(
            f"{files[0].parent} has {len(files)} files of annotations, and {shorten(lacking)} does not say which split "
            "it is. Name them train, val and test, or choose one with data.annotations=FILE."
        )
    return splits


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FinetuneError(f"data.annotations={file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise FinetuneError(f"{file} is not UTF-8, so no JSON file.") from None
    except (ValueError, RecursionError) as error:
        raise FinetuneError(f"{file} is no whole JSON file, it may have been cut short: {error}.") from None
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in names):
        has = shorten(content, 8) if isinstance(content, dict) else type(content).__name__
        wanted = ", ".join(names)
        raise FinetuneError(f"{file} is not in the format of COCO: it needs the lists {wanted}; it has {has}.")
    return content


def _entries(content: dict[str, Any], name: str, keys: Iterable[str], file: Path, faults: Faults) -> Iterator[Any]:
    """The entries of a list that have the keys, each `id` once."""
    seen = set()
    for place, entry in enumerate(content[name]):
        if not isinstance(entry, dict) or (lacking := [key for key in keys if key not in entry]):
            what = f"without {shorten(lacking)}" if isinstance(entry, dict) else "that are no objects"
            faults.add(f"{name} {what}", f"{file.name}, {name}[{place}]")
            continue
        if (number := entry.get("id")) is not None:
            if repr(number) in seen:
                faults.add(f"{name} with an id that is there already", f"{file.name}, id {number}")
                continue
            seen.add(repr(number))
        yield entry


def _add_file(
    file: Path,
    split: str | None,
    root: Path,
    images: _Listed,
    add: Add,
    keys: Sequence[str],
    faults: Faults,
    lost: set[int],
) -> list[str]:
    """Add the images of a file, and with `add` the annotations that have the `keys`; the sentences on it. `lost` gets
    the rows of images with an annotation of a category that is not listed."""
    content = _read(file)
    categories = _entries(content, "categories", ("id", "name"), file, faults)
    labels = {repr(entry["id"]): str(entry["name"]) for entry in categories}
    if len(set(labels.values())) < len(labels):
        twice = sorted({name for name in labels.values() if list(labels.values()).count(name) > 1})
        raise FinetuneError(
            f"{file} has several categories with the name {shorten(twice)}; give each a name of its own."
        )
    images.categories += [label for label in labels.values() if label not in images.categories]
    entries = list(_entries(content, "images", ("id", "file_name"), file, faults))
    paths = _paths([str(entry["file_name"]) for entry in entries], file, split, root)
    images.listed += len(entries)
    row_of: dict[str, int | None] = {}
    taken = set(images.paths)
    for entry, path in zip(entries, paths, strict=True):
        row_of[repr(entry["id"])] = None if path is None else len(images.paths)
        if path is None:
            continue
        if path in taken:
            faults.add("images that are listed twice", f"{file.name}, {path}")
            del row_of[repr(entry["id"])]
            continue
        taken.add(path)
        images.paths.append(path)
        images.splits.append(split)
        sides = [_number(entry.get(key)) for key in ("height", "width")]
        images.sizes.append((sides[0], sides[1]) if min(sides) > 0 else (NAN, NAN))
        patient = entry.get("patient_id")
        images.patients.append("" if patient is None else str(patient).strip())
    used = set()
    for entry in _entries(content, "annotations", keys, file, faults):
        place = f"{file.name}, annotation {entry.get('id')}"
        label, image = labels.get(repr(entry["category_id"])), repr(entry["image_id"])
        if image not in row_of:
            faults.add("annotations of an image that is not listed", f"{place}, image_id {entry['image_id']}")
        elif label is None:
            faults.add("annotations of a category that is not listed", f"{place}, category_id {entry['category_id']}")
            lost |= {row for row in [row_of[image]] if row is not None}
        elif (row := row_of[image]) is not None:
            used.add(label)
            add(row, label, entry, place)
    unused, what = sorted(set(labels.values()) - used), "box" if "bbox" in keys else "mask"
    return [f"{file.name}: {len(unused)} categories have no {what}: {shorten(unused, 8)}."] if unused else []


def _add_box(boxes: BoxList, row: int, label: str, entry: dict[str, Any], place: str) -> None:
    boxes.add(row, label, _corners(entry["bbox"]), place, ignored=bool(entry.get("iscrowd")))


def _paths(names: list[str], file: Path, split: str | None, root: Path) -> list[str | None]:
    """Relative to root, from the first folder that has each image; None of those that are absent."""
    part = file.stem.removeprefix("instances_")
    bases = [file.parent, root, root / "images"]
    for name in (part, split or ""):
        bases += [root / name, root / "images" / name] if name else []
    where: list[str | None] = [None] * len(names)
    for base in dict.fromkeys(base.absolute() for base in bases if base.is_dir()):
        if not base.is_relative_to(root.absolute()):
            continue
        prefix = base.relative_to(root.absolute()).as_posix()
        left = [place for place, path in enumerate(where) if path is None]
        paths = [PurePosixPath(prefix, names[place].replace("\\", "/")).as_posix() for place in left]
        for place, path, there in zip(left, paths, present(root, paths), strict=True):
            where[place] = path if there else None
    return where


def _corners(bbox: Any) -> tuple[float, float, float, float]:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return NAN, NAN, NAN, NAN
    left, top, width, height = map(_number, bbox)
    return left, top, left + width, top + height


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else NAN
