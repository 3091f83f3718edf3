"""Kermany's chest X-rays of children: normal, bacterial and viral pneumonia (Kermany et al., Cell 2018).

The patient is part of the file name. `person7_bacteria_24.jpeg` and `person7_virus_12.jpeg` are two people: each
disease counts its own. `IM-0115-0001.jpeg` and `NORMAL2-IM-0115-0001.jpeg` are two people as well. Read this way, the
published train and test share no patient; by the bare number they would seem to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.data.sources.assemble import assemble, need_root
from finetune.data.sources.listing import list_files, shorten
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError, one_of

CLASSES = {"two": ["NORMAL", "PNEUMONIA"], "three": ["NORMAL", "BACTERIA", "VIRUS"], "finding": ["Pneumonia"]}
SPLITS = ("train", "val", "test")
WHERE = "https://data.mendeley.com/datasets/rscbjbr9sj (or Kaggle, paultimothymooney/chest-xray-pneumonia)"
LAYOUT = f"train/ and test/, each with NORMAL/ and PNEUMONIA/. Get it at {WHERE}"
NAMES = (  # how files are named -> patient, cause
    re.compile(r"(?P<patient>person\d+_(?P<cause>bacteria|virus))(_\d+)+"),
    re.compile(r"(?P<patient>(NORMAL2-)?IM-\d+)(-\d+)+"),
    # the third edition: disease, patient, image
    re.compile(r"(?P<cause>NORMAL|BACTERIA|VIRUS)-(?P<patient>\d+)-\d+"),
)


@dataclass
class Kermany:
    """Source of the set as it is unpacked: chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/."""

    root: str | Path | None = None
    """Folder chest_xray, or the one that it is in."""
    classes: str = "two"
    """two (NORMAL, PNEUMONIA), three (NORMAL, BACTERIA, VIRUS) or finding (Pneumonia or not)."""
    official_split: bool = True
    """Keep the published test; false draws all splits by patient."""
    official_val: bool = False
    """Keep the published val of 16 images; false adds them to train and cuts val from it by patient."""

    def __post_init__(self) -> None:
        if self.classes not in CLASSES:
            raise one_of("data.classes", self.classes, CLASSES)
        if self.official_val and not self.official_split:
            raise FinetuneError("data.official_val=true needs data.official_split=true: val is a part of it.")

    def table(self) -> SampleTable:
        """One row per image, in the order of splits, classes and names."""
        root = need_root(self.root, "kermany", LAYOUT)
        inside = next((f for f in ("", "chest_xray/", "chest_xray/chest_xray/") if (root / f / "train").is_dir()), None)
        if inside is None:
            raise FinetuneError(f"data.root={self.root} has no train/. Wanted: {LAYOUT}.")
        rows = [
            (f"{folder}/{name}", split, label, *_read_name(name))
            for split in SPLITS
            for label in ("NORMAL", "PNEUMONIA")
            for folder in [f"{inside}{split}/{label}"]
            for name in list_files(root / folder)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        if not rows:
            raise FinetuneError(f"data.root={self.root} has no images in train/ and test/. Wanted: {LAYOUT}.")
        notes = []
        if self.classes == "three" and (unnamed := [r[0] for r in rows if r[2] == "PNEUMONIA" and not r[4]]):
            notes.append(
                f"{len(unnamed):,} file names have neither bacteria nor virus and are left out: {shorten(unnamed)}."
            )
            rows = [row for row in rows if row[2] == "NORMAL" or row[4]]
        if strange := [row[0] for row in rows if not row[3]]:
            notes.append(f"{len(strange):,} file names have no patient; each counts as its own: {shorten(strange)}.")
        small = sum(row[1] == "val" for row in rows)
        if small and self.official_split and not self.official_val:
            notes.append(
                f"The published val of {small:,} images is too small for choosing a model and counts as train "
                "(data.official_val=true keeps it)."
            )
            rows = [(r[0], "train" if r[1] == "val" else r[1], *r[2:]) for r in rows]
        return assemble(
            root,
            "kermany",
            [row[0] for row in rows],
            CLASSES[self.classes],
            self._labels([(row[2], row[4]) for row in rows]),
            kind="multilabel" if self.classes == "finding" else "multiclass",
            splits=[row[1] for row in rows] if self.official_split else None,
            patients=[row[3] or row[0] for row in rows],
            notes=notes,
            strata=np.array([[row[2] == "NORMAL", row[4] == "bacteria", row[4] == "virus"] for row in rows]),
        )

    def _labels(self, folder_causes: Sequence[tuple[str, str]]) -> np.ndarray:
        """Numbers of the classes for (folder, cause); one column of 0 and 1 for a finding."""
        if self.classes == "finding":
            return np.array([[label == "PNEUMONIA"] for label, _ in folder_causes], dtype=float)
        names = CLASSES[self.classes]
        causes = {"bacteria": "BACTERIA", "virus": "VIRUS"}
        three = self.classes == "three"
        return np.array(
            [names.index(causes[cause] if three and label != "NORMAL" else label) for label, cause in folder_causes]
        )


def _read_name(name: str) -> tuple[str, str]:
    """Patient and cause (bacteria, virus or "") of a file name; no patient for a name of another kind."""
    for form in NAMES:
        if match := form.fullmatch(name.rpartition(".")[0]):
            parts = match.groupdict()
            cause = (parts.get("cause") or "").lower()
            return parts["patient"], cause if cause != "normal" else ""
    return "", ""
