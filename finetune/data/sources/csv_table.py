"""Any CSV or TSV file with a row per image (of boxes, a row per box): data=csv data.table=FILE data.label=COLUMN."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from finetune.data.classes import check_classes, check_type, class_name, doubt, in_order, is_number
from finetune.data.labels import BLANK, WORDS, Policies, apply_policies, policies, read_raw_labels
from finetune.data.sources import csv_boxes
from finetune.data.sources.boxed import Faults, header_sizes, with_boxes
from finetune.data.sources.csv_masks import cell_masks
from finetune.data.sources.headers import contradictions, patients_by_header
from finetune.data.sources.listing import absent_note, below, need_columns, present, read_rows, shorten
from finetune.data.sources.masks import check_target, with_masks
from finetune.data.table import SampleTable, Strata
from finetune.data.targets import NO_CLASSES
from finetune.errors import FinetuneError

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}
NO_FINDING = "no finding"
MIN_STRATA_NAMES, MAX_STRATA_NAMES = 10, 200  # names in a column that splits are balanced over
NO_OP_POLICIES: tuple[Policies, ...] = ("ignore", {"default": "ignore"}, {})  # policies without effect


@dataclass
class CsvTable:
    """Source for the user's own table.

    `label` names what is learned. A list names columns of 1, 0, blank (unknown), -1 (uncertain) or values between:
    each is a separate finding. A single column names each image's class; where any of its cells holds `a|b` the
    column lists findings instead, and blank or `No Finding` means none of them.

    Without `patient`, patients come from DICOM headers. Splits are balanced over every column with few different
    cells, learned or not, so that another `label` moves no patient.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "mask", "boxes")
    """The values of `target` that these data have."""
    file: str | Path | None = None
    """The CSV or TSV file, in UTF-8, with a header (data.table)."""
    label: str | list[str] | None = None
    """Column with the class, or list of 0/1 columns."""
    patient: str | None = None
    """Column with the patient's id; all images of a patient are in one split."""
    split: str | None = None
    """Column with train, val or test; without it the splits are drawn."""
    path: str = "path"
    """Column with the image's path, relative to root."""
    root: str | Path | None = None
    """Folder that paths start from, by default the table's own."""
    uncertain: Policies = field(default_factory=lambda: {"default": "ignore"})
    """What -1 in a 0/1 column means: ignore (unknown), zero, one or {soft: [a, b]}; or finding -> one of these."""
    missing: Policies = field(default_factory=lambda: {"default": "ignore"})
    """What a blank in a 0/1 column means, likewise."""
    separator: str | None = "|"
    """Separator between findings in a cell; null keeps cells as they are."""
    suffix: str = ""
    """Added to every path, e.g. .jpg where the table names images without it."""
    metadata: str | list[str] | None = field(default_factory=list)
    """Further columns, or one, to keep for subgroups and for the predictions."""
    label_type: str | None = None
    """class reads any label column as class names; null stops if it looks like numbers or text."""
    target: str = "class"
    """class; mask; or boxes: then a row is a box, `label` the column of what is in it (by default the one called
    label), and rows of an image without a box leave the columns of `boxes` blank."""
    mask: str | list[str] | None = None
    """Column with each image's mask, or a list of columns, one for each region: see csv_masks.py."""
    regions: list[str] | dict[str, int | list[int]] | None = None
    """Names of the regions: of these columns, or of the values 0, 1, ... in the masks; or name -> value(s)."""
    overlapping: bool | None = None
    """Whether a pixel may be in several regions; None is true for a list of columns."""
    boxes: list[str] = field(default_factory=lambda: ["x", "y", "w", "h"])
    """Columns of a box in pixels: left, top, width and height, or left, top, right and bottom."""
    box_form: str | None = None
    """sides (x, y, w, h) or corners (x1, y1, x2, y2); null tells it by the columns' names."""
    on_bad: str = "stop"
    """What a box that makes no sense does: stop, or skip."""

    def __post_init__(self) -> None:
        check_target(self.target, self.targets)
        Faults(self.on_bad)  # refuses another word
        if self.target == "boxes":
            self.label = "label" if self.label is None else self.label
            self._form = csv_boxes.form_of(self.boxes, self.box_form)
            if not isinstance(self.label, str):
                raise FinetuneError(f"data.label={self.label} must be one column where data.target=boxes.")
        for value, setting in ((self.file, "data.table"), (self._learned, self._key)):
            if not value:
                hint = " data.mask is of data.target=mask." if self.mask else ""
                raise FinetuneError(f"data=csv needs {setting}={'FILE' if value is self.file else 'COLUMN'}.{hint}")
        if self.target == "mask" and self.label:
            raise FinetuneError(f"data.label={self.label} is of classes and boxes, not of data.target=mask.")
        for setting, setting_value in (("data.uncertain", self.uncertain), ("data.missing", self.missing)):
            policies(setting, setting_value, None if isinstance(self.label, str) else list(self.label or []))
            if isinstance(self.label, str) and setting_value not in NO_OP_POLICIES:
                raise FinetuneError(
                    f"{setting}={setting_value} is for 0/1 columns, data.label={self.label} is one column of names. "
                    f"data.label=[{self.label}] reads it as a 0/1 column."
                )
        check_type(self.label_type, self.label)
        if self.label_type and not isinstance(self.label, str):
            raise FinetuneError(
                f"data.label_type={self.label_type} is for one column, data.label={self.label} are findings."
            )
        self._metadata = [self.metadata] if isinstance(self.metadata, str) else list(self.metadata or [])

    def table(self) -> SampleTable:
        """One row per image that is present."""
        file = Path(str(self.file))
        rows = read_rows(file)
        root = Path(self.root) if self.root else file.parent
        columns = [self._learned] if isinstance(self._learned, str) else list(self._learned or [])
        boxed, faults = self.target == "boxes", Faults(self.on_bad)
        columns_of_settings = {"data.path": self.path, "data.patient": self.patient, "data.split": self.split}
        for setting, names in (*((s, [c]) for s, c in columns_of_settings.items() if c), (self._key, columns)):
            for name in names:
                need_columns(rows, {setting: name}, file)
        for name in self._metadata:
            need_columns(rows, {"data.metadata": name}, file)
        paths = self._paths(rows[self.path], root)
        is_present = np.array(present(root, paths))
        if not is_present.any():
            raise FinetuneError(
                f"none of the {len(rows):,} images of {file} is under {root.absolute()}, e.g. {paths[0]}. "
                "Set data.root=DIR to the folder that the paths start from, data.suffix=.jpg if they lack one."
            )
        rows, present_paths = rows[is_present], np.array(paths, dtype=object)[is_present]
        notes = absent_note(len(set(present_paths)), len(set(paths)), root)
        if boxed:
            same = [name for name in (self.patient, self.split, *self._metadata) if name]
            first, boxes = csv_boxes.per_image(
                rows, present_paths, self.boxes, columns[0], form=self._form, same=same, file=file, faults=faults
            )
            rows, present_paths = rows.iloc[first], present_paths[first]
        frame = pd.DataFrame({"path": present_paths}, index=rows.index)
        present_paths = list(present_paths)
        if self.patient is None:
            patients, patient_notes = patients_by_header(root, present_paths)
            if patients is None:
                notes.append("No patient column: every image counts as its own patient (data.patient=COLUMN).")
        else:
            patients = self._patients(rows[self.patient], file).tolist()
            patient_notes = contradictions(root, present_paths, patients, self.patient)
        notes += patient_notes
        frame["patient"] = pd.Series(patients or present_paths, index=rows.index, dtype=object)
        frame["split"] = self._splits(rows[self.split], file) if self.split else None
        frame["split"] = frame["split"].astype(object)
        if self.target != "class":
            kind, targets = NO_CLASSES, np.zeros((len(rows), 0))
            classes: list[str] = []
        elif isinstance(self.label, str):
            kind, classes, targets, patient_notes = self._read_class_column(rows[self.label])
            notes += patient_notes
        else:
            kind, classes = "multilabel", columns
            alone = "A column of class names goes alone: data.label={}."
            raw_labels = np.stack([read_raw_labels(rows[c], file, alone.format(c)) for c in columns], axis=1)
            targets = apply_policies(raw_labels, list(frame["path"]), columns, self.uncertain, self.missing)
        frame = pd.concat(
            [frame, pd.DataFrame(targets, columns=[f"target_{c}" for c in classes], index=frame.index)], axis=1
        )
        for name in self._metadata:
            if name in frame.columns and name not in ("path", "patient", "split"):
                raise FinetuneError(f"data.metadata={name} has the name of a target column; rename it in {file}.")
            frame[name if name not in frame.columns else f"{name}_"] = _numbers_or_text(rows[name])
        used = {self.path, self.patient, self.split, *columns, *self._metadata, *self._box_columns}
        if unused := [str(name) for name in rows.columns if name not in used]:
            notes.append(
                f"Columns not used: {shorten(unused, 12)} "
                f"(data.metadata=[{','.join(unused[:2])}] gives scores by them)."
            )
        table = SampleTable(
            frame=frame.reset_index(drop=True),
            classes=classes,
            kind=kind,
            root=root,
            name=file.stem,
            metadata=[name if name not in ("path", "patient", "split") else f"{name}_" for name in self._metadata],
            has_patients=patients is not None,
            notes=notes,
            strata=self._strata(rows, frame["patient"]),
        )
        if self.target == "class":
            return table.check()
        if self.target == "mask":
            masks, regions, mask_notes = cell_masks(rows, self._learned or [], self.regions, self.overlapping, root)
            return with_masks(replace(table, notes=[*notes, *mask_notes]), masks, regions)
        sizes, shown = np.full((len(table), 2), np.nan), sorted(set(boxes.images))
        sizes[shown] = header_sizes(root, [present_paths[row] for row in shown])
        entries = boxes.per_image(sizes, faults)
        return with_boxes(replace(table, notes=[*notes, *faults.settle()]), entries)

    @property
    def _key(self) -> str:
        """The setting of what is learned."""
        return "data.mask" if self.target == "mask" else "data.label"

    @property
    def _learned(self) -> str | list[str] | None:
        return self.mask if self.target == "mask" else self.label

    @property
    def _box_columns(self) -> list[str]:
        return [*self.boxes, str(self.label)] if self.target == "boxes" else []

    def _paths(self, column: pd.Series, root: Path) -> list[str]:
        blank = column.index[column.str.strip() == ""]
        if len(blank):
            raise FinetuneError(f"{self.file}, line {blank[0] + 2}: column {self.path} is blank.")
        return below(root, column, self.suffix)

    def _patients(self, column: pd.Series, file: Path) -> pd.Series:
        column = column.str.strip()
        blank = column.index[column == ""]
        if len(blank):
            raise FinetuneError(
                f"{file}: data.patient={self.patient} is blank in {len(blank):,} row(s), first line {blank[0] + 2}. "
                "Give each image a patient, or leave data.patient out."
            )
        return column.astype(object)

    def _splits(self, column: pd.Series, file: Path) -> pd.Series:
        splits = column.str.strip().str.lower().map(SPLIT_NAMES)
        wrong = splits.index[splits.isna()]
        if len(wrong):
            raise FinetuneError(
                f"{file}, line {wrong[0] + 2}: data.split={self.split} holds {column[wrong[0]]!r} ({len(wrong):,} such "
                "row(s)); every row needs train, val or test. Leave data.split out to have the splits drawn."
            )
        return splits

    def _read_class_column(self, column: pd.Series) -> tuple[str, list[str], np.ndarray, list[str]]:
        codes, texts = pd.factorize(column.str.strip())
        cells = [[class_name(text)] for text in texts]
        several = self.separator is not None and any(self.separator in text for text in texts)
        if several:
            cells = [[name.strip() for name in text.split(self.separator)] for text in texts]
        none = ("", NO_FINDING) if several else ("",)
        names = {name for cell in cells for name in cell if name.lower() not in none}
        if not names:
            raise FinetuneError(f"{self.file}: data.label={self.label} is blank in every row.")
        check_classes(str(self.label), names, len(column), self.label_type)
        classes = in_order(names)
        rows = np.array([[float(name in cell) for name in classes] for cell in cells])
        if several:
            return "multilabel", classes, rows[codes], []
        notes = []
        blank = np.array([cell == [""] for cell in cells])
        rows[blank] = np.nan
        if unknown := int(blank[codes].sum()):
            notes.append(f"{unknown:,} row(s) have a blank {self.label}: their class is unknown.")
        if decimal := next((text for text, (name,) in zip(texts, cells, strict=True) if name not in ("", text)), None):
            notes.append(f"{self.label} holds whole numbers with decimals: {decimal} is read as {class_name(decimal)}.")
        return "multiclass", classes, rows[codes], notes + self._class_notes(classes)

    def _class_notes(self, classes: list[str]) -> list[str]:
        """A note on classes that might be something else, or none."""
        if len(classes) == 2 and {name.lower() for name in classes} <= {"0", "1", *WORDS}:
            description = (
                f"{' and '.join(classes)} and is read as two classes; data.label=[{self.label}] reads one finding."
            )
        elif self.label_type is None and all(map(is_number, classes)):
            description = f"{len(classes)} whole numbers and is read as {len(classes)} classes, without an order."
        else:
            return []
        return [f"{self.label} holds {description}"]

    def _strata(self, rows: pd.DataFrame, patients: pd.Series) -> Strata:
        """What splits are balanced over: the values of every column with few different ones, each of several patients,
        alone or listed as a|b or a;b. Only the settings of paths and patients change it."""
        labels = [np.zeros((len(rows), 0), bool)]
        for column in rows.columns:
            if column in (self.path, self.patient, *self._box_columns):
                continue
            codes, texts = pd.factorize(rows[column].str.strip())
            cells = [{class_name(name) for name in re.split("[|;]", text)} for text in texts]
            names = {name for cell in cells for name in cell if name.lower() not in BLANK}
            pairs = pd.DataFrame({"cell": codes, "patient": patients.to_numpy()}).drop_duplicates()["cell"]
            n_patients = np.array([len(cell) for cell in cells])[
                pairs
            ].sum()  # number of patients, summed over the names
            several = n_patients >= (2 if len(names) <= MIN_STRATA_NAMES else 5) * len(names)
            if 1 < len(names) <= MAX_STRATA_NAMES and several and not doubt(names, len(rows)):
                labels.append(np.array([[name in cell for name in sorted(names)] for cell in cells])[codes])
        return Strata(np.concatenate(labels, axis=1))


def _numbers_or_text(column: pd.Series) -> pd.Series:
    """A column of numbers as floats (blank is NaN), any other unchanged."""
    text = column.str.strip()
    numbers = pd.to_numeric(text.where(text != ""), errors="coerce")
    return numbers.astype(float) if (numbers.isna() == (text == "")).all() else text.astype(object)
