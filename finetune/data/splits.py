"""Train, validation and test, drawn by patient and balanced over the classes, by `data.seed` alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from finetune.data.sources.listing import shorten
from finetune.data.table import SPLITS, SampleTable, missing
from finetune.errors import FinetuneError


def assign_splits(
    table: SampleTable,
    *,
    seed: int,
    val: float = 0.1,
    test: float = 0.2,
    folds: int | None = None,
    fold: int | None = None,
) -> SampleTable:
    """The table with every row's split filled in; no patient in two of the splits drawn here.

    Splits of the table are kept. `val` and `test` are fractions of the rows to be split: of all rows if the table has
    no split, of the train rows if it lacks only val or test. With `fold` the patients are divided into `folds` equal
    parts, part `fold` (from 0) is the test split, and val is taken from the rest.

    The draw depends only on the seed, the patients' ids and their labels in the data set (`table.strata`): not on the
    classes that are learned, nor on the order of the rows. Where rows are added, most patients keep their split.
    """
    _check(val, test, folds, fold)
    column = table.frame["split"].to_numpy(object)
    has_split = np.array([not missing(s) for s in column])
    if not has_split.any():
        return _draw_all(table, seed, val, test, folds, fold)
    if fold is not None:
        raise FinetuneError(
            f"data.fold={fold}: table {table.name} gives its own split. Leave data.fold out, or the split "
            "(data.split=null, data.official_split=false, data.own_split=false) so that folds can be drawn."
        )
    if not has_split.all():
        raise FinetuneError(
            f"table {table.name}: {int((~has_split).sum()):,} row(s) have no split, others do; "
            "give all rows one or none."
        )
    absent = [name for name in SPLITS if not (column == name).any()]
    if "train" in absent:
        return table  # enough to evaluate a model; a fit stops in check_trainable()
    cut = {name: part for name, part in (("test", test), ("val", val)) if name in absent and part > 0}
    if not cut:
        return table
    train = table.rows("train")
    column = column.copy()
    column[train] = _draw(table, train, {**cut, "train": 1 - sum(cut.values())}, seed)
    names = [name for name in SPLITS if name in cut]
    unit = "patient" if table.has_patients else "image"
    note = f"No {' and '.join(names)} split is given: it is cut from train by {unit} (data.seed={seed})."
    return replace(table.with_split(column, [note]), generated_splits=("train", *names))


def keep_copies_together(table: SampleTable, copies: Iterable[tuple[int, int]]) -> SampleTable:
    """The table with copies of one image in one split, if both splits were generated here.

    `copies`: pairs of rows that show the same image. Patients that share one stay together, in train if one of
    them is there, else in val. Splits of the data set stay unchanged: the audit reports copies across them.
    """
    splits, patients = (table.frame[column].to_numpy(object).copy() for column in ("split", "patient"))
    moved: set[int] = set()
    pairs = [(i, j) for i, j in copies if {splits[i], splits[j]} <= set(table.generated_splits)]
    rows_of: dict[object, list[int]] = {patients[row]: [] for pair in pairs for row in pair}
    for row, patient in enumerate(patients):
        if patient in rows_of:
            rows_of[patient].append(row)
    while torn := [(i, j) for i, j in pairs if splits[i] != splits[j]]:
        for i, j in torn:  # a move may separate another pair, so repeat until none is
            to = min(splits[i], splits[j], key=SPLITS.index)
            for row in rows_of[patients[i]] + rows_of[patients[j]]:
                if splits[row] != to and splits[row] in table.generated_splits:
                    splits[row] = to
                    moved.add(row)
    if not moved:
        return table
    what = f"{len(moved):,} image(s) of {len(set(patients[list(moved)])):,} patient(s)" if table.has_patients else ""
    what = what or f"{len(moved):,} image(s)"
    note = f"{what} changed to the split of a copy of one of their images; the first: {patients[min(moved)]}."
    return table.with_split(splits, [note])


def _draw_all(
    table: SampleTable, seed: int, val: float, test: float, folds: int | None, fold: int | None
) -> SampleTable:
    everyone = np.arange(len(table))
    if fold is None:
        split_table = table.with_split(
            _draw(table, everyone, {"test": test, "val": val, "train": 1 - val - test}, seed)
        )
        return replace(split_table, generated_splits=SPLITS)
    assert folds is not None  # checked
    part = _draw(table, everyone, {str(i): 1 / folds for i in range(folds)}, seed)
    column = np.where(part == str(fold), "test", "train").astype(object)
    if val > 0:
        not_test = np.flatnonzero(column == "train")
        column[not_test] = _draw(table, not_test, {"val": val, "train": 1 - val}, seed, fold)
    return replace(
        table.with_split(column, [f"Fold {fold} (from 0) of {folds} is the test split."]), generated_splits=SPLITS
    )


def _check(val: float, test: float, folds: int | None, fold: int | None) -> None:
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise FinetuneError(f"val_fraction={val} and test_fraction={test} must lie in [0, 1) and leave some for train.")
    if fold is None:
        return
    if folds is None or folds < 2:
        raise FinetuneError(f"data.fold={fold} needs data.folds of at least 2, not {folds}.")
    if not 0 <= fold < folds:
        raise FinetuneError(f"data.fold={fold} is not one of the {folds} folds: choose 0 to {folds - 1}.")


def _draw(table: SampleTable, rows: np.ndarray, parts: dict[str, float], seed: int, *salt: int) -> np.ndarray:
    """A part's name for each of the rows, whole patients at a time."""
    parts = {name: share for name, share in parts.items() if share > 0}
    strata = table.split_strata()
    patients = table.frame["patient"].to_numpy(object) if strata.patients is None else strata.patients
    number = len(np.unique(table.frame["patient"].to_numpy(object)[rows].astype(str)))
    if number < len(parts):
        what = "patients" if table.has_patients else "images"
        raise FinetuneError(
            f"table {table.name}: {number} {what} cannot fill {len(parts)} splits ({', '.join(parts)})."
        )
    part_of_row = np.empty(len(rows), np.int64)
    sets = np.zeros(len(rows)) if strata.sets is None else strata.sets[rows].astype(str)
    for name in np.unique(sets):
        of_set = np.flatnonzero(sets == name)
        part_of_row[of_set] = _draw_set(
            strata.labels[rows[of_set]], patients[rows[of_set]], list(parts.values()), seed, salt
        )
    if lacking := [name for i, name in enumerate(parts) if not (part_of_row == i).any()]:
        raise FinetuneError(
            f"table {table.name}: no patient is left for {shorten(lacking)}; "
            "give it a larger fraction or more patients."
        )
    return np.array(list(parts), dtype=object)[part_of_row]


