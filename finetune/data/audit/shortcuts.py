"""Metadata columns that predict a label without the image: a network may learn their traces instead of the finding.

A portable scanner is taken to the sickest patients, one hospital sends one class, an age group never has a finding: a
network that recognises scanner, hospital or age scores well without looking at the finding (Zech et al., 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from finetune.data.table import SampleTable
from finetune.statistics.intervals import MIN_PATIENTS, delong

BINS = 10  # of a column of numbers
PRIOR = 5.0  # images: pseudo-count that shrinks a value's rate toward the overall rate
STRONG = 0.65  # a column is reported when the lower limit of its AUROC exceeds this


@dataclass(frozen=True)
class Shortcut:
    """How well one column predicts a class, on images that its rates were not estimated from."""

    column: str
    label: str
    auroc: float
    low: float
    high: float
    images: int


def shortcuts(table: SampleTable, more: dict[str, np.ndarray] | None = None) -> list[Shortcut]:
    """Columns whose AUROC lies above 0.5 for a class, strongest first; `more` are further columns, one value per row.

    The rate of the class for each value of the column (for numbers: each tenth of their range by rank) is estimated in
    train, and val and test are ranked by it. Classes with fewer than 10 patients on either side are left out, as are
    columns with one value, or with a different value for nearly every patient.
    """
    train = table.rows("train")
    held_out = np.concatenate([table.rows("val"), table.rows("test")])
    if not len(train) or not len(held_out):
        return []
    targets, patients = table.targets(), table.frame["patient"].to_numpy(object)
    results = []
    columns = {name: table.frame[name] for name in table.metadata}
    columns |= {name: pd.Series(values) for name, values in (more or {}).items()}
    for name, values in columns.items():
        codes = coded(values, train)
        n_values = len(np.unique(codes[train]))
        if n_values < 2 or n_values > len(np.unique(patients[train])) / 2:
            continue
        for k, label in enumerate(table.classes):
            known = train[~np.isnan(targets[train, k])]
            if not len(known):
                continue
            base = float(targets[known, k].mean())
            positive = np.bincount(codes[known], targets[known, k], codes.max() + 1)
            rates = (positive + PRIOR * base) / (np.bincount(codes[known], minlength=codes.max() + 1) + PRIOR)
            with np.errstate(invalid="ignore"):
                hard = np.where(np.isnan(targets[held_out, k]), np.nan, targets[held_out, k] >= 0.5)
            score = delong(hard, rates[codes[held_out]], patients[held_out])
            if min(score.positive_patients, score.negative_patients) < MIN_PATIENTS:
                continue
            interval = score.interval()
            if interval.low > 0.5:
                count = int((~np.isnan(hard)).sum())
                results.append(Shortcut(name, label, interval.value, interval.low, interval.high, count))
    return sorted(results, key=lambda shortcut: -shortcut.auroc)


def coded(values: pd.Series, train: np.ndarray) -> np.ndarray:  # (N,) -> whole numbers (N,)
    """One code per value; of many numbers one per tenth of those in train. Missing is a value too."""
    if pd.api.types.is_numeric_dtype(values.dtype) and values.nunique() > BINS:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        train_numbers = numbers[train][~np.isnan(numbers[train])]
        edges = np.unique(np.quantile(train_numbers, np.arange(1, BINS) / BINS)) if len(train_numbers) else np.zeros(0)
        return np.where(np.isnan(numbers), len(edges) + 1, np.searchsorted(edges, numbers, side="right"))
    return pd.factorize(values, use_na_sentinel=False)[0]
