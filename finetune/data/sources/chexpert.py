"""CheXpert as published: 224,316 chest X-rays of 65,240 patients, 14 observations mined from reports, -1 for uncertain.

Irvin et al., AAAI 2019. The small and the full release, whole or in part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.findings import NO_FINDING, select_findings
from finetune.data.labels import Policies, apply_policies, policies
from finetune.data.sources import chest
from finetune.data.sources.listing import list_files, need_columns, read_rows
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError, one_of

FINDINGS = [  # the order of the table, in the names that all sets share
    NO_FINDING,
    "Enlarged_Cardiomediastinum",
    "Cardiomegaly",
    "Lung_Opacity",
    "Lung_Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Effusion",
    "Pleural_Other",
    "Fracture",
    "Support_Devices",
]
TABLES = {"train": "train.csv", "valid": "valid.csv"}
PREFIXES = (".", "CheXpert-v1.0-small", "CheXpert-v1.0")
BATCH = "CheXpert-v1.0 batch "  # "batch 2 (train 1)" holds patients, "batch 1 (validate & csv)" the tables and valid/
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
WHERE = "https://stanfordmlgroup.github.io/competitions/chexpert"
VALID = ("test", "val")


@dataclass
class CheXpert:
    """Source of CheXpert.

    valid.csv is small (234 images of 200 patients) but read by three radiologists; the labels of train.csv are mined
    from reports. So the validation set is by default the TEST split, and one to choose the best epoch on is cut from
    train by patient. `valid=val` makes it the validation split, and then the test is cut from train, with mined labels.
    """

    root: str | Path = "data/chexpert"
    """Folder with train.csv, valid.csv and their folders, or the one above it (CheXpert-v1.0-small, CheXpert-v1.0)."""
    findings: list[str] | None = None
    """Findings to learn, by default all 14."""
    views: str = "frontal"
    """Views to take: frontal, lateral or all."""
    uncertain: Policies = field(default_factory=lambda: {"default": "ignore"})
    """What -1 means: ignore (unknown), zero, one or {soft: [a, b]}; or finding -> one of these."""
    missing: Policies = field(default_factory=lambda: {"default": "zero"})
    """What a blank means, likewise. The report did not mention the finding: zero, as in most published results."""
    valid: str = "test"
    """What the official validation set is for: test or val."""

    def __post_init__(self) -> None:
        chest.check_views(self.views)
        if self.valid not in VALID:
            raise one_of("data.valid", self.valid, VALID)
        self._findings = select_findings(self.findings, FINDINGS)
        for setting, setting_value in (("data.uncertain", self.uncertain), ("data.missing", self.missing)):
            policies(setting, setting_value, FINDINGS)

    def table(self) -> SampleTable:
        """One row per image that is present."""
        root = Path(self.root)
        prefixes = [*PREFIXES, *(name for name in list_files(root) if name.startswith(BATCH))]
        listings = self._listings(root, prefixes)
        parts = [self._rows(file, folder) for folder, file in listings.items()]
        frame = pd.concat([part for part, _, _ in parts], ignore_index=True)
        raw_labels, positives = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        in_view, notes = chest.select_views(frame["view"], self.views)
        frame, raw_labels, positives = frame[in_view], raw_labels[in_view], positives[in_view]
        homes = _homes(root, prefixes)
        frame["path"] = [
            f"{homes.get((folder, patient), folder + '/' + patient)}/{tail}"
            for folder, patient, tail in zip(frame.pop("folder"), frame["patient"], frame["path"], strict=True)
        ]
        hint = f"Unpack the archive from {WHERE} there, or set data.root=DIR to the folder with train.csv."
        is_present, absent = chest.filter_present(root, list(frame["path"]), next(iter(listings.values())), hint)
        frame, raw_labels, positives = frame[is_present], raw_labels[is_present], positives[is_present]
        targets = apply_policies(
            raw_labels, list(frame["path"]), self._findings, self.uncertain, self.missing, known=FINDINGS
        )
        notes += absent
        return chest.sample_table(
            frame, targets, self._findings, root=root, name="chexpert", notes=notes, strata=positives
        )

    def _listings(self, root: Path, prefixes: list[str]) -> dict[str, Path]:
        for prefix in prefixes:
            files = {folder: root / prefix / name for folder, name in TABLES.items()}
            if files := {folder: file for folder, file in files.items() if file.is_file()}:
                return files
        what = "has no train.csv or valid.csv" if root.is_dir() else "is not a folder"
        raise FinetuneError(
            f"data.root={self.root} {what} (looked in {root.absolute()}).\n"
            f"Get CheXpert at {WHERE} and set data.root=DIR."
        )

    def _rows(self, file: Path, folder: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        """The images of one table, without the part of the path above the patient, their raw labels, and which of
        the table's findings are positive."""
        rows = read_rows(file)
        need_columns(rows, {name: name for name in COLUMNS}, file)
        parts = rows["Path"].str.strip().str.extract(r"(patient[^/]+)/(study[^/]+)/([^/]+)$")
        if len(wrong := rows.index[parts.isna().any(axis=1)]):
            raise FinetuneError(
                f"{file}, line {wrong[0] + 2}: Path {rows['Path'][wrong[0]]!r} does not end in patientN/studyN/FILE."
            )
        frame = pd.DataFrame({"path": parts[1] + "/" + parts[2], "patient": parts[0]}, dtype=object)
        frame["split"] = "train" if folder == "train" else self.valid
        frame["folder"] = folder
        frame["study"] = parts[0] + "/" + parts[1]
        frame["view"] = chest.text(rows["Frontal/Lateral"].str.lower())
        frame["projection"] = chest.text(rows["AP/PA"])
        frame["age"] = pd.to_numeric(rows["Age"], errors="coerce").astype(float)
        frame["sex"] = chest.sex(rows["Sex"])
        frame = frame.astype({"split": object, "study": object})
        return (
            frame,
            chest.read_finding_columns(rows, self._findings, file),
            chest.positive_findings(rows, FINDINGS, file),
        )


def _homes(root: Path, prefixes: list[str]) -> dict[tuple[str, str], str]:
    """(train or valid, patient) -> the patient's folder, relative to root: the full release comes in batches."""
    homes: dict[tuple[str, str], str] = {}
    for prefix in prefixes:
        for folder in ("train", "valid", ""):
            home = "/".join(part for part in (prefix, folder) if part not in ("", "."))
            for name in list_files(root / home):
                if name.startswith("patient"):
                    homes.setdefault((folder or "train", name), f"{home}/{name}".lstrip("/"))
    return homes
