"""VinDr-CXR as published: 18,000 frontal chest X-rays, each of the 15,000 for training read by 3 radiologists, each of
the 3,000 of the test by a consensus of 5.

Nguyen et al., Scientific Data 2022. DICOM as published, or PNG or JPEG under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.annotations import BOXES, Annotations, Boxes
from finetune.data.decoding.dicom import SUFFIXES
from finetune.data.findings import FINDINGS, canonical, select_findings
from finetune.data.sources import chest
from finetune.data.sources.chestxray_boxes import image_size
from finetune.data.sources.listing import absent_note, by_stem, need_columns, read_rows, shorten
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError, one_of

LISTINGS = {"train": "image_labels_train.csv", "test": "image_labels_test.csv"}
ANNOTATIONS = {"train": "annotations_train.csv", "test": "annotations_test.csv"}
CORNERS = ("x_min", "y_min", "x_max", "y_max")
NOT_FINDINGS = ("image_id", "rad_id", "rad_ID")
VOTES = ("majority", "any")
WHERE = "https://physionet.org/content/vindr-cxr"


@dataclass
class VinDr:
    """Source of VinDr-CXR; its official test is the test split. No patient is published: an image counts as one.

    Where annotations_train.csv or annotations_test.csv lie beside the tables, their boxes are the annotation
    `boxes` (finetune/data/annotations.py): all that were drawn around a finding that the label of the image has, so
    that a train image may have up to three of one opacity. They are in pixels of the DICOM.
    """

    root: str | Path = "data/vindr"
    """Folder with annotations/, train/ and test/."""
    findings: list[str] | None = None
    """Findings to learn, by default all that the tables have (22 local, 6 global)."""
    votes: str = "majority"
    """How the readers of a training image make one label: majority (more than half of them) or any."""

    def __post_init__(self) -> None:
        if self.votes not in VOTES:
            raise one_of("data.votes", self.votes, VOTES)

    def table(self) -> SampleTable:
        """One row per image that is present."""
        root = Path(self.root)
        listings = {split: root / "annotations" / name for split, name in LISTINGS.items()}
        listings = {split: file for split, file in listings.items() if file.is_file()}
        if not listings:
            what = f"has no annotations/{LISTINGS['train']}" if root.is_dir() else "is not a folder"
            raise FinetuneError(
                f"data.root={self.root} {what} (looked in {root.absolute()}).\n"
                f"Get VinDr-CXR at {WHERE} (free, after a course on research with patients) and set data.root=DIR."
            )
        tables = {split: read_rows(file) for split, file in listings.items()}
        columns = [str(c) for rows in tables.values() for c in rows.columns if c not in NOT_FINDINGS]
        all_findings = list(dict.fromkeys(canonical(column) for column in columns))
        findings = select_findings(self.findings, all_findings)
        published = [name for name in all_findings if name in FINDINGS]
        read = list(dict.fromkeys([*findings, *published]))
        parts, listed, notes = [], 0, []
        for split, rows in tables.items():
            share = self._share(rows, read, listings[split])
            where = by_stem(root, (split,))
            listed += len(share)
            share = share[[name in where for name in share.index]]
            labels = (share > (0 if self.votes == "any" else 0.5)).astype(float).where(share.notna())[findings]
            names = pd.Series(labels.index, dtype=object)
            frame = pd.DataFrame({"path": names.map(where), "patient": names.map(where), "split": split}, dtype=object)
            parts.append((frame, labels.to_numpy(), (share[published] > 0).to_numpy()))
        frame = pd.concat([part for part, _, _ in parts], ignore_index=True)
        targets, positives = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        if frame.empty:
            raise FinetuneError(
                f"data.root={self.root}: none of the {listed:,} listed images is in {' or '.join(tables)}/. "
                f"Get them at {WHERE}, or set data.root=DIR."
            )
        notes += absent_note(len(frame), listed, root)
        notes.append("No patient is published: every image counts as its own patient.")
        annotations: dict[str, Annotations] = {}
        box_files = {split: root / "annotations" / name for split, name in ANNOTATIONS.items() if split in tables}
        if box_files := {split: file for split, file in box_files.items() if file.is_file()}:
            annotations[BOXES], sentences = _boxes(box_files, frame, targets, findings, root)
            notes += sentences
        return chest.sample_table(
            frame,
            targets,
            findings,
            root=root,
            name="vindr",
            notes=notes,
            has_patients=False,
            strata=positives,
            annotations=annotations,
        )

    def _share(self, rows: pd.DataFrame, findings: list[str], file: Path) -> pd.DataFrame:
        """Image -> the share of its readers who saw each finding; one that this table does not have is unknown."""
        need_columns(rows, {"image_id": "image_id"}, file)
        has = [f for f in findings if f in {canonical(str(column)) for column in rows.columns}]
        raw_labels = pd.DataFrame(np.nan, index=range(len(rows)), columns=findings)
        if has:
            raw_labels[has] = chest.read_finding_columns(rows, has, file)
        if (raw_labels < 0).any(axis=None):
            raise FinetuneError(f"{file} holds -1; VinDr-CXR knows 0 and 1 only.")
        readers = raw_labels.groupby(rows["image_id"].str.strip().to_numpy(), sort=False)
        several = readers.size() > 1
        if "rad_id" not in (str(c).lower() for c in rows.columns) and several.any():
            raise FinetuneError(f"{file}: {shorten(several.index[several])} is there twice, without a column rad_id.")
        return readers.mean()


def _boxes(
    files: dict[str, Path], frame: pd.DataFrame, targets: np.ndarray, findings: list[str], root: Path
) -> tuple[list[Boxes], list[str]]:
    """The boxes of each row, and a note if they do not fit the stored images."""
    row = {
        (split, Path(path).stem): n for n, (split, path) in enumerate(zip(frame["split"], frame["path"], strict=True))
    }
    corners: dict[int, list[tuple[float, ...]]] = {}
    labels: dict[int, list[str]] = {}
    for split, file in files.items():
        for image, finding, box in _corners(file):
            n_row = row.get((split, image))
            if n_row is not None and finding in findings and targets[n_row, findings.index(finding)] == 1:
                corners.setdefault(n_row, []).append(box)
                labels.setdefault(n_row, []).append(finding)
    boxes = {n_row: Boxes(np.array(corners[n_row]), tuple(labels[n_row])) for n_row in corners}
    beyond = [n_row for n_row, drawn in boxes.items() if _beyond(drawn, root / frame["path"][n_row])]
    none = Boxes(np.zeros((0, 4)), ())
    if beyond:  # resized from an unknown size: even boxes that fit cannot be trusted
        return [Boxes(np.zeros((0, 4)), (), complete=False)] * len(frame), [
            f"Boxes are left out: they are in pixels of the DICOM, and {frame['path'][beyond[0]]} is a smaller image."
        ]
    return [boxes.get(n_row, none) for n_row in range(len(frame))], []


def _corners(file: Path) -> list[tuple[str, str, tuple[float, ...]]]:
    """Image, finding, and left, top, right, bottom of each box; rows of images without one leave them blank."""
    rows = read_rows(file)
    need_columns(rows, {name: name for name in ("image_id", "class_name", *CORNERS)}, file)
    box_rows = rows[(rows[list(CORNERS)].apply(lambda column: column.str.strip()) != "").any(axis=1)]
    numbers = np.column_stack([pd.to_numeric(box_rows[side], errors="coerce").to_numpy(float) for side in CORNERS])
    right = np.isfinite(numbers).all(axis=1) & (numbers[:, 2:] >= numbers[:, :2]).all(axis=1)
    if len(wrong := box_rows.index[~right]):
        raise FinetuneError(
            f"{file}, line {wrong[0] + 2}: {', '.join(CORNERS)} are {rows.loc[wrong[0], list(CORNERS)].tolist()}; a "
            "box needs four numbers, the last two not below the first two, an image without one leaves all blank."
        )
    names = zip(box_rows["image_id"].str.strip(), box_rows["class_name"].str.strip(), numbers.tolist(), strict=True)
    return [(image, canonical(finding), tuple(corners)) for image, finding, corners in names]


def _beyond(boxes: Boxes, image: Path) -> bool:
    """Whether a box exceeds an image that is no DICOM by more than a pixel."""
    size = None if image.suffix.lower() in SUFFIXES else image_size(image)
    if size is None:
        return False
    return bool((boxes.corners[:, 2:] > np.array([size[1], size[0]]) + 1).any())
