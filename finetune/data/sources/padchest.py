"""PadChest: 160,868 chest X-rays of 67,625 patients, each with a list of some of 174 findings and 19 diagnoses.

Bustos et al., Medical Image Analysis 2020. About a quarter of the reports were read by physicians, the others by a
network trained on those.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.findings import canonical, select_findings
from finetune.data.labels import Policies, apply_policies, policies
from finetune.data.sources import chest, chestxray
from finetune.data.sources.listing import list_files, need_columns, read_rows
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError

WHERE = "https://bimcv.cipf.es/bimcv-projects/padchest"
TABLES = "PADCHEST_chest_x_ray_images_labels_*.csv, packed as .gz or not"
FOLDERS = ("", "images/", "images-224/")
VIEW = {"PA": "frontal", "AP": "frontal", "AP_horizontal": "frontal", "L": "lateral"}
"""Projection -> view; rib and unclear ones are neither."""
USELESS = "exclude"  # the report or the image is no good
UNCHANGED = "unchanged"  # the report compares with one that is not here: what it does not name is unknown

KINDS = {
    "Atelectasis": (
        *(f"{kind} atelectasis" for kind in ("laminar", "lobar", "segmental", "round", "total")),
        "atelectasis basal",
    ),
    "Consolidation": ("air bronchogram",),
    "Effusion": (
        "loculated pleural effusion",
        "loculated fissural effusion",
        "hydropneumothorax",
        "empyema",
        "hemothorax",
    ),
    "Fracture": ("rib fracture", "callus rib fracture", "clavicle fracture", "vertebral fracture", "humeral fracture"),
    "Infiltration": (
        "interstitial pattern",
        "ground glass pattern",
        "reticular interstitial pattern",
        "reticulonodular interstitial pattern",
        "miliary opacities",
        "alveolar pattern",
        "consolidation",
        "air bronchogram",
    ),
    "Nodule": ("multiple nodules",),
    "Pleural_Thickening": ("apical pleural thickening", "calcified pleural thickening"),
    "Pneumonia": ("atypical pneumonia",),
    "Pneumothorax": ("hydropneumothorax",),
}
"""Finding -> its subtypes in the label tree of the set, which imply it."""

FINDINGS = ["Hiatal_Hernia" if name == "Hernia" else name for name in chestxray.FINDINGS]
OPTIONAL = {"StudyID": "study", "MethodLabel": "labelled_by"}


@dataclass
class PadChest:
    """Source of PadChest and of tables in its form: ImageID, ImageDir, PatientID, Projection, Labels."""

    root: str | Path = "data/padchest"
    """Folder with the table and the images, in the numbered folders of ImageDir or all in one (also images/)."""
    labels: str | Path | None = None
    """The table, by default PADCHEST_chest_x_ray_images_labels_*.csv(.gz) in root."""
    findings: list[str] | None = None
    """Findings to learn, by default NIH's as far as PadChest has them; any of its own labels may be named."""
    views: str = "frontal"
    """Views to take: frontal (PA, AP, AP_horizontal), lateral (L) or all."""
    missing: Policies = field(default_factory=lambda: {"default": "ignore"})
    """Value of unnamed findings where the list is empty or `unchanged`: ignore (unknown), zero, one, soft."""

    def __post_init__(self) -> None:
        chest.check_views(self.views)
        policies("data.missing", self.missing, None)

    def table(self) -> SampleTable:
        """One row per image that is present."""
        root = Path(self.root)
        listing = self._listing(root)
        rows = read_rows(listing)
        need_columns(rows, {c: c for c in ("ImageID", "PatientID", "Projection", "Labels")}, listing)
        codes, cells = pd.factorize(rows["Labels"])
        named: list[list[str]] = []
        for code, cell in enumerate(cells):
            if (names := _names(cell)) is None:
                line = rows.index[np.flatnonzero(codes == code)[0]] + 2
                raise FinetuneError(f"{listing}, line {line}: Labels {cell[:80]!r} is not a list like ['nodule'].")
            named.append(names)
        known_findings = _known_findings(named)
        findings = select_findings(self.findings, known_findings, default=FINDINGS)
        view = chest.text(rows["Projection"]).map(VIEW).fillna("")
        usable, notes = chest.select_views(view, self.views)
        useless = np.array([USELESS in names for names in named])[codes]
        if dropped := int((usable & useless).sum()):
            notes.append(f"{dropped:,} images are labelled {USELESS!r} and are left out.")
        usable &= ~useless
        frame = pd.DataFrame({"path": "", "patient": chest.text(rows["PatientID"]), "split": None}, dtype=object)
        frame["view"], frame["projection"] = view.astype(object), chest.text(rows["Projection"])
        if "PatientSex_DICOM" in rows:
            frame["sex"] = chest.sex(rows["PatientSex_DICOM"])
        if {"StudyDate_DICOM", "PatientBirth"} <= set(rows.columns):
            frame["age"] = _age(rows["StudyDate_DICOM"], rows["PatientBirth"])
        for column, name in OPTIONAL.items():
            if column in rows:
                frame[name] = chest.text(rows[column])
        frame, codes, rows = frame[usable], codes[usable], rows[usable]
        if len(blank := frame.index[frame["patient"] == ""]):
            raise FinetuneError(f"{listing}, line {blank[0] + 2}: PatientID is blank in {len(blank):,} row(s).")
        frame["path"] = self._paths(root, rows)
        hint = f"Unpack the archives from {WHERE} there, or set data.root=DIR."
        is_present, absent = chest.filter_present(root, list(frame["path"]), listing, hint)
        frame, codes = frame[is_present], codes[is_present]
        raw_labels = np.array([_raw_labels(names, findings) for names in named])[codes]
        targets = apply_policies(
            raw_labels, list(frame["path"]), findings, "ignore", self.missing, known=known_findings
        )
        positives = _positive_findings(named, known_findings)[codes]
        notes += absent
        return chest.sample_table(frame, targets, findings, root=root, name="padchest", notes=notes, strata=positives)

    def _listing(self, root: Path) -> Path:
        if self.labels:
            return Path(self.labels)
        for name in list_files(root):
            if name.startswith("PADCHEST") and "labels" in name and name.removesuffix(".gz").endswith(".csv"):
                return root / name
        what = f"has no {TABLES}" if root.is_dir() else "is not a folder"
        raise FinetuneError(
            f"data.root={self.root} {what} (looked in {root.absolute()}).\n"
            f"Get PadChest at {WHERE} and set data.root=DIR; data.labels=FILE names a table of another name."
        )

    def _paths(self, root: Path, rows: pd.DataFrame) -> list[str]:
        """ImageDir/ImageID where the archives were unpacked as they are, else wherever the first folder has it."""
        names = chest.text(rows["ImageID"])
        folders = [rows["ImageDir"].str.strip() + "/"] if "ImageDir" in rows else []
        paths = [names.map(lambda name, folder=folder: folder + name) for folder in FOLDERS]
        paths = [folder + names for folder in folders] + paths
        files_in = {
            folder: set(list_files(root / folder)) for folder in {p.rpartition("/")[0] for c in paths for p in c}
        }
        return [
            next((path for path in where if path.rpartition("/")[2] in files_in[path.rpartition("/")[0]]), where[0])
            for where in zip(*paths, strict=True)
        ]


