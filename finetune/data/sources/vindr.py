"""VinDr-CXR as published: 18,000 frontal chest X-rays, each of the 15,000 for training read by 3 radiologists, each of
the 3,000 of the test by a consensus of 5.

Nguyen et al., Scientific Data 2022. DICOM as published, or PNG or JPEG under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from finetune.data.annotations import BOXES, Annotations
from finetune.data.findings import FINDINGS, canonical, select_findings
from finetune.data.sources import chest, vindr_boxes
from finetune.data.sources.boxed import TARGETS, Faults, with_boxes
from finetune.data.sources.listing import absent_note, by_stem, need_columns, read_rows, shorten
from finetune.data.sources.masks import check_target
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError, one_of

LISTINGS = {"train": "image_labels_train.csv", "test": "image_labels_test.csv"}
ANNOTATIONS = {"train": "annotations_train.csv", "test": "annotations_test.csv"}
NOT_FINDINGS = ("image_id", "rad_id", "rad_ID")
VOTES = ("majority", "any")
WHERE = "https://physionet.org/content/vindr-cxr"


@dataclass
class VinDr:
    """Source of VinDr-CXR; its official test is the test split. No patient is published: an image counts as one.

    Where annotations_train.csv or annotations_test.csv lie beside the tables, their boxes are the annotation
    `boxes` (finetune/data/annotations.py): all that were drawn around a finding that the label of the image has, so
    that a train image may have up to three of one opacity. They are in pixels of the DICOM. With target=boxes they are
    the target: what several readers drew around one thing is merged, and an image without a box is a negative.
    """

    targets: ClassVar[tuple[str, ...]] = TARGETS
    """The values of `target` that these data have."""
    root: str | Path = "data/vindr"
    """Folder with annotations/, train/ and test/."""
    findings: list[str] | None = None
    """Findings to learn, by default all that the tables have (22 local, 6 global)."""
    votes: str = "majority"
    """How the readers of a training image make one label: majority (more than half of them) or any."""
    target: str = "class"
    """class or boxes."""
    on_bad: str = "stop"
    """What a box that makes no sense does: stop, or skip."""

    def __post_init__(self) -> None:
        if self.votes not in VOTES:
            raise one_of("data.votes", self.votes, VOTES)
        check_target(self.target, self.targets)

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
        box_files = {split: file for split, file in box_files.items() if file.is_file()}
        if box_files and self.target == "class":
            annotations[BOXES], sentences = vindr_boxes.annotated(box_files, frame, targets, findings, root)
            notes += sentences
        table = chest.sample_table(
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
        if self.target == "class":
            return table
        if not box_files:
            raise FinetuneError(
                f"data.target=boxes needs annotations/{shorten(ANNOTATIONS.values())} in data.root={root}."
            )
        faults = Faults(self.on_bad)
        entries, sentences = vindr_boxes.as_targets(box_files, frame, targets, findings, root, faults)
        return with_boxes(replace(table, notes=[*table.notes, *sentences, *faults.settle()]), entries)

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
