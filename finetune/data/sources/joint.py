"""Several data sets as one: data=joint data.sources.chestxray=DIR data.sources.chexpert=DIR.

What a set does not label is unknown there, not negative.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.annotations import Annotations, MaskFile
from finetune.data.findings import canonical, select_findings
from finetune.data.sources.listing import shorten
from finetune.data.splits import assign_splits
from finetune.data.table import SampleTable, Strata
from finetune.errors import FinetuneError

EXAMPLE = "data.sources.chestxray=DIR data.sources.chexpert=DIR, or data.sources=[chestxray,chexpert]"


@dataclass
class Joint:
    """Source that joins the sample tables of other sources; the metadata column `source` names each image's source.

    The table's root is their common parent folder.
    """

    sources: dict[str, Any] | None = None
    """Name -> source. On the command line a name of conf/data and its root, or {data: NAME, root: DIR, ...}."""
    findings: list[str] | None = None
    """Findings to learn, by default all that any of the sources labels."""
    own_split: bool | None = None
    """Keep the sources' own splits: true, false (draw them), or null for when each gives one."""
    shared_patients: bool = False
    """A patient's id means the same person in all sources (RSNA and NIH); else ids are prefixed with the source."""
    seed: int = 0
    """Seed for taking val or test from a source's train split where it has none."""
    val_fraction: float = 0.1
    """Fraction of the images for validation, where it is drawn."""
    test_fraction: float = 0.2
    """Fraction of the images for the test, where it is drawn."""
    root: str | None = None
    """Stays null: each source has its own."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise FinetuneError(f"data=joint needs data.sources, e.g. {EXAMPLE}.")
        if self.root is not None:
            raise FinetuneError(f"data.root={self.root}: data=joint takes none. Each source has its own: {EXAMPLE}.")

    def table(self) -> SampleTable:
        """The rows of all sources, one after the other."""
        tables = {name: self._read(name, source) for name, source in (self.sources or {}).items()}
        if unjoinable := {name: types for name, table in tables.items() if (types := table.other_targets)}:
            raise FinetuneError(
                f"data.sources.{next(iter(unjoinable))} cannot be joined: only classes and findings can."
            )
        kinds = {name: table.kind for name, table in tables.items()}
        kind = next(iter(kinds.values()))
        if len(set(kinds.values())) > 1:
            kind_list = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
            raise FinetuneError(f"data.sources cannot be joined, their labels are of different kinds: {kind_list}.")
        if kind == "multilabel":
            tables = {name: _in_shared_names(name, table) for name, table in tables.items()}
        union = list(dict.fromkeys(label for table in tables.values() for label in table.classes))
        if self.findings is not None and kind == "multiclass":
            raise FinetuneError(f"data.findings={self.findings}: the sources have classes that exclude one another.")
        findings = select_findings(self.findings, union)
        tables, notes = self._split(tables)
        root = Path(os.path.commonpath([os.path.abspath(table.root) for table in tables.values()]))
        extra = [_metadata_name(column) for table in tables.values() for column in table.metadata]
        metadata = list(dict.fromkeys(["source", *extra]))
        frames = [self._frame(name, table, findings, root) for name, table in tables.items()]
        frame = pd.concat(frames, ignore_index=True)
        frame = frame[["path", "patient", "split", *(f"target_{name}" for name in findings), *metadata]]
        return SampleTable(
            frame=frame,
            classes=findings,
            kind=kind,
            root=root,
            name="+".join(tables),
            metadata=metadata,
            has_patients=any(table.has_patients for table in tables.values()),
            notes=[f"{name}: {note}" for name, table in tables.items() for note in table.notes] + notes,
            synthetic=any(table.synthetic for table in tables.values()),
            strata=self._strata(tables),
            annotations=_annotations(tables, root),
        ).check()

    def _strata(self, tables: dict[str, SampleTable]) -> Strata:
        """Each set is split as it would be alone, unless patients are shared between sets."""
        strata_list = [table.split_strata() for table in tables.values()]
        labels = np.zeros((sum(map(len, strata_list)), sum(strata.labels.shape[1] for strata in strata_list)), bool)
        row = column = 0
        for strata in strata_list:
            height, width = strata.labels.shape
            labels[row : row + height, column : column + width] = strata.labels
            row, column = row + height, column + width
        if self.shared_patients:
            return Strata(labels)
        patients = np.concatenate([table.frame["patient"].to_numpy(object) for table in tables.values()])
        return Strata(labels, np.repeat(np.array(list(tables), object), list(map(len, strata_list))), patients)

    def _read(self, name: str, source: Any) -> SampleTable:
        try:
            return source.table().check()
        except FinetuneError as error:
            raise FinetuneError(f"data.sources.{name}: {error}") from None

    def _split(self, tables: dict[str, SampleTable]) -> tuple[dict[str, SampleTable], list[str]]:
        """Every source's split, completed per source, or none at all."""
        gives = {name for name, table in tables.items() if table.frame["split"].notna().any()}
        without = [name for name in tables if name not in gives]
        if self.own_split and without:
            raise FinetuneError(
                f"data.own_split=true: {shorten(without)} give(s) no split. Leave it out or set it false."
            )
        if without or self.own_split is False:
            why = f"{shorten(without)} give(s) none" if without and self.own_split is None else "data.own_split=false"
            notes = [f"The split of {shorten(sorted(gives))} is not used: {why}."] if gives else []
            return {name: table.with_split([None] * len(table)) for name, table in tables.items()}, notes
        split_tables = {}
        for name, table in tables.items():
            try:
                split_tables[name] = assign_splits(
                    table, seed=self.seed, val=self.val_fraction, test=self.test_fraction
                )
            except FinetuneError as error:
                raise FinetuneError(f"data.sources.{name}: {error}") from None
        return split_tables, []

    def _frame(self, name: str, table: SampleTable, findings: list[str], root: Path) -> pd.DataFrame:
        if not set(findings) & set(table.classes):
            raise FinetuneError(f"data.sources.{name} labels none of {shorten(findings, 20)}: leave it out.")
        prefix = os.path.relpath(os.path.abspath(table.root), root).replace(os.sep, "/")
        paths = table.frame["path"] if prefix == "." else prefix + "/" + table.frame["path"]
        who = table.frame["patient"] if self.shared_patients else name + ":" + table.frame["patient"]
        frame = pd.DataFrame({"path": paths, "split": table.frame["split"], "source": name}, dtype=object)
        frame["patient"] = who if table.has_patients else paths
        unlabelled = np.full(len(table), np.nan)
        if table.kind == "multiclass":  # an image of one class is none of the others
            unlabelled = np.where(np.isnan(table.targets()).any(axis=1), np.nan, 0.0)
        for finding in findings:
            column = f"target_{finding}"
            frame[column] = table.frame[column] if finding in table.classes else unlabelled
        for column in table.metadata:
            frame[_metadata_name(column)] = table.frame[column]
        return frame


