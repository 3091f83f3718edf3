"""Shares and means over images, with intervals over patients; all quantities use the same resamples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
import scipy

from finetune.statistics import intervals
from finetune.statistics.intervals import Interval

Key = TypeVar("Key", bound=Hashable)


def shares(
    patients: np.ndarray,
    quantities: Mapping[Key, tuple[np.ndarray, np.ndarray]],
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[Key, Interval]:
    """Per key the mean of `measured` over the images `included`, NaN where there are none.

    Args:
        patients: (N,) names.
        quantities: key -> (measured, included), (N,) each; `included` is boolean. Boolean measurements give a share,
            whose interval stays between 0 and 1; numbers give their mean with the middle 95 % of its resamples.
    """
    names, patient = np.unique(patients.astype(str), return_inverse=True)
    n, rows = len(names), np.arange(len(patient))
    by_patient = scipy.sparse.csr_matrix((np.ones(len(rows)), (patient, rows)), shape=(n, len(rows)))
    columns = [
        values for measured, included in quantities.values() for values in (np.where(included, measured, 0), included)
    ]
    table = np.array(columns, dtype=np.float64).reshape(-1, len(rows)).T  # (N, 2 M)
    sums = np.asarray(by_patient @ table)  # (P, 2 M)

    def weighted_means(weight: np.ndarray) -> np.ndarray:  # (P, B) -> (M, B)
        totals = (weight.T @ sums).T
        return ratio(totals[0::2], totals[1::2])

    values = weighted_means(np.ones((n, 1)))[:, 0]
    resampled = [weighted_means(weight) for weight in intervals.resamples(n, n_boot if n else 0, seed)]
    samples = np.concatenate(resampled, axis=1) if resampled else np.zeros((len(quantities), 0))
    results = {}
    for i, (key, (measured, _)) in enumerate(quantities.items()):
        if np.asarray(measured).dtype == bool:
            results[key] = intervals.share(sums[:, 2 * i], sums[:, 2 * i + 1])
        elif why := intervals.too_few(int((sums[:, 2 * i + 1] > 0).sum())):
            results[key] = Interval(values[i], reason="no such image" if np.isnan(values[i]) else why)
        else:
            results[key] = intervals.percentile(values[i], samples[i])
    return results


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0)