def _draw_set(
    labels: np.ndarray, patients: np.ndarray, shares: list[float], seed: int, salt: Sequence[int]
) -> np.ndarray:  # (N, L), (N,) -> (N,)
    """The number of a part for each row of one data set."""
    ids, patient = np.unique(patients.astype(str), return_inverse=True)
    positions = np.array([position_of(name, seed, *salt) for name in ids])
    return stratified_group_split(_counts(labels, patient, len(ids)), np.bincount(patient), shares, positions)[patient]


def position_of(patient: str, seed: int, *salt: int) -> float:
    """A patient's position between 0 and 1: a hash of the seed and the id, the same in every table and on every
    machine."""
    digest = hashlib.sha256("\x1f".join([*map(str, (seed, *salt)), patient]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _counts(labels: np.ndarray, patient: np.ndarray, patients: int) -> np.ndarray:
    """(patients, L + 1) rows per patient that show each label, and those that show none."""
    labels_or_none = np.concatenate([labels, ~labels.any(axis=1, keepdims=True)], axis=1)
    counts = np.zeros((patients, labels_or_none.shape[1]), np.int64)
    np.add.at(counts, patient, labels_or_none)
    return counts


def stratified_group_split(
    counts: np.ndarray, sizes: np.ndarray, shares: list[float], positions: np.ndarray
) -> np.ndarray:  # (G, L), (G,), (P,), (G,) -> (G,)
    """Assign groups of rows to parts so that every part gets its share of every label: a part index per group.

    Iterative stratification (Sechidis et al., 2011) over groups instead of single samples: the label with the fewest
    unassigned examples comes first, and each of its groups goes to the part that lacks most of that label. Unlike
    in the paper,
    - a label's largest groups are assigned first, while smaller ones can still balance them;
    - a part's deficit is relative to what has been assigned so far, not to the whole: otherwise the largest part
      would get all groups with many rows, and test those with few;
    - this decides only how many groups each part gets. Which ones is decided by `positions`, numbers between 0 and 1:
      the first part gets the lowest. So a group whose position is far from a border between two parts stays in its
      part when rows or labels are added.

    `counts` are the rows of each group that show each label, `sizes` all of its rows.
    """
    has = np.zeros((counts.shape[1], len(shares)))  # examples assigned
    has_rows = np.zeros(len(shares))
    left = counts.sum(axis=0)
    part_of_group = np.full(len(counts), -1)
    order = np.argsort(positions, kind="stable")
    while (left > 0).any():
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        members = order[(counts[order, rarest] > 0) & (part_of_group[order] < 0)]
        magnitudes = np.frexp(counts[members, rarest])[1]  # groups of 1, of 2 or 3, of 4 to 7 rows, and so on
        for magnitude in sorted(set(magnitudes.tolist()), reverse=True):
            alike = members[magnitudes == magnitude]
            examples, rows = float(counts[alike, rarest].mean()), float(sizes[alike].mean())
            taken = _groups_per_part(len(alike), examples, rows, has[rarest], has_rows, shares)
            part_of_group[alike] = np.repeat(np.arange(len(shares)), taken)
            for part in range(len(shares)):
                assigned = alike[part_of_group[alike] == part]
                has[:, part] += counts[assigned].sum(axis=0)
                has_rows[part] += sizes[assigned].sum()
            left -= counts[alike].sum(axis=0)
    return part_of_group


def _groups_per_part(
    groups: int, examples: float, rows: float, has: np.ndarray, has_rows: np.ndarray, shares: list[float]
) -> list[int]:
    """How many of `groups` groups with `examples` examples of a label, and `rows` rows, every part takes."""
    taken = [0] * len(shares)
    dealt, dealt_rows = float(has.sum()), float(has_rows.sum())
    for n in range(1, groups + 1):
        lacks = [  # rounded, so that 0.7 * 2 - 1 and 0.2 * 2 tie on every machine; then the part that lacks most rows
            (
                round(share * (dealt + n * examples) - has[part] - taken[part] * examples, 6),
                round(share * (dealt_rows + n * rows) - has_rows[part] - taken[part] * rows, 6),
            )
            for part, share in enumerate(shares)
        ]
        taken[max(range(len(shares)), key=lacks.__getitem__)] += 1
    return taken
