"""Dice against the size of the marked region: small regions are often found worse, and a mean over images hides it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import scipy

from finetune.evaluation.segmentation.table import CaseTable
from finetune.statistics import means
from finetune.statistics.intervals import MIN_PATIENTS

MAX_BINS = 4
MAX_POINTS = 500


def by_size(cases: CaseTable, k: int, patient: np.ndarray) -> dict[str, Any]:
    """{unit, rank_correlation, bins: [{low, high, n, patients, dice}], points: {size, dice}} of region `k`, over the
    images that have it.

    Sizes are in mm2 where every image has a spacing, else in pixels. Bins hold equally many images, with at least
    `MIN_PATIENTS` patients on average; `low` and `high` are the smallest and largest size in a bin. Spearman's rank
    correlation is NaN without two sizes and two values of Dice. Points are evenly thinned by size.

    Args:
        patient: (N,) number of each image's patient.
    """
    truth, dice = cases.counts("truth")[:, k], cases.scores("dice")[:, k]
    unit = "mm2" if cases.unit == "mm" else "pixels"
    size = truth * cases.spacing.prod(axis=1) if unit == "mm2" else truth
    order = np.flatnonzero(truth > 0)
    order = order[np.argsort(size[order], kind="stable")]
    size, dice, patient = size[order], dice[order], patient[order]
    n_bins = int(np.clip(len(np.unique(patient)) // MIN_PATIENTS, 1, MAX_BINS)) if len(order) else 0
    edges = np.round(np.linspace(0, len(order), n_bins + 1)).astype(int)
    bins = []
    for start, end in pairwise(edges):
        people, number = np.unique(patient[start:end], return_inverse=True)
        interval = means.mean(dice[start:end], number, len(people)).between_0_and_1()
        bins.append(
            {
                "low": float(size[start]),
                "high": float(size[end - 1]),
                "n": int(end - start),
                "patients": len(people),
                "dice": interval.as_dict(),
            }
        )
    few = np.unique(np.linspace(0, len(order) - 1, min(len(order), MAX_POINTS)).astype(int))
    return {
        "unit": unit,
        "rank_correlation": rank_correlation(size, dice),
        "bins": bins,
        "points": {"size": size[few].tolist(), "dice": dice[few].tolist()},
    }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, NaN where either has a single value."""
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return np.nan
    return float(np.corrcoef(scipy.stats.rankdata(a), scipy.stats.rankdata(b))[0, 1])
