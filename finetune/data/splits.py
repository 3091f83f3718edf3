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

    A split that the table gives is kept. `val` and `test` are parts of the rows that are there to be split: of all
    rows when none is given, of the train rows when val or test is to be cut from those. With `fold` the patients are
    dealt into `folds` equal parts, part `fold` (from 0) is the test split, and val is cut from the rest.

    The draw depends on the seed, the patients' ids and what the data set says of them (`table.strata`), and on nothing
    else: not on the classes that are learned, nor on the order of the rows. Where rows are added, most patients stay.
    """
    _check(val, test, folds, fold)
    column = table.frame["split"].to_numpy(object)
    known = np.array([not missing(s) for s in column])
    if not known.any():
        return _draw_all(table, seed, val, test, folds, fold)
    if fold is not None:
        raise FinetuneError(
            f"data.fold={fold}: table {table.name} gives its own split. Leave data.fold out, or the split "
            "(data.split=null, data.official_split=false, data.own_split=false) so that folds can be drawn."
        )
    if not known.all():
        raise FinetuneError(
            f"table {table.name}: {int((~known).sum()):,} row(s) have no split, others do; give all rows one or none."
        )
    absent = [name for name in SPLITS if not (column == name).any()]
    if "train" in absent:
        return table  # enough to evaluate a model on; check_trainable() speaks up before a fit
    cut = {name: part for name, part in (("test", test), ("val", val)) if name in absent and part > 0}
    if not cut:
        return table
    train = table.rows("train")
    column = column.copy()
    column[train] = _draw(table, train, {**cut, "train": 1 - sum(cut.values())}, seed)
    names = [name for name in SPLITS if name in cut]
    whole = "patient" if table.has_patients else "image"
    said = f"No {' and '.join(names)} split is given: it is cut from train by {whole} (data.seed={seed})."
    return replace(table.with_split(column, [said]), generated_splits=("train", *names))


def keep_copies_together(table: SampleTable, copies: Iterable[tuple[int, int]]) -> SampleTable:
    """The table with copies of one image in one split, where the border between their splits was drawn here.

    `copies`: pairs of rows that show the same image. Patients that share one stay together, and go to train if one
    of them is there, else to val. A border that the data set gives is left as it is, for the audit to speak of.
    """
    splits, patients = (table.frame[column].to_numpy(object).copy() for column in ("split", "patient"))
    moved: set[int] = set()
    pairs = [(i, j) for i, j in copies if {splits[i], splits[j]} <= set(table.generated_splits)]
    rows_of: dict[object, list[int]] = {patients[row]: [] for pair in pairs for row in pair}
    for row, patient in enumerate(patients):
        if patient in rows_of:
            rows_of[patient].append(row)
    while torn := [(i, j) for i, j in pairs if splits[i] != splits[j]]:
        for i, j in torn:  # a move may tear another pair, so once more until all are whole
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
        drawn = table.with_split(_draw(table, everyone, {"test": test, "val": val, "train": 1 - val - test}, seed))
        return replace(drawn, generated_splits=SPLITS)
    assert folds is not None  # checked
    part = _draw(table, everyone, {str(i): 1 / folds for i in range(folds)}, seed)
    column = np.where(part == str(fold), "test", "train").astype(object)
    if val > 0:
        rest = np.flatnonzero(column == "train")
        column[rest] = _draw(table, rest, {"val": val, "train": 1 - val}, seed, fold)
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
    drawn = np.empty(len(rows), np.int64)
    sets = np.zeros(len(rows)) if strata.sets is None else strata.sets[rows].astype(str)
    for name in np.unique(sets):
        of_set = np.flatnonzero(sets == name)
        drawn[of_set] = _draw_set(strata.labels[rows[of_set]], patients[rows[of_set]], list(parts.values()), seed, salt)
    if lacking := [name for i, name in enumerate(parts) if not (drawn == i).any()]:
        raise FinetuneError(
            f"table {table.name}: no patient is left for {shorten(lacking)}; "
            "give it a larger fraction or more patients."
        )
    return np.array(list(parts), dtype=object)[drawn]


def _draw_set(
    labels: np.ndarray, patients: np.ndarray, shares: list[float], seed: int, salt: Sequence[int]
) -> np.ndarray:  # (N, L), (N,) -> (N,)
    """The number of a part for each row of one data set."""
    ids, patient = np.unique(patients.astype(str), return_inverse=True)
    places = np.array([place(name, seed, *salt) for name in ids])
    return stratified_group_split(_counts(labels, patient, len(ids)), np.bincount(patient), shares, places)[patient]


def place(patient: str, seed: int, *salt: int) -> float:
    """Where a patient stands between 0 and 1: a hash of the seed and the id, the same in every table and on every
    machine."""
    digest = hashlib.sha256("\x1f".join([*map(str, (seed, *salt)), patient]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _counts(labels: np.ndarray, patient: np.ndarray, patients: int) -> np.ndarray:
    """(patients, L + 1) rows per patient that show each label, and those that show none."""
    shown = np.concatenate([labels, ~labels.any(axis=1, keepdims=True)], axis=1)
    counts = np.zeros((patients, shown.shape[1]), np.int64)
    np.add.at(counts, patient, shown)
    return counts


def stratified_group_split(
    counts: np.ndarray, sizes: np.ndarray, shares: list[float], places: np.ndarray
) -> np.ndarray:  # (G, L), (G,), (P,), (G,) -> (G,)
    """Deal groups of rows to parts so that every part gets its share of every label: index of a part for each group.

    Iterative stratification (Sechidis et al., 2011) over groups instead of single samples: the label with the fewest
    undealt examples comes first, and each of its groups goes to the part that lacks most of that label. Unlike in the
    paper,
    - a label's largest groups are dealt first, while there is room to even them out;
    - a part lacks what is missing from its share of what has been dealt so far, not of the whole: the largest part
      would else get all the groups with many rows, and the test would be on those with few;
    - only how many groups each part gets is decided so. Which ones is decided by `places`, numbers between 0 and 1: the
      first part gets those with the lowest. So a group whose place is far from a border between two parts stays in its
      part when rows or labels are added.

    `counts` are the rows of each group that show each label, `sizes` all of its rows.
    """
    has = np.zeros((counts.shape[1], len(shares)))  # examples dealt
    has_rows = np.zeros(len(shares))
    left = counts.sum(axis=0)
    dealt = np.full(len(counts), -1)
    order = np.argsort(places, kind="stable")
    while (left > 0).any():
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        members = order[(counts[order, rarest] > 0) & (dealt[order] < 0)]
        magnitudes = np.frexp(counts[members, rarest])[1]  # groups of 1, of 2 or 3, of 4 to 7 rows, and so on
        for magnitude in sorted(set(magnitudes.tolist()), reverse=True):
            alike = members[magnitudes == magnitude]
            each, rows = float(counts[alike, rarest].mean()), float(sizes[alike].mean())
            takes = _takes(len(alike), each, rows, has[rarest], has_rows, shares)
            dealt[alike] = np.repeat(np.arange(len(shares)), takes)
            for part in range(len(shares)):
                mine = alike[dealt[alike] == part]
                has[:, part] += counts[mine].sum(axis=0)
                has_rows[part] += sizes[mine].sum()
            left -= counts[alike].sum(axis=0)
    return dealt


def _takes(
    groups: int, each: float, rows: float, has: np.ndarray, has_rows: np.ndarray, shares: list[float]
) -> list[int]:
    """How many of `groups` groups with `each` examples of a label, and `rows` rows, every part takes."""
    takes = [0] * len(shares)
    dealt, dealt_rows = float(has.sum()), float(has_rows.sum())
    for n in range(1, groups + 1):
        lacks = [  # rounded, so that 0.7 * 2 - 1 and 0.2 * 2 tie on every machine; then the part that lacks most rows
            (
                round(share * (dealt + n * each) - has[part] - takes[part] * each, 6),
                round(share * (dealt_rows + n * rows) - has_rows[part] - takes[part] * rows, 6),
            )
            for part, share in enumerate(shares)
        ]
        takes[max(range(len(shares)), key=lacks.__getitem__)] += 1
    return takes
