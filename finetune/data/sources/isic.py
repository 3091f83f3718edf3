"""Dermatoscopic images of skin lesions: HAM10000 and the ISIC challenges of 2018 and 2019.

HAM10000 shows most lesions once and some up to six times; images of one lesion never straddle the splits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.data.labels import read_raw_labels
from finetune.data.sources.assemble import assemble, need_root
from finetune.data.sources.listing import absent_note, list_files, need_columns, read_rows, shorten
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]  # the challenge's order; later ones of 2019 follow
SPLIT_NAMES = {"train": "train", "val": "val", "test": "test"}  # as written in the file names
EMPTY = ("UNK",)  # a column of 2019 without an image
WHERE = "https://doi.org/10.7910/DVN/DBW86T (HAM10000) or https://challenge.isic-archive.com/data"
LAYOUT = f"HAM10000_metadata.csv or *_GroundTruth.csv, and the images below it. Get them at {WHERE}"
METADATA_COLUMNS = {  # our name -> theirs
    "age": ("age", "age_approx"),
    "sex": ("sex",),
    "site": ("localization", "anatom_site_general"),
    "confirmed_by": ("dx_type", "diagnosis_confirm_type"),
}


@dataclass
class Isic:
    """Source of HAM10000 as published and of ISIC ground truth with one column per class."""

    root: str | Path | None = None
    """Folder with HAM10000_metadata.csv or ISIC's *_GroundTruth.csv (one per split), and the images below it."""

    def table(self) -> SampleTable:
        """One row per image that is present; images of a lesion share their `patient`."""
        root = need_root(self.root, "isic", LAYOUT)
        where, tables = _walk(root)
        truths = _truths(tables)
        if not truths:
            raise FinetuneError(f"data.root={self.root} has no table of labels. Wanted: {LAYOUT}.")
        rows = pd.concat([_labels(root / file).assign(split=split) for file, split in truths], ignore_index=True)
        if len(twice := rows.index[rows["image"].duplicated()]):
            raise FinetuneError(
                f"{rows['image'][twice[0]]} is listed twice in {shorten(file for file, _ in truths)}; "
                "remove one of them."
            )
        for file in tables:
            if file.lower().endswith(("_metadata.csv", "lesiongroupings.csv")) and file not in [t for t, _ in truths]:
                rows = _with_facts(rows, root / file)
        is_present = rows["image"].isin(where.keys()).to_numpy()
        if not is_present.any():
            raise FinetuneError(
                f"data.root={self.root}: none of the {len(rows):,} listed images is below it. Wanted: {LAYOUT}."
            )
        notes = absent_note(int(is_present.sum()), len(rows), root)
        rows = rows[is_present].reset_index(drop=True)
        named = [name for name in rows.columns if name.startswith("is_")]
        for name in [f"is_{empty}" for empty in EMPTY]:
            if name in named and not rows[name].fillna(0).any():
                named.remove(name)
        classes = [name.removeprefix("is_") for name in named]
        classes = [*(name for name in CLASSES if name in classes), *(name for name in classes if name not in CLASSES)]
        targets = rows[[f"is_{name}" for name in classes]].fillna(0).to_numpy(float)
        if (unlabelled := targets.sum(axis=1) == 0).any():
            targets[unlabelled] = np.nan
            notes.append(f"{int(unlabelled.sum()):,} images have no class; it is unknown.")
        paths = rows["image"].map(where).tolist()
        lesions = rows["lesion"].fillna("").tolist() if "lesion" in rows else [""] * len(rows)
        has_lesions = any(lesions)
        if not has_lesions:
            notes.append("No table names the lesions: every image counts as its own.")
        elif alone := sum(not lesion for lesion in lesions):
            notes.append(f"{alone:,} images have no lesion_id and count as separate lesions.")
        return assemble(
            root,
            "isic",
            paths,
            classes,
            targets,
            splits=rows["split"].tolist(),
            patients=[lesion or path for lesion, path in zip(lesions, paths, strict=True)] if has_lesions else None,
            metadata={name: rows[name] for name in METADATA_COLUMNS if name in rows},
            notes=notes,
        )


