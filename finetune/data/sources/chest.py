"""Shared by the sources of chest X-rays: raw labels by finding, views, sex, and assembling the sample table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.annotations import Annotations
from finetune.data.findings import canonical
from finetune.data.labels import read_raw_labels
from finetune.data.sources.listing import absent_note, need_columns, present
from finetune.data.table import SampleTable, Strata
from finetune.errors import FinetuneError, one_of

VIEWS = ("frontal", "lateral", "all")


def check_views(views: str) -> None:
    """Refuse an unknown view."""
    if views not in VIEWS:
        raise one_of("data.views", views, VIEWS)


def select_views(view: pd.Series, views: str) -> tuple[np.ndarray, list[str]]:
    """Which rows show the requested view, and a sentence on the others."""
    in_view = np.ones(len(view), bool) if views == "all" else (view == views).to_numpy(copy=True)
    if not in_view.any():
        raise FinetuneError(f"data.views={views}: none of the {len(view):,} listed images is one. Try data.views=all.")
    left = int((~in_view).sum())
    return in_view, [f"{left:,} images are no {views} views and are left out (data.views={views})."] if left else []


def filter_present(root: Path, paths: Sequence[str], listing: Path, hint: str) -> tuple[np.ndarray, list[str]]:
    """Which of the listed images are present, and a sentence on the others; if all are absent, an error with `hint`."""
    is_present = np.array(present(root, paths), dtype=bool)
    if not is_present.any():
        raise FinetuneError(
            f"data.root={root}: none of the {len(paths):,} images of {listing.name} is there, e.g. {paths[0]}. {hint}"
        )
    return is_present, absent_note(int(is_present.sum()), len(paths), root)


def read_finding_columns(rows: pd.DataFrame, findings: Sequence[str], file: Path) -> np.ndarray:  # -> (N, K)
    """The columns of the findings as raw labels, also under a synonym."""
    column = {canonical(str(name)): str(name) for name in rows.columns}
    for finding in findings:
        need_columns(rows, {"data.findings": column.get(finding, finding)}, file)
    return np.stack([read_raw_labels(rows[column[finding]], file) for finding in findings], axis=1)


def positive_findings(rows: pd.DataFrame, findings: Sequence[str], file: Path) -> np.ndarray:  # -> (N, L) bool
    """Which findings are positive in the table; without a column, none. Splits are balanced over it."""
    has = {canonical(str(name)) for name in rows.columns}
    blank = np.zeros(len(rows), bool)
    return np.stack([read_finding_columns(rows, [f], file)[:, 0] == 1 if f in has else blank for f in findings], axis=1)


def text(column: pd.Series) -> pd.Series:
    """Cells without surrounding blanks."""
    return column.str.strip().astype(object)


def sex(column: pd.Series) -> pd.Series:
    """M, F, or "" for anything else (unknown, other)."""
    return column.str.strip().str.upper().str[:1].where(lambda first: first.isin(["M", "F"]), "").astype(object)


def sample_table(
    frame: pd.DataFrame,
    targets: np.ndarray,
    findings: list[str],
    *,
    root: Path,
    name: str,
    notes: list[str],
    has_patients: bool = True,
    strata: np.ndarray | None = None,
    annotations: dict[str, Annotations] | None = None,
) -> SampleTable:
    """The table of a multilabel set: `frame` holds path, patient, split and, after them, the metadata. `strata` (N, L):
    which of all its findings are positive."""
    columns = pd.DataFrame(targets, columns=[f"target_{finding}" for finding in findings], dtype=np.float64)
    return SampleTable(
        frame=pd.concat([frame.reset_index(drop=True), columns], axis=1),
        classes=findings,
        kind="multilabel",
        root=root,
        name=name,
        metadata=[str(column) for column in frame.columns if column not in ("path", "patient", "split")],
        has_patients=has_patients,
        notes=notes,
        strata=None if strata is None else Strata(strata),
        annotations=annotations or {},
    ).check()
