"""Shares and means of images with intervals over patients: the same resamples for as many of them as are asked for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from scipy import sparse

from finetune.statistics import intervals
from finetune.statistics.intervals import Interval

Key = TypeVar("Key", bound=Hashable)


def shares(
    patients: np.ndarray,
    asked: Mapping[Key, tuple[np.ndarray, np.ndarray]],
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[Key, Interval]:
    """Per key the mean of `what` over the images `of`, NaN where there are none.

    Args:
        patients: (N,) names.
        asked: key -> (what, of), (N,) each. `of` is boolean. A boolean `what` is a share, whose interval stays between
            0 and 1; of numbers the mean is told, with the middle 95 % of its resamples.
    """
    names, patient = np.unique(patients.astype(str), return_inverse=True)
    n, rows = len(names), np.arange(len(patient))
    by_patient = sparse.csr_matrix((np.ones(len(rows)), (patient, rows)), shape=(n, len(rows)))
    columns = [values for what, of in asked.values() for values in (np.where(of, what, 0), of)]
    table = np.array(columns, dtype=np.float64).reshape(-1, len(rows)).T  # (N, 2 M)
    sums = np.asarray(by_patient @ table)  # (P, 2 M)

    def under(weight: np.ndarray) -> np.ndarray:  # (P, B) -> (M, B)
        totals = (weight.T @ sums).T
        return ratio(totals[0::2], totals[1::2])

    values = under(np.ones((n, 1)))[:, 0]
    drawn = [under(weight) for weight in intervals.resamples(n, n_boot if n else 0, seed)]
    samples = np.concatenate(drawn, axis=1) if drawn else np.zeros((len(asked), 0))
    found = {}
    for i, (key, (what, _)) in enumerate(asked.items()):
        if np.asarray(what).dtype == bool:
            found[key] = intervals.share(sums[:, 2 * i], sums[:, 2 * i + 1])
        elif why := intervals.too_few(int((sums[:, 2 * i + 1] > 0).sum())):
            found[key] = Interval(values[i], reason="no such image" if np.isnan(values[i]) else why)
        else:
            found[key] = intervals.percentile(values[i], samples[i])
    return found


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0)