def _names(cell: str) -> list[str] | None:
    """The labels of a printed Python list, None where it is none; nothing but text is read out of it."""
    if not cell.strip() or cell.strip().lower() == "nan":
        return []
    try:
        names = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return [name.strip() for name in names if name.strip()]


def _known_findings(named: Sequence[list[str]]) -> list[str]:
    """Findings that can be learned: the default ones, then all other labels of the table."""
    labels = sorted({canonical(name) for names in named for name in names} - {USELESS, UNCHANGED, *FINDINGS})
    return [*FINDINGS, *labels]


def _raw_labels(names: list[str], findings: list[str]) -> list[float]:
    """1 for findings named directly or by a subtype; 0 for the others, or NaN if the list is empty or `unchanged`."""
    has = {canonical(name) for name in names}
    otherwise = np.nan if not names or UNCHANGED in names else 0.0
    return [1.0 if has & {f, *(canonical(kind) for kind in KINDS.get(f, ()))} else otherwise for f in findings]


def _positive_findings(named: Sequence[list[str]], known: Sequence[str]) -> np.ndarray:  # -> (cells, L) bool
    """Which of the known findings each list names, directly or, for the default ones, by a subtype."""
    number = {name: k for k, name in enumerate(known)}
    positives = np.zeros((len(named), len(known)), bool)
    for row, names in enumerate(named):
        positives[row, : len(FINDINGS)] = np.array(_raw_labels(names, FINDINGS)) == 1
        positives[row, [number[name] for name in map(canonical, names) if name in number]] = True
    return positives


def _age(study: pd.Series, birth: pd.Series) -> pd.Series:
    """Years between the dates of study (YYYYMMDD) and birth (YYYY); NaN where impossible."""
    years = pd.to_numeric(study.str.strip().str[:4], errors="coerce") - pd.to_numeric(birth, errors="coerce")
    return years.where(years.between(0, 120)).astype(float)