def _annotations(tables: Mapping[str, SampleTable], root: Path) -> dict[str, Annotations]:
    """Those of all sources; images of a source without that annotation have None."""
    names = list(dict.fromkeys(name for table in tables.values() for name in table.annotations))
    return {name: [entry for table in tables.values() for entry in _entries(table, name, root)] for name in names}


def _entries(table: SampleTable, name: str, root: Path) -> list[Any]:
    prefix = os.path.relpath(os.path.abspath(table.root), root).replace(os.sep, "/")
    entries = table.annotations.get(name) or [None] * len(table)
    return [entry.moved(prefix) if isinstance(entry, MaskFile) and prefix != "." else entry for entry in entries]


def _metadata_name(column: str) -> str:
    return "source_" if column == "source" else column


def _in_shared_names(name: str, table: SampleTable) -> SampleTable:
    """The table with its findings in the vocabulary's names."""
    shared_name = {label: canonical(label) for label in table.classes}
    if len(set(shared_name.values())) < len(shared_name):
        raise FinetuneError(f"data.sources.{name} has two classes of one meaning among {shorten(table.classes, 20)}.")
    columns = {f"target_{label}": f"target_{shared}" for label, shared in shared_name.items()}
    return replace(table, frame=table.frame.rename(columns=columns), classes=list(shared_name.values()))
