"""Folders of images: DIR/<class>/ or DIR/{train,val,test}/<class>/; data=folder data.root=DIR.

With data.target=mask: images and their masks, see mask_folder.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.data.sources.headers import patients_by_header
from finetune.data.sources.listing import list_files, shorten
from finetune.data.sources.mask_folder import mask_folder
from finetune.data.sources.masks import check_target
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass
class Folder:
    """Source for images sorted into one folder per class; each image has exactly one class.

    With a folder `train` at the top, the top level is taken as the split; a missing val or test is cut from train.
    Patients are known where the images are DICOM: by the PatientID of their headers.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "mask")
    """The values of `target` that these data have."""
    root: str | Path | None = None
    """Folder that holds the class folders, or train, val and test with the class folders in each."""
    target: str = "class"
    """class: a folder per class; mask: images/ and masks/."""
    regions: list[str] | dict[str, int | list[int]] | None = None
    """With target=mask: names of the regions in the order of the values 0, 1, ... of the masks, name -> value(s), or
    the folders in masks/ to learn; None takes all that there are."""
    overlapping: bool | None = None
    """With target=mask: whether a pixel may be in several regions; None is true for a folder per region."""
    patients: str | Path | None = None
    """With target=mask, a CSV file with columns path and patient; None takes the headers of DICOM files."""
    on_bad: str = "stop"
    """With target=mask, what images without a mask do: stop, or skip."""

    def __post_init__(self) -> None:
        check_target(self.target, self.targets)
        if self.target == "class" and any(v is not None for v in (self.regions, self.overlapping, self.patients)):
            raise FinetuneError("data.regions, data.overlapping and data.patients need data.target=mask.")

    def table(self) -> SampleTable:
        """One row per image, by split and class in order of their names."""
        if not self.root:
            what = "images/ and masks/" if self.target == "mask" else "one folder per class"
            raise FinetuneError(f"data=folder needs data.root=DIR, a folder with {what}.")
        root = Path(self.root)
        if not root.is_dir():
            raise FinetuneError(f"data.root={self.root} is not a folder (looked at {root.absolute()}).")
        top = _folders(root)
        has_split = "train" in top
        branches: dict[str, str | None] = (
            {name: SPLIT_FOLDERS[name] for name in top if name in SPLIT_FOLDERS} if has_split else {"": None}
        )
        if self.target == "mask":
            return mask_folder(root, branches, self.regions, self.overlapping, self.patients, self.on_bad)
        ignored: Counter[str] = Counter()
        entries: list[tuple[str, str, str | None]] = []  # path, class, split
        classes: set[str] = set()
        for branch, split in branches.items():
            names = _folders(root / branch)
            classes |= set(names)
            for label in names:
                prefix = f"{branch}/{label}" if branch else label
                images, other_files = _images(root / prefix)
                ignored += other_files
                entries += [(f"{prefix}/{image}", label, split) for image in images]
        if not entries:
            raise FinetuneError(
                f"data.root={self.root} has no images in class folders; its folders are: {shorten(top) or 'none'}. "
                f"Expected DIR/<class>/ or DIR/train/<class>/ with files {', '.join(IMAGE_SUFFIXES)}."
            )
        paths, labels, splits = zip(*entries, strict=True)
        patients, notes = patients_by_header(root, paths)
        if patients is None:
            notes.append(
                "No patient column: every image counts as its own patient; data=csv takes data.patient=COLUMN."
            )
        if empty := sorted(classes - set(labels)):
            notes.append(f"Class folder(s) without images are left out: {shorten(empty)}.")
        if has_split and (extra_folders := [name for name in top if name not in branches]):
            notes.append(f"Folder(s) beside train, val and test are left out: {shorten(extra_folders)}.")
        notes += [f"{count:,} {what} are left out." for what, count in sorted(ignored.items())]
        names = sorted(set(labels))
        targets = (np.array(labels, dtype=object)[:, None] == np.array(names, dtype=object)).astype(float)
        frame = pd.DataFrame({"path": paths, "patient": patients or paths, "split": splits}, dtype=object)
        frame = pd.concat([frame, pd.DataFrame(targets, columns=[f"target_{name}" for name in names])], axis=1)
        return SampleTable(
            frame=frame,
            classes=names,
            kind="multiclass",
            root=root,
            name=root.absolute().name,
            has_patients=patients is not None,
            notes=notes,
        ).check()


def _folders(folder: Path) -> list[str]:
    return [name for name in list_files(folder) if not name.startswith(".") and (folder / name).is_dir()]


def _images(folder: Path) -> tuple[list[str], Counter[str]]:
    """Names of the images directly in a folder, and counts of other entries."""
    images, other_files = [], Counter[str]()
    for name in list_files(folder):
        if name.startswith("."):
            other_files["hidden files"] += 1
        elif name.lower().endswith(IMAGE_SUFFIXES):
            images.append(name)
        elif (folder / name).is_dir():
            other_files["folders inside class folders (with all that is in them)"] += 1
        else:
            other_files[f"files that are no images ({Path(name).suffix or 'no suffix'})"] += 1
    return images, other_files
