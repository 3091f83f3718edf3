"""MIMIC-CXR-JPG as published: 377,110 chest X-rays of 65,379 patients, the labels of CheXpert's labeler for each study.

Johnson et al., 2019 (arXiv 1901.07042). The whole set or any part of it, tables packed (.csv.gz) or not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.findings import select_findings
from finetune.data.labels import Policies, apply_policies, policies
from finetune.data.sources import chest
from finetune.data.sources.chexpert import FINDINGS
from finetune.data.sources.listing import list_files, need_columns, read_rows
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError

WHERE = "https://physionet.org/content/mimic-cxr-jpg"
VIEW = {"PA": "frontal", "AP": "frontal", "LATERAL": "lateral", "LL": "lateral"}
"""ViewPosition -> view; oblique, decubitus and unnamed positions are neither."""
SPLITS = {"train": "train", "validate": "val", "test": "test"}


@dataclass
class MimicCxr:
    """Source of MIMIC-CXR-JPG. A label belongs to a study and holds for each of its images."""

    root: str | Path = "data/mimic"
    """Folder with mimic-cxr-2.0.0-chexpert.csv, -metadata.csv, -split.csv (each may end in .gz) and files/."""
    findings: list[str] | None = None
    """Findings to learn, by default all 14 of CheXpert's labeler."""
    views: str = "frontal"
    """Views to take: frontal (PA, AP), lateral (LATERAL, LL) or all."""
    uncertain: Policies = field(default_factory=lambda: {"default": "ignore"})
    """What -1 means: ignore (unknown), zero, one or {soft: [a, b]}; or finding -> one of these."""
    missing: Policies = field(default_factory=lambda: {"default": "zero"})
    """What a blank means, likewise. The report did not mention the finding: zero, as in most published results."""
    official_split: bool | None = None
    """Use -split.csv: true, false, or null for when it is there."""

    def __post_init__(self) -> None:
        chest.check_views(self.views)
        self._findings = select_findings(self.findings, FINDINGS)
        for setting, setting_value in (("data.uncertain", self.uncertain), ("data.missing", self.missing)):
            policies(setting, setting_value, FINDINGS)

    def table(self) -> SampleTable:
        """One row per image that is present and whose study has labels."""
        root = Path(self.root)
        listing, labels = self._file(root, "metadata"), self._file(root, "chexpert")
        rows, studies = read_rows(listing), read_rows(labels)
        need_columns(rows, {c: c for c in ("dicom_id", "subject_id", "study_id", "ViewPosition")}, listing)
        need_columns(studies, {"study_id": "study_id"}, labels)
        if len(twice := studies.index[studies["study_id"].duplicated()]):
            raise FinetuneError(f"{labels}, line {twice[0] + 2}: study {studies['study_id'][twice[0]]} is there twice.")
        patient, study, image = (chest.text(rows[c]) for c in ("subject_id", "study_id", "dicom_id"))
        paths = "files/p" + patient.str[:2] + "/p" + patient + "/s" + study + "/" + image + ".jpg"
        frame = pd.DataFrame({"path": paths, "patient": patient, "split": None, "study": study}, dtype=object)
        frame["projection"] = chest.text(rows["ViewPosition"])
        frame["view"] = frame["projection"].map(VIEW).fillna("").astype(object)
        usable, notes = chest.select_views(frame["view"], self.views)
        split = self._split(root, image)
        if split is not None:
            frame["split"] = split
            notes.append("The official split is used.")
        study_row = pd.Index(chest.text(studies["study_id"])).get_indexer(pd.Index(study))
        if without := int((usable & (study_row < 0)).sum()):
            notes.append(f"{without:,} images are of studies without labels and are left out.")
        usable &= study_row >= 0
        if not usable.any():
            raise FinetuneError(f"{labels} labels none of the studies of {listing.name}: are they of one release?")
        frame, study_row = frame[usable], study_row[usable]
        hint = f"Get the files at {WHERE}, or set data.root=DIR to the folder that holds files/."
        is_present, absent = chest.filter_present(root, list(frame["path"]), listing, hint)
        frame, study_row = frame[is_present], study_row[is_present]
        raw_labels = chest.read_finding_columns(studies, self._findings, labels)[study_row]
        targets = apply_policies(
            raw_labels, list(frame["path"]), self._findings, self.uncertain, self.missing, known=FINDINGS
        )
        positives = chest.positive_findings(studies, FINDINGS, labels)[study_row]
        notes += absent
        return chest.sample_table(
            frame, targets, self._findings, root=root, name="mimic", notes=notes, strata=positives
        )

    def _file(self, root: Path, what: str) -> Path:
        if (file := _find(root, what)) is None:
            why = f"has no mimic-cxr-2.0.0-{what}.csv(.gz)" if root.is_dir() else "is not a folder"
            raise FinetuneError(
                f"data.root={self.root} {why} (looked in {root.absolute()}).\n"
                f"Get MIMIC-CXR-JPG at {WHERE} (free, after a course on research with patients) and set data.root=DIR."
            )
        return file

    def _split(self, root: Path, image: pd.Series) -> pd.Series | None:
        file = None if self.official_split is False else _find(root, "split")
        if file is None:
            return None if not self.official_split else self._read_split(self._file(root, "split"), image)
        return self._read_split(file, image)

    def _read_split(self, file: Path, image: pd.Series) -> pd.Series:
        rows = read_rows(file)
        need_columns(rows, {"dicom_id": "dicom_id", "split": "split"}, file)
        named = rows["split"].str.strip().map(SPLITS)
        if len(wrong := rows.index[named.isna()]):
            raise FinetuneError(
                f"{file}, line {wrong[0] + 2}: split {rows['split'][wrong[0]]!r} is none of {', '.join(SPLITS)}."
            )
        split_of_image = dict(zip(rows["dicom_id"].str.strip(), named, strict=True))
        split = image.map(split_of_image).astype(object)
        if len(lost := np.flatnonzero(split.isna())):
            raise FinetuneError(
                f"{file} lacks {len(lost):,} of the listed images, first {image.iloc[lost[0]]}. "
                "data.official_split=false has the splits drawn."
            )
        return split


def _find(root: Path, what: str) -> Path | None:
    names = (name for name in list_files(root) if re.fullmatch(rf"mimic-cxr-[\d.]+-{what}\.csv(\.gz)?", name))
    return next((root / name for name in names), None)
