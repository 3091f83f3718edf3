"""NIH ChestX-ray14 as published: 112,120 frontal chest X-rays of 30,805 patients, 14 findings mined from reports.

Wang et al., CVPR 2017. The whole set and any partial download work alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from finetune.data.annotations import BOXES, Annotations, Box, Boxes
from finetune.data.findings import NO_FINDING, check_one_truth, select_findings
from finetune.data.phantom.dataset import is_phantom
from finetune.data.sources.boxed import TARGETS, BoxList, Faults, header_sizes, with_boxes
from finetune.data.sources.chestxray_boxes import BOXED, LISTING, known_boxes, read_boxes
from finetune.data.sources.listing import absent_note, by_stem, list_files, need_columns, read_rows, shorten
from finetune.data.sources.masks import check_target
from finetune.data.table import SampleTable, Strata
from finetune.errors import FinetuneError

FINDINGS = [  # the paper's order
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
]
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the first one found is read
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
WHERE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
OLDEST = 120  # years; the tables give ages up to 414
METADATA = {"age": "Patient Age", "sex": "Patient Gender", "view": "View Position", "follow_up": "Follow-up #"}


@dataclass
class ChestXray:
    """Source of NIH ChestX-ray14, in the published layout or with images_001 ... images_012 folders.

    Where BBox_List_2017.csv lies beside the table, its boxes are the annotation `boxes` (finetune/data/annotations.py),
    marked as incomplete: an image without boxes was not annotated, it may still show findings. With
    target=boxes they are the target of the images where they are complete (chestxray_boxes.known_boxes). Images with
    No Finding are negatives then, and all others are unknown.
    """

    targets: ClassVar[tuple[str, ...]] = TARGETS
    """The values of `target` that these data have."""
    root: str | Path = "data/chestxray"
    """Folder with Data_Entry_2017*.csv and the images in images/ or images_001/images/ and so on."""
    findings: list[str] | None = None
    """Findings to learn, by default all 14; "No Finding" may be one of them."""
    official_split: bool | None = None
    """Use train_val_list.txt and test_list.txt; by default when both are there."""
    target: str = "class"
    """class or boxes."""
    on_bad: str = "stop"
    """What a box that reaches out of its image does: stop, or skip."""

    def __post_init__(self) -> None:
        check_target(self.target, self.targets)

    def table(self) -> SampleTable:
        """One row per image that is present."""
        root = Path(self.root)
        findings = select_findings(self.findings, (*FINDINGS, NO_FINDING), default=FINDINGS)
        listing = self._listing(root)
        rows = read_rows(listing)
        rows = rows.rename(columns={"Patient Sex": "Patient Gender"})
        need_columns(rows, {c: c for c in ("Image Index", "Finding Labels", "Patient ID", *METADATA.values())}, listing)
        check_one_truth(rows.columns, "Finding Labels", findings, listing)
        notes = []
        where = _find_images(root)
        paths = rows["Image Index"].map(lambda name: where.get(name.rpartition(".")[0]))
        is_present = paths.notna().to_numpy()
        if not is_present.any():
            raise FinetuneError(
                f"data.root={self.root}: none of the {len(rows):,} images of {listing.name} is in images/ or "
                f"images_*/ there. Unpack the archives from {WHERE} into it, or set data.root=DIR."
            )
        notes += absent_note(int(is_present.sum()), len(rows), root)
        split, list_notes = self._official(root, rows["Image Index"])
        notes += list_notes
        if split is not None:
            listed = split.notna().to_numpy()
            if dropped := int((is_present & ~listed).sum()):
                notes.append(f"{dropped:,} images are in neither {' nor '.join(LISTS.values())} and are left out.")
            is_present = is_present & listed
        rows = rows[is_present]
        frame = pd.DataFrame({"path": paths[is_present].astype(object)})
        frame["patient"] = rows["Patient ID"].str.strip().astype(object)
        frame["split"] = None if split is None else split[is_present]
        frame["split"] = frame["split"].astype(object)
        all_findings = [*FINDINGS, NO_FINDING]
        raw_labels = _targets(rows["Finding Labels"], all_findings, listing)
        for name in findings:
            frame[f"target_{name}"] = raw_labels[:, all_findings.index(name)]
        age, odd = _years(rows["Patient Age"])
        if odd:
            notes.append(f"{odd:,} row(s) give no possible age (0 to {OLDEST} years); their age is unknown.")
        frame["age"] = age
        frame["sex"] = rows["Patient Gender"].str.strip().astype(object)
        frame["view"] = rows["View Position"].str.strip().astype(object)
        frame["follow_up"] = pd.to_numeric(rows["Follow-up #"], errors="coerce").astype(float)
        synthetic = is_phantom(root) is not None
        annotations: dict[str, Annotations] = {}
        boxes_of_path: dict[str, list[Box]] = {}
        if (root / LISTING).is_file():
            boxes_of_path, box_notes = read_boxes(root, where, scale=not synthetic)
            notes += box_notes
            boxes = {path: Boxes.from_sides(listed, complete=False) for path, listed in boxes_of_path.items()}
            none = Boxes.from_sides([], complete=False)
            annotations[BOXES] = [boxes.get(path, none) for path in frame["path"]]
        table = SampleTable(
            frame=frame.reset_index(drop=True),
            classes=findings,
            kind="multilabel",
            root=root,
            name="chestxray",
            metadata=list(METADATA),
            has_patients=True,
            notes=notes,
            synthetic=synthetic,
            strata=Strata(raw_labels == 1),
            annotations=annotations,
        ).check()
        return table if self.target == "class" else self._boxed(table, boxes_of_path, raw_labels)

    def _boxed(self, table: SampleTable, boxes_of_path: dict[str, list[Box]], raw_labels: np.ndarray) -> SampleTable:
        """The table with boxes for its target; `raw_labels` (N, 15) are all labels, No Finding last."""
        if BOXES not in table.annotations:
            raise FinetuneError(f"data.target=boxes needs {LISTING} in data.root={self.root}; get it at {WHERE}.")
        learned = [name for name in table.classes if table.synthetic or name in BOXED]
        names = np.array([*FINDINGS, NO_FINDING], dtype=object)
        labels = [set(names[row > 0]) & {*learned, NO_FINDING} for row in raw_labels]
        listed = [[box for box in boxes_of_path.get(path, []) if box[0] in learned] for path in table.paths]
        known = known_boxes(listed, labels, table.synthetic)
        boxes, faults = BoxList(), Faults(self.on_bad)
        for row, of_row in enumerate(known):
            for label, left, top, width, height in of_row or ():
                boxes.add(row, label, (left, top, left + width, top + height), f"{LISTING}, {table.paths[row]}")
        sizes, shown = np.full((len(table), 2), np.nan), sorted(set(boxes.images))
        sizes[shown] = header_sizes(table.root, [table.paths[row] for row in shown])
        entries = [None if known[row] is None else entry for row, entry in enumerate(boxes.per_image(sizes, faults))]
        part = sum(bool(of_row) and known[row] is None for row, of_row in enumerate(listed))
        notes = [*table.notes, *faults.settle()]
        if part:
            notes.append(
                f"{part:,} images have boxes of only some of their findings and are not known; data.findings=[NAME] "
                "asks for boxes of fewer findings, of which more images have all."
            )
        return with_boxes(replace(table, notes=notes), entries)

    def _listing(self, root: Path) -> Path:
        for name in TABLES:
            if (root / name).is_file():
                return root / name
        what = f"has no {TABLES[1]} or {TABLES[0]}" if root.is_dir() else "is not a folder"
        raise FinetuneError(
            f"data.root={self.root} {what} (looked in {root.absolute()}).\n"
            f"Get NIH ChestX-ray14 at {WHERE} and set data.root=DIR; data=folder and data=csv take your own images."
        )

    def _official(self, root: Path, names: pd.Series) -> tuple[pd.Series | None, list[str]]:
        has_list = {split: (root / name).is_file() for split, name in LISTS.items()}
        if self.official_split and not all(has_list.values()):
            lacking = shorten(LISTS[split] for split in LISTS if not has_list[split])
            raise FinetuneError(f"official_split=true needs {lacking} in {root}; get it at {WHERE} or leave it out.")
        if self.official_split is False or not all(has_list.values()):
            note = f"Only one of {' and '.join(LISTS.values())} is in {root}: the official split is not used."
            return None, [note] if any(has_list.values()) and self.official_split is None else []
        stems = {s: {Path(line).stem for line in (root / n).read_text().split()} for s, n in LISTS.items()}
        if in_both := sorted(stems["train"] & stems["test"]):
            raise FinetuneError(f"{len(in_both):,} images are in both lists of {root}: {shorten(in_both)}.")
        split_of = dict.fromkeys(stems["train"], "train") | dict.fromkeys(stems["test"], "test")
        return names.map(lambda name: split_of.get(name.rpartition(".")[0])), [
            "The official test list is the test split."
        ]


def _find_images(root: Path) -> dict[str, str]:
    """Stem -> path relative to root, for every image in the folders that the archives unpack to."""
    parts = sorted(name for name in list_files(root) if re.fullmatch(r"images_?\d+", name))
    return by_stem(root, ("images", *(f"{part}/images" for part in parts), *parts, "."))


def _targets(labels: pd.Series, findings: list[str], listing: Path) -> np.ndarray:  # -> (N, K) of 1 and 0
    codes, texts = pd.factorize(labels)  # 836 combinations in 112,120 rows
    table = np.zeros((len(texts), len(findings)))
    for i, text in enumerate(texts):
        names = {name.strip() for name in text.split("|")}
        if unknown := sorted(names - {*FINDINGS, NO_FINDING}):
            line = labels.index[np.flatnonzero(codes == i)[0]] + 2
            raise FinetuneError(f"{listing}, line {line}: Finding Labels {text!r} holds unknown {shorten(unknown)}.")
        table[i] = [name in names for name in findings]
    return table[codes]


def _years(ages: pd.Series) -> tuple[pd.Series, int]:
    """058Y, 011M, 003D or 58 as years; NaN and counted where impossible."""
    parts = ages.str.strip().str.extract(r"^(\d+)([YMD]?)$")
    years = pd.to_numeric(parts[0]) / parts[1].map({"M": 12, "D": 365.25}).fillna(1.0)
    possible = years.between(0, OLDEST)
    return years.where(possible).round(2).astype(float), int((~possible).sum())
