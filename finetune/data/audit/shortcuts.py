"""Does a metadata column predict a label by itself? Then a network that sees its traces in the image may learn those.

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
PRIOR = 5.0  # a value's rate is drawn to the overall rate as if that had been seen in so many more images
STRONG = 0.65  # a column is spoken of where the whole interval of its AUROC lies above


@dataclass(frozen=True)
class Shortcut:
    """How well one column tells a class, on images that its rates were not taken from."""

    column: str
    label: str
    auroc: float
    low: float
    high: float
    images: int


def shortcuts(table: SampleTable, more: dict[str, np.ndarray] | None = None) -> list[Shortcut]:
    """Columns whose AUROC lies above 0.5 for a class, strongest first; `more` are further columns, one value per row.

    The rate of the class for each value of the column (for numbers: each tenth of their range by rank) is taken in
    train, and val and test are ranked by it. Classes with fewer than 10 patients on either side are left out, as are
    columns with one value, or with a value of its own for nearly every patient.
    """
    train = table.rows("train")
    others = np.concatenate([table.rows("val"), table.rows("test")])
    if not len(train) or not len(others):
        return []
    targets, patients = table.targets(), table.frame["patient"].to_numpy(object)
    found = []
    columns = {name: table.frame[name] for name in table.metadata}
    columns |= {name: pd.Series(values) for name, values in (more or {}).items()}
    for name, values in columns.items():
        codes = coded(values, train)
        seen = len(np.unique(codes[train]))
        if seen < 2 or seen > len(np.unique(patients[train])) / 2:
            continue
        for k, label in enumerate(table.classes):
            known = train[~np.isnan(targets[train, k])]
            if not len(known):
                continue
            base = float(targets[known, k].mean())
            positive = np.bincount(codes[known], targets[known, k], codes.max() + 1)
            rates = (positive + PRIOR * base) / (np.bincount(codes[known], minlength=codes.max() + 1) + PRIOR)
            with np.errstate(invalid="ignore"):
                hard = np.where(np.isnan(targets[others, k]), np.nan, targets[others, k] >= 0.5)
            score = delong(hard, rates[codes[others]], patients[others])
            if min(score.positive_patients, score.negative_patients) < MIN_PATIENTS:
                continue
            interval = score.interval()
            if interval.low > 0.5:
                count = int((~np.isnan(hard)).sum())
                found.append(Shortcut(name, label, interval.value, interval.low, interval.high, count))
    return sorted(found, key=lambda shortcut: -shortcut.auroc)


def coded(values: pd.Series, train: np.ndarray) -> np.ndarray:  # (N,) -> whole numbers (N,)
    """One code per value; of many numbers one per tenth of those in train. Missing is a value too."""
    if pd.api.types.is_numeric_dtype(values.dtype) and values.nunique() > BINS:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        seen = numbers[train][~np.isnan(numbers[train])]
        edges = np.unique(np.quantile(seen, np.arange(1, BINS) / BINS)) if len(seen) else np.zeros(0)
        return np.where(np.isnan(numbers), len(edges) + 1, np.searchsorted(edges, numbers, side="right"))
    return pd.factorize(values, use_na_sentinel=False)[0]
