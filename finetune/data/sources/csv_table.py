"""Any CSV or TSV file with a row per image: data=csv data.table=FILE data.label=COLUMN."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from finetune.data.labels import Policies, policies, read_marks, settle
from finetune.data.sources.listing import absent_note, need_columns, present, read_rows
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError

SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}
NO_FINDING = "no finding"
UNSAID: tuple[Policies, ...] = ("ignore", {"default": "ignore"}, {})  # policies that change nothing


@dataclass
class CsvTable:
    """Source for a table of your own.

    `label` decides what is learned. A list names columns of 1, 0, blank (unknown), -1 (uncertain) or values between:
    each is a finding by itself. A single column names each image's class; where any of its cells holds `a|b` the
    column lists findings instead, and blank or `No Finding` means none of them.
    """

    file: str | Path | None = None
    """The CSV or TSV file, in UTF-8, with a header (data.table)."""
    label: str | list[str] | None = None
    """Column with the class, or list of 0/1 columns."""
    patient: str | None = None
    """Column that says whose image it is; images of one patient never straddle splits."""
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
    """What parts several findings in one cell; null takes cells as they are."""
    suffix: str = ""
    """Added to every path, e.g. .jpg where the table names images without it."""
    metadata: list[str] = field(default_factory=list)
    """Further columns to keep for subgroups and for the predictions."""

    def __post_init__(self) -> None:
        for value, setting in ((self.file, "data.table=FILE"), (self.label, "data.label=COLUMN")):
            if not value:
                raise FinetuneError(f"data=csv needs {setting}.")
        for setting, given in (("data.uncertain", self.uncertain), ("data.missing", self.missing)):
            policies(setting, given, None if isinstance(self.label, str) else list(self.label or []))
            if isinstance(self.label, str) and given not in UNSAID:
                raise FinetuneError(
                    f"{setting}={given} speaks of 0/1 columns, data.label={self.label} is one column of names. "
                    f"data.label=[{self.label}] reads it as a 0/1 column."
                )
        self.metadata = [self.metadata] if isinstance(self.metadata, str) else list(self.metadata or [])

    def table(self) -> SampleTable:
        """One row per image that is present."""
        file = Path(str(self.file))
        rows = read_rows(file)
        root = Path(self.root) if self.root else file.parent
        columns = [self.label] if isinstance(self.label, str) else list(self.label or [])
        wanted = {"data.path": self.path, "data.patient": self.patient, "data.split": self.split}
        for setting, names in (*((s, [c]) for s, c in wanted.items() if c), ("data.label", columns)):
            for name in names:
                need_columns(rows, {setting: name}, file)
        for name in self.metadata:
            need_columns(rows, {"data.metadata": name}, file)
        paths = self._paths(rows[self.path], root)
        there = np.array(present(root, paths))
        if not there.any():
            raise FinetuneError(
                f"none of the {len(rows):,} images of {file} is under {root.absolute()}, e.g. {paths[0]}. "
                "Set data.root=DIR to the folder that the paths start from, data.suffix=.jpg if they lack one."
            )
        notes = absent_note(int(there.sum()), len(rows), root)
        if self.patient is None:
            notes.append("No patient column: every image counts as its own patient (data.patient=COLUMN).")
        rows = rows[there]
        frame = pd.DataFrame({"path": np.array(paths, dtype=object)[there]}, index=rows.index)
        frame["patient"] = frame["path"] if self.patient is None else self._patients(rows[self.patient], file)
        frame["split"] = self._splits(rows[self.split], file) if self.split else None
        frame["split"] = frame["split"].astype(object)
        if isinstance(self.label, str):
            kind, classes, targets, said = self._one_column(rows[self.label])
            notes += said
        else:
            kind, classes = "multilabel", columns
            alone = "A column of class names goes alone: data.label={}."
            marks = np.stack([read_marks(rows[c], file, alone.format(c)) for c in columns], axis=1)
            targets = settle(marks, list(frame["path"]), columns, self.uncertain, self.missing)
        frame = pd.concat(
            [frame, pd.DataFrame(targets, columns=[f"target_{c}" for c in classes], index=frame.index)], axis=1
        )
        for name in self.metadata:
            if name in frame.columns and name not in ("path", "patient", "split"):
                raise FinetuneError(f"data.metadata={name} has the name of a target column; rename it in {file}.")
            frame[name if name not in frame.columns else f"{name}_"] = _numbers_or_text(rows[name])
        return SampleTable(
            frame=frame.reset_index(drop=True),
            classes=classes,
            kind=kind,
            root=root,
            name=file.stem,
            metadata=[name if name not in ("path", "patient", "split") else f"{name}_" for name in self.metadata],
            has_patients=self.patient is not None,
            notes=notes,
        ).check()

    def _paths(self, column: pd.Series, root: Path) -> list[str]:
        prefixes = {folder.as_posix().rstrip("/") + "/" for folder in (root.absolute(), root.resolve())}
        paths = []
        for line, cell in enumerate(column, start=2):
            path = cell.strip().replace("\\", "/")
            if not path:
                raise FinetuneError(f"{self.file}, line {line}: column {self.path} is blank.")
            path = next((path.removeprefix(p) for p in prefixes if path.startswith(p)), path) + self.suffix
            paths.append(str(PurePosixPath(path)) if "./" in path or "//" in path else path)
        return paths

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

    def _one_column(self, column: pd.Series) -> tuple[str, list[str], np.ndarray, list[str]]:
        codes, texts = pd.factorize(column.str.strip())
        cells = [[text] for text in texts]
        several = self.separator is not None and any(self.separator in text for text in texts)
        if several:
            cells = [[name.strip() for name in text.split(self.separator)] for text in texts]
        none = ("", NO_FINDING) if several else ("",)
        names = {name for cell in cells for name in cell if name.lower() not in none}
        classes = sorted(names, key=_natural) if all(_is_int(name) for name in names) else sorted(names)
        if not classes:
            raise FinetuneError(f"{self.file}: data.label={self.label} is blank in every row.")
        rows = np.array([[float(name in cell) for name in classes] for cell in cells])
        if several:
            return "multilabel", classes, rows[codes], []
        notes = []
        if "" in texts:
            blank = list(texts).index("")
            rows[blank] = np.nan
            notes.append(f"{int((codes == blank).sum()):,} row(s) have a blank {self.label}: their class is unknown.")
        if set(classes) == {"0", "1"}:
            notes.append(
                f"{self.label} holds 0 and 1 and is read as two classes; data.label=[{self.label}] reads one finding."
            )
        return "multiclass", classes, rows[codes], notes


def _natural(name: str) -> tuple[int, str]:
    return int(name), name


def _is_int(name: str) -> bool:
    return name.isascii() and name.removeprefix("-").isdigit()


def _numbers_or_text(column: pd.Series) -> pd.Series:
    """A column of numbers as numbers (blank is NaN), any other as it stands."""
    text = column.str.strip()
    numbers = pd.to_numeric(text.where(text != ""), errors="coerce")
    return numbers.astype(float) if (numbers.isna() == (text == "")).all() else text.astype(object)
