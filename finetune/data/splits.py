"""Train, validation and test, drawn by patient and balanced over the classes, by `data.seed` alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from finetune.data.sources.listing import some
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

    The draw depends on seed, patient ids, targets and nothing else: not on the order of the rows.
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
    cut = {name: part for name, part in (("val", val), ("test", test)) if name in absent and part > 0}
    if not cut:
        return table
    train = table.rows("train")
    column = column.copy()
    column[train] = _draw(table, train, {"train": 1 - sum(cut.values()), **cut}, seed)
    names = " and ".join(cut)
    said = f"No {names} split is given: it is cut from train by patient (data.seed={seed})."
    return replace(table.with_split(column, [said]), drawn=("train", *cut))


def mend(table: SampleTable, copies: Iterable[tuple[int, int]]) -> SampleTable:
    """The table with copies of one picture in one split, where the border between their splits was drawn here.

    `copies`: pairs of rows that show the same picture. Patients that share one stay together, and go to train if one
    of them is there, else to val. A border that the data set gives is left as it is, for the audit to speak of.
    """
    splits, patients = (table.frame[column].to_numpy(object).copy() for column in ("split", "patient"))
    moved: set[int] = set()
    pairs = [(i, j) for i, j in copies if {splits[i], splits[j]} <= set(table.drawn)]
    rows_of: dict[object, list[int]] = {patients[row]: [] for pair in pairs for row in pair}
    for row, patient in enumerate(patients):
        if patient in rows_of:
            rows_of[patient].append(row)
    while torn := [(i, j) for i, j in pairs if splits[i] != splits[j]]:
        for i, j in torn:  # a move may tear another pair, so once more until all are whole
            to = min(splits[i], splits[j], key=SPLITS.index)
            for row in rows_of[patients[i]] + rows_of[patients[j]]:
                if splits[row] != to and splits[row] in table.drawn:
                    splits[row] = to
                    moved.add(row)
    if not moved:
        return table
    what = f"{len(moved):,} image(s) of {len(set(patients[list(moved)])):,} patient(s)" if table.has_patients else ""
    what = what or f"{len(moved):,} image(s)"
    note = f"{what} changed to the split of a copy of one of their pictures; the first: {patients[min(moved)]}."
    return table.with_split(splits, [note])


def _draw_all(
    table: SampleTable, seed: int, val: float, test: float, folds: int | None, fold: int | None
) -> SampleTable:
    everyone = np.arange(len(table))
    if fold is None:
        drawn = table.with_split(_draw(table, everyone, {"train": 1 - val - test, "val": val, "test": test}, seed))
        return replace(drawn, drawn=SPLITS)
    assert folds is not None  # checked
    part = _draw(table, everyone, {str(i): 1 / folds for i in range(folds)}, seed)
    column = np.where(part == str(fold), "test", "train").astype(object)
    if val > 0:
        rest = np.flatnonzero(column == "train")
        column[rest] = _draw(table, rest, {"train": 1 - val, "val": val}, seed, fold)
    return replace(table.with_split(column, [f"Fold {fold} (from 0) of {folds} is the test split."]), drawn=SPLITS)


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
    ids, patient = np.unique(table.frame["patient"].to_numpy(object)[rows].astype(str), return_inverse=True)
    if len(ids) < len(parts):
        what = "patients" if table.has_patients else "images"
        raise FinetuneError(
            f"table {table.name}: {len(ids)} {what} cannot fill {len(parts)} splits ({', '.join(parts)})."
        )
    counts = _counts(table.targets()[rows], patient, len(ids))
    dealt = deal(counts, list(parts.values()), np.random.default_rng([seed, *salt]))
    if lacking := [name for i, name in enumerate(parts) if not (dealt == i).any()]:
        raise FinetuneError(
            f"table {table.name}: no patient is left for {some(lacking)}; give it a larger fraction or more patients."
        )
    return np.array(list(parts), dtype=object)[dealt[patient]]


def _counts(targets: np.ndarray, patient: np.ndarray, patients: int) -> np.ndarray:
    """(patients, K + 1) rows per patient that show each class, and those that show none."""
    positive = np.nan_to_num(targets) >= 0.5
    shown = np.concatenate([positive, ~positive.any(axis=1, keepdims=True)], axis=1)
    counts = np.zeros((patients, shown.shape[1]), np.int64)
    np.add.at(counts, patient, shown)
    return counts


def deal(counts: np.ndarray, shares: list[float], rng: np.random.Generator) -> np.ndarray:  # (G, L) -> (G,)
    """Deal groups to parts so that every part gets its share of every label: index of a part for each group.

    Iterative stratification (Sechidis et al., 2011) over groups instead of single samples: the label with the fewest
    undealt examples comes first, and each of its groups goes to the part that lacks most of that label. Unlike in the
    paper, a label's largest groups are dealt first, while there is room to even them out, and a part lacks what is
    missing from its share of what has been dealt so far, not of the whole: the largest part would else get all the
    patients with many images, and the test would be on those with few.
    """
    groups = len(counts)
    size = counts.sum(axis=1)
    order = np.lexsort((rng.permutation(groups), -size))  # large groups first, chance among equals
    left = counts.sum(axis=0)
    rows = [[(label, int(n)) for label, n in enumerate(row) if n] for row in counts]
    has = [[0] * len(shares) for _ in left]  # label -> part -> examples dealt
    has_rows = [0] * len(shares)
    dealt = np.full(groups, -1)
    while (left > 0).any():
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        for group in order[(counts[order, rarest] > 0) & (dealt[order] < 0)]:
            so_far, so_far_rows = sum(has[rarest]) + int(counts[group, rarest]), sum(has_rows) + int(size[group])
            # Rounded, so that 0.7 * 2 - 1 and 0.2 * 2 tie on every machine.
            lacks = [
                (round(share * so_far - n, 6), round(share * so_far_rows - n_rows, 6))
                for share, n, n_rows in zip(shares, has[rarest], has_rows, strict=True)
            ]
            most = max(lacks)
            among = [i for i, lack in enumerate(lacks) if lack == most]
            part = among[0] if len(among) == 1 else among[int(rng.integers(len(among)))]
            dealt[group] = part
            for label, n in rows[group]:
                has[label][part] += n
                left[label] -= n
            has_rows[part] += int(size[group])
    return dealt
