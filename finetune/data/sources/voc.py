"""Boxes in the format of Pascal VOC: data=voc data.root=DIR, an XML file per image.

Everingham et al., IJCV 2010. Its pixels are counted from 1 and the last one belongs to the box: xmin=1, xmax=W is the
whole width, so that left = xmin - 1 and right = xmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np

from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.data.sources.assemble import need_root
from finetune.data.sources.boxed import (
    BoxList,
    Faults,
    boxed_table,
    header_sizes,
    only_boxes,
    other_sizes,
    patients_from,
)
from finetune.data.sources.listing import by_stem, list_files, shorten
from finetune.data.table import SPLITS, SampleTable
from finetune.errors import FinetuneError

WANTED = "Annotations/*.xml and JPEGImages/"
XML, IMAGES, LISTS = ("Annotations", "annotations", "."), ("JPEGImages", "images", "."), "ImageSets/Main"
SIDES = ("xmin", "ymin", "xmax", "ymax")
NAN = float("nan")


@dataclass
class Voc:
    """Source of boxes: DIR/Annotations/NAME.xml and DIR/JPEGImages/NAME.jpg, or both in one folder.

    ImageSets/Main/{train,val,test}.txt are the given splits where they are there. A file without objects is a negative;
    an image without a file is left out. Objects marked as difficult are ignored, as in the challenge's scores.
    """

    targets: ClassVar[tuple[str, ...]] = ("boxes",)
    """The values of `target` that these data have."""
    root: str | Path | None = None
    """Folder with Annotations/ and JPEGImages/."""
    patients: str | Path | None = None
    """CSV file with columns path and patient."""
    on_bad: str = "stop"
    """What an annotation that makes no sense does: stop, or skip."""
    target: str = "boxes"
    """boxes"""

    def __post_init__(self) -> None:
        only_boxes(self.target, "voc")

    def table(self) -> SampleTable:
        """One row per image that has a file of annotations and is present.

        Raises:
            FinetuneError: no such files; a fault, unless on_bad=skip.
        """
        root = need_root(self.root, "voc", WANTED)
        files = {
            Path(name).stem: root / folder / name
            for folder in reversed(XML)
            for name in list_files(root / folder)
            if name.lower().endswith(".xml")
        }
        if not files:
            raise FinetuneError(f"data.root={root} has no XML files in {', '.join(XML)}. Wanted: {WANTED}.")
        where, faults, boxes = by_stem(root, IMAGES), Faults(self.on_bad), BoxList()
        splits, notes = _splits(root)
        stems = [stem for stem in sorted(files) if not splits or stem in splits]
        if lacking := len(set(where) - set(files)):
            notes.append(f"{lacking:,} images without a file of annotations are left out.")
        paths: list[str] = []
        listed: list[tuple[float, float]] = []
        for stem in stems:
            if (path := where.get(stem)) is None:
                faults.add("annotations without an image", f"{files[stem]}, no {stem} with {shorten(IMAGE_SUFFIXES)}")
            elif (tree := _tree(files[stem], faults)) is not None:
                for label, corners, ignored, place in _objects(tree, files[stem]):
                    if label:
                        boxes.add(len(paths), label, corners, place, ignored=ignored)
                    else:
                        faults.add("objects without a name", place)
                        boxes.lost.add(len(paths))
                paths.append(path)
                listed.append((_number(tree.findtext("size/height")), _number(tree.findtext("size/width"))))
        if not paths:
            faults.settle()
            raise FinetuneError(f"data.root={root}: no XML file has its image in {', '.join(IMAGES)}.")
        sizes = np.array(listed, np.float64).reshape(-1, 2)
        sizes[~(sizes > 0).all(axis=1)] = np.nan  # shorten tools write 0
        shown = sorted(set(boxes.images))
        resized = other_sizes(root, paths, sizes, shown, faults)
        if unknown := [row for row in shown if np.isnan(sizes[row]).any()]:
            sizes[unknown] = header_sizes(root, [paths[row] for row in unknown])
        entries = boxes.per_image(sizes, faults)
        for row in resized:
            entries[row] = None
        return boxed_table(
            root,
            root.absolute().name,
            paths,
            entries,
            splits=[splits.get(Path(path).stem) for path in paths],
            patients=patients_from(self.patients, paths) if self.patients else None,
            notes=[*notes, *faults.settle()],
        )


def _splits(root: Path) -> tuple[dict[str, str], list[str]]:
    """Stem -> split, by the lists; of trainval.txt, what is in no other list is train."""
    lists = {split: root / LISTS / f"{split}.txt" for split in ("trainval", *SPLITS)}
    names = {split: _names(file) for split, file in lists.items() if file.is_file()}
    if "train" not in names and "trainval" not in names:
        return {}, []
    if twice := sorted(set(names.get("test", ())) & {*names.get("train", ()), *names.get("val", ())}):
        raise FinetuneError(f"{root / LISTS}: {shorten(twice)} is in test.txt and in train.txt or val.txt.")
    splits = dict.fromkeys(names.get("trainval", ()), "train")
    for split in SPLITS:
        splits |= dict.fromkeys(names.get(split, ()), split)
    return splits, [f"Splits are those of {LISTS}; what is in none of its lists is left out."]


def _names(file: Path) -> list[str]:
    try:
        return [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"{file} cannot be read: {error}.") from None


def _tree(file: Path, faults: Faults) -> ElementTree.Element | None:
    """The content of a file; None, and a fault, where it is no XML."""
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:  # the last two: an unknown encoding
        faults.add("files that are no whole XML", f"{file}: {error}")
        return None


def _objects(tree: ElementTree.Element, file: Path) -> Iterator[tuple[str, tuple[float, ...], bool, str]]:
    """Label, corners, whether it is difficult and where it stands, of each object."""
    for number, entry in enumerate(tree.iter("object"), start=1):
        left, top, right, bottom = (_number(entry.findtext(f"bndbox/{side}")) for side in SIDES)
        difficult = (entry.findtext("difficult") or "").strip() == "1"
        label = (entry.findtext("name") or "").strip()
        yield label, (left - 1, top - 1, right, bottom), difficult, f"{file}, object {number}"


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return NAN
