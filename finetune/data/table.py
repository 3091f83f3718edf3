"""The sample table: one row per image. Every source produces it, and all steps before the model read it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from finetune.data.annotations import Annotations, Boxes, MaskFile, Regions, joined_content
from finetune.data.targets import (
    ANNOTATED,
    COLUMNS,
    NO_CLASSES,
    OTHER_TYPES,
    TYPE_OF_KIND,
    annotation_strata,
    column_strata,
    wrong_values,
)
from finetune.errors import FinetuneError, one_of

KINDS = ("multilabel", "multiclass")
SPLITS = ("train", "val", "test")
RESERVED = ("path", "patient", "split")


@dataclass(frozen=True)
class Strata:
    """Labels and groups for drawing splits. They do not depend on the learned classes, so no patient changes split."""

    labels: np.ndarray
    """(N, L) bool: all labels of the data set that splits are balanced over."""
    sets: np.ndarray | None = None
    """(N,) name of the data set that each image is from, where each set is split separately; None for a single set."""
    patients: np.ndarray | None = None
    """(N,) each patient's id in its original set, where the table's differs."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class SampleTable:
    """What is known about every image before any is decoded. `check()` validates it."""

    frame: pd.DataFrame
    """One row per image, RangeIndex: path, patient, split, target_<class>..., then the metadata columns.

    `path` is relative to root and written with /; FILE.npz::KEY/INDEX is an image in a container. `patient` equals
    path where unknown. `split` is train, val, test or None. A target is 1, 0, NaN (unknown) or a soft value between."""
    classes: list[str]
    """Names of the classes, in the order of the network's outputs."""
    kind: str
    """multilabel (independent classes), multiclass (exactly one per image), or none for a table without classes."""
    root: Path
    """Every path lies under it. A symbolic link under root may lead elsewhere: data often live on another disk."""
    name: str
    """Name of the data set."""
    metadata: list[str] = field(default_factory=list)
    """Names of the metadata columns."""
    has_patients: bool = False
    """False: no patient is known and every image counts as its own."""
    notes: list[str] = field(default_factory=list)
    """Sentences of the source for the user."""
    synthetic: bool = False
    """Synthetic images: every report says so."""
    generated_splits: tuple[str, ...] = ()
    """Splits that were generated here, not given by the data set: their rows may still be moved."""
    strata: Strata | None = None
    """Labels for drawing splits; None where these are the targets."""
    annotations: dict[str, Annotations] = field(default_factory=dict)
    """Name -> boxes or masks, one entry per row, None where unknown: see data/annotations.py."""
    other_targets: dict[str, str] = field(default_factory=dict)
    """Targets that are no classes: name -> number or grade (a column target_<name>), mask or boxes (an annotation of
    that name): see data/targets.py."""
    regions: Regions | None = None
    """What the pixels of a target of type mask mean; None without such a target."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def target_columns(self) -> list[str]:
        """Columns of the targets: the classes in their order, then numbers and grades."""
        return [f"target_{name}" for name, target_type in self.target_types.items() if target_type not in ANNOTATED]

    @property
    def target_types(self) -> dict[str, str]:
        """Name -> type of every target, the classes first: see data/targets.py."""
        return {**{name: TYPE_OF_KIND.get(self.kind, self.kind) for name in self.classes}, **self.other_targets}

    @property
    def paths(self) -> list[str]:
        """Paths relative to root, one per row."""
        return list(self.frame["path"])

    def file(self, row: int) -> Path:
        """Path of the image of a row."""
        return self.root / self.frame["path"].iloc[row]

    def split_strata(self) -> Strata:
        """Labels for drawing splits: `strata`, or the classes; and the other targets, by value, quantile or label."""
        strata = self.strata or Strata(np.nan_to_num(self.targets()[:, : len(self.classes)]) >= 0.5)
        if not self.other_targets:
            return strata
        other_strata = [
            annotation_strata(self.annotations[name])
            if target_type in ANNOTATED
            else column_strata(self.frame[f"target_{name}"].to_numpy(np.float64), target_type)
            for name, target_type in self.other_targets.items()
        ]
        return replace(strata, labels=np.concatenate([strata.labels, *other_strata], axis=1))

    def targets(self) -> np.ndarray:
        """(N, K) float32 of `target_columns`, with NaN where unknown."""
        return self.frame[self.target_columns].to_numpy(np.float32)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, ascending."""
        return np.flatnonzero(self.frame["split"].to_numpy(object) == split)

    def with_split(self, split: Iterable[str | None], notes: Iterable[str] = ()) -> SampleTable:
        """The same table with another split column, and notes on its origin."""
        frame = self.frame.assign(split=pd.Series(list(split), index=self.frame.index, dtype=object))
        return replace(self, frame=frame, notes=[*self.notes, *notes])

    def hash(self) -> str:
        """sha256 of everything but root and notes: the same table has the same hash on every machine."""
        digest = hashlib.sha256(f"table 1\x1e{self.name}\x1e{self.kind}\x1e{self.has_patients}\x1e".encode())
        digest.update("\x1f".join(self.classes).encode())
        for column in [*RESERVED, *self.target_columns, *self.metadata]:
            values = self.frame[column]
            digest.update(f"\x1e{column}\x1e".encode())
            if pd.api.types.is_numeric_dtype(values.dtype):
                numbers = values.to_numpy(np.float64, na_value=np.nan)
                digest.update((np.where(np.isnan(numbers), np.nan, numbers) + 0.0).astype("<f8").tobytes())
            else:  # a missing value differs from an empty one
                digest.update("\x1f".join("\x00" if missing(v) else str(v) for v in values).encode())
        for name, target_type in self.other_targets.items():
            digest.update(f"\x1etarget\x1e{name}\x1e{target_type}".encode())
        for name, entries in self.annotations.items():
            digest.update(f"\x1e{name}\x1e".encode())
            digest.update(joined_content(entries).encode())
        if self.regions is not None:
            digest.update(f"\x1eregions\x1e{self.regions.content()}".encode())
        return digest.hexdigest()

    def check(self) -> SampleTable:
        """The table itself, or a FinetuneError that names the table, the column and the first rows at fault."""
        self._check_classes()
        if unknown := [c for c in [*RESERVED, *self.target_columns, *self.metadata] if c not in self.frame.columns]:
            raise FinetuneError(
                f"table {self.name}: column(s) {unknown} are missing; it has {list(self.frame.columns)}."
            )
        if self.frame.empty:
            raise FinetuneError(f"table {self.name} has no images (root: {self.root}).")
        if not (isinstance(self.frame.index, pd.RangeIndex) and self.frame.index.start == 0):
            raise FinetuneError(f"table {self.name}: rows must be numbered 0, 1, 2, ...; use reset_index(drop=True).")
        paths, splits = self.frame["path"].to_numpy(object), self.frame["split"].to_numpy(object)
        self._refuse("path", np.array([not isinstance(p, str) or not p for p in paths]), "is empty")
        self._refuse("path", np.array([_leaves(p) for p in paths]), f"must stay under data.root={self.root}")
        self._refuse("path", self.frame["path"].duplicated().to_numpy(), "is listed twice")
        patients = self.frame["patient"].to_numpy(object)
        self._refuse("patient", np.array([not isinstance(p, str) or not p for p in patients]), "is empty")
        wrong = np.array([not missing(s) and s not in SPLITS for s in splits])
        self._refuse("split", wrong, f"must be one of {', '.join(SPLITS)}, or empty throughout")
        if self.strata is not None and len(self.strata) != len(self):
            raise FinetuneError(f"table {self.name} has {len(self):,} rows, but strata of {len(self.strata):,}.")
        for name, entries in self.annotations.items():
            self._check_annotations(name, entries)
        self._check_targets()
        return self

    def _check_classes(self) -> None:
        self._check_other_targets()
        if not self.classes and self.other_targets and self.kind == NO_CLASSES:
            return
        if self.kind not in KINDS:
            raise FinetuneError(f"table {self.name}: kind={self.kind!r}, choose from {', '.join(KINDS)}.")
        wrong = [c for c in self.classes if not isinstance(c, str) or not c.strip()]
        if wrong or not self.classes or len(set(self.classes)) < len(self.classes):
            raise FinetuneError(f"table {self.name}: classes must be distinct names, at least one, not {self.classes}.")
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise FinetuneError(
                f"table {self.name} has the one class {self.classes[0]!r}; one of several classes needs at least two."
            )

    def _check_other_targets(self) -> None:
        for name, target_type in self.other_targets.items():
            if not isinstance(name, str) or not name.strip() or name in self.classes:
                raise FinetuneError(f"table {self.name}: target {name!r} must have a unique name.")
            if target_type not in OTHER_TYPES:
                raise one_of(f"table {self.name}: the type of target {name}", target_type, OTHER_TYPES)
            if target_type in ANNOTATED and not any(
                isinstance(entry, ANNOTATED[target_type]) for entry in self.annotations.get(name, ())
            ):
                raise FinetuneError(
                    f"table {self.name}: target {name} is of type {target_type}, but the annotation {name} holds none; "
                    f"there are {list(self.annotations) or 'no annotations'}."
                )
        for target_type in ANNOTATED:
            several = [name for name, other_type in self.other_targets.items() if other_type == target_type]
            if len(several) > 1:
                raise FinetuneError(
                    f"table {self.name}: {several} are all of type {target_type}; it takes one of them."
                )
        if ("mask" in self.other_targets.values()) != (self.regions is not None):
            raise FinetuneError(
                f"table {self.name}: a target of type mask and regions=Regions([...]), the names of its values, go "
                f"together; the targets are {self.other_targets}, regions={self.regions}."
            )

    def _check_targets(self) -> None:
        for name, target_type in self.target_types.items():
            if target_type in ANNOTATED:
                continue
            column = f"target_{name}"
            if not pd.api.types.is_float_dtype(self.frame[column].dtype):
                raise FinetuneError(
                    f"table {self.name}: column {column} must be float, not {self.frame[column].dtype}."
                )
            values = self.frame[column].to_numpy()
            if target_type in COLUMNS:
                self._refuse(column, *wrong_values(values, target_type))
                continue
            with np.errstate(invalid="ignore"):
                self._refuse(column, (values < 0) | (values > 1), "must be 1, 0, NaN (unknown) or between 0 and 1")
        if self.kind == "multiclass":
            targets = self.frame[[f"target_{name}" for name in self.classes]].to_numpy(np.float64)
            unknown = np.isnan(targets)
            odd = unknown.any(axis=1) & ~unknown.all(axis=1)
            odd |= ~unknown.any(axis=1) & (np.abs(np.nansum(targets, axis=1) - 1) > 1e-3)
            self._refuse("target_*", odd, "must sum to 1 over the classes, or be unknown for all of them")

    def _check_annotations(self, name: str, entries: Annotations) -> None:
        if len(entries) != len(self):
            raise FinetuneError(
                f"table {self.name} has {len(self):,} rows, but {len(entries):,} entries in the annotation {name}."
            )
        types = {type(entry) for entry in entries if entry is not None}
        if not types <= {Boxes} and not types <= {MaskFile}:
            names = sorted(entry_type.__name__ for entry_type in types)
            raise FinetuneError(
                f"table {self.name}: the annotation {name} holds {names}; it takes Boxes or MaskFile (one of the two) "
                "or None."
            )
        if types == {MaskFile}:
            masks = [entry if isinstance(entry, MaskFile) else None for entry in entries]
            outside = [mask is not None and any(not path or _leaves(path) for path in mask.paths) for mask in masks]
            self._refuse(name, np.array(outside), f"must hold paths of masks under data.root={self.root}")
            if self.regions is not None and self.other_targets.get(name) == "mask":
                first, last = int(not self.regions.overlapping), len(self.regions) - 1
                beyond = [
                    mask is not None and any(not first <= n <= last for n, _ in mask.layers or ()) for mask in masks
                ]
                self._refuse(name, np.array(beyond), f"must have layers of the regions {first} to {last}")

    def _refuse(self, column: str, wrong: np.ndarray, reason: str) -> None:
        rows = np.flatnonzero(wrong)
        if len(rows) == 0:
            return
        examples = "; ".join(
            f"row {row}" + (f": {self.frame[column].iloc[row]!r}" if column in self.frame else "") for row in rows[:3]
        )
        raise FinetuneError(f"table {self.name}: {column} {reason}; {len(rows):,} row(s) differ, first {examples}.")


def missing(value: object) -> bool:
    """None, NaN or pandas' NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _leaves(path: str) -> bool:
    """Whether a path is absolute, climbs with .. or is written with backslashes."""
    if "\\" not in path and ".." not in path and path[0] != "/" and path[1:2] != ":":
        return False  # nearly all of them; PurePath would take a second per 100,000
    drive = len(path) > 1 and path[1] == ":"
    return "\\" in path or drive or path[0] == "/" or ".." in PurePosixPath(path).parts