def _walk(root: Path) -> tuple[dict[str, str], list[str]]:
    """Stem -> path of the images in root and two folders down, and the tables there."""
    where: dict[str, str] = {}
    tables: list[str] = []
    folders = [""]
    for depth in range(3):
        below: list[str] = []
        for folder in folders:
            for name in list_files(root / folder):
                path = f"{folder}/{name}" if folder else name
                stem, suffix = os.path.splitext(name)
                if name.startswith((".", "__MACOSX")):
                    continue
                if suffix.lower() in IMAGE_SUFFIXES:
                    where.setdefault(stem, path)
                elif suffix.lower() in (".csv", ".tab") or name == "HAM10000_metadata":
                    tables.append(path)
                elif depth < 2 and (root / path).is_dir():
                    below.append(path)
        folders = below
    return where, tables


def _truths(tables: list[str]) -> list[tuple[str, str | None]]:
    """The tables of labels with their splits; a single one has none, its splits are drawn."""
    file_of_split: dict[str, str] = {}
    for file in sorted(tables, key=lambda file: (not _is_ham(file), file.count("/"), file)):
        name = file.rpartition("/")[2].lower()
        split = "train" if _is_ham(file) else next((s for w, s in SPLIT_NAMES.items() if w in name), "")
        if (_is_ham(file) or "groundtruth" in name) and split:
            file_of_split.setdefault(split, file)  # HAM10000's own table before the challenge's copy of it
    if len(file_of_split) == 1:
        return [(file, None) for file in file_of_split.values()]
    return [(file, split) for split, file in file_of_split.items()]


def _is_ham(file: str) -> bool:
    return file.rpartition("/")[2].lower().startswith("ham10000_metadata")


def _labels(file: Path) -> pd.DataFrame:
    """image, is_<CLASS>... of 1 and 0, and the other columns."""
    rows = read_rows(file, "," if file.suffix == "" else None)
    if "dx" in rows.columns:
        need_columns(rows, {"image_id": "image_id", "lesion_id": "lesion_id"}, file)
        diagnosis = rows["dx"].str.strip().str.upper()
        names = [*CLASSES, *sorted(set(diagnosis) - {*CLASSES, ""})]
        frame = pd.DataFrame({"image": rows["image_id"].str.strip()})
        raw_labels = pd.DataFrame({f"is_{name}": (diagnosis == name).astype(float) for name in names})
        return pd.concat([_facts(rows, frame), raw_labels], axis=1)
    need_columns(rows, {"image": "image", "class": CLASSES[0]}, file)
    names = [name for name in rows.columns if name != "image" and name.isupper()]
    raw_labels = rows[names].apply(lambda column: read_raw_labels(column, file))
    if (wrong := ~raw_labels.isin((0, 1)).all(axis=1) | (raw_labels.sum(axis=1) > 1)).any():
        line = int(wrong.to_numpy().argmax())
        raise FinetuneError(f"{file}, line {line + 2}: exactly one of {', '.join(names)} must be 1, the others 0.")
    return pd.concat(
        [rows[["image"]].apply(lambda c: c.str.strip()), raw_labels.add_prefix("is_").astype(float)], axis=1
    )


def _facts(rows: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the lesion and the metadata that `rows` has."""
    columns = {"lesion": rows["lesion_id"].str.strip()} if "lesion_id" in rows else {}
    for name, theirs in METADATA_COLUMNS.items():
        for column in (c for c in theirs if c in rows):
            text = rows[column].str.strip()
            columns[name] = pd.to_numeric(text, errors="coerce") if name == "age" else text
    return frame.assign(**columns)


def _with_facts(rows: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Rows with lesions and metadata from a further table."""
    more = read_rows(file)
    key = next((name for name in ("image", "image_id", "image_name") if name in more), None)
    if key is None:
        return rows
    facts = _facts(more, pd.DataFrame({"image": more[key].str.strip()})).drop_duplicates("image").set_index("image")
    for name in facts.columns:
        values = rows["image"].map(facts[name])
        rows[name] = values if name not in rows else rows[name].where(rows[name].notna(), values)
    return rows
