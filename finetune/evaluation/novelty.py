"""How unlike its own data a picture is to the network, and how well that tells another data set apart.

- energy (Liu et al., 2020): minus the log of the summed exponentials of the logits; of a multilabel table the sum over
  the classes of each one's own (Wang et al., 2021). It needs the logits alone.
- mahalanobis (Lee et al., 2018): how far the pooled features lie from those of the training images, one Gaussian for
  all of them. Of the covariance the strongest directions are kept and the rest is taken as round (Tipping and Bishop,
  1999), so that a few hundred images are enough for 2,048 features.

Both are larger the stranger the picture. They say what the network does not know, never that an answer is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from finetune.evaluation.intervals import delong

SCORES = ("energy", "mahalanobis")
DIRECTIONS = 128  # of the covariance that are kept at most


def energy(logits: np.ndarray, kind: str) -> np.ndarray:
    """Logits (N, K) -> (N,)."""
    logits = np.asarray(logits, np.float64)
    return -logsumexp(logits, axis=1) if kind == "multiclass" else -np.logaddexp(0, logits).sum(axis=1)


@dataclass(frozen=True)
class Typical:
    """A Gaussian over features (D,): full along `directions`, round in what is left."""

    mean: np.ndarray
    directions: np.ndarray
    """(R, D), of length 1 and at right angles."""
    variances: np.ndarray
    """(R,) along them."""
    rest: float
    """Variance along every other direction."""

    @classmethod
    def fit(cls, features: np.ndarray) -> Typical:
        """Of features (N, D), N at least 2: the likeliest with as many directions as N / 2, D - 1 and 128 allow."""
        features = np.asarray(features, np.float64)
        n, dims = features.shape
        mean = features.mean(axis=0)
        _, singular, rows = np.linalg.svd(features - mean, full_matrices=False)
        every = singular**2 / n
        kept = max(min(DIRECTIONS, n // 2, dims - 1), 0)  # half the images at most: the last directions are noise
        rest = every[kept:].sum() / max(dims - kept, 1)
        floor = max(float(every.sum()) * 1e-9 / dims, 1e-30)
        return cls(mean, rows[:kept], np.maximum(every[:kept], floor), float(max(rest, floor)))

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Features (N, D) -> Mahalanobis distances (N,)."""
        away = np.asarray(features, np.float64) - self.mean
        along = away @ self.directions.T
        left = np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.sqrt((along**2 / self.variances).sum(axis=1) + left / self.rest)


def told(own: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """{score: {auroc: {value, low, high}, own, other}} of how well each score tells pictures of `other` from `own`.

    Both tables have patient and the scores; the interval is over patients, the two numbers are medians.
    """
    patients = np.concatenate([["own " + p for p in own["patient"]], ["other " + p for p in other["patient"]]])
    target = np.r_[np.zeros(len(own)), np.ones(len(other))]
    found = {}
    for score in SCORES:
        if score in own and score in other:
            values = np.r_[own[score], other[score]]
            auroc = delong(target, values, patients).interval().as_dict()
            found[score] = {"auroc": auroc, "own": float(own[score].median()), "other": float(other[score].median())}
    return found


def table(predictions: Any, features: Mapping[str, np.ndarray] | None, typical: Typical | None) -> pd.DataFrame:
    """sample, patient, energy, and mahalanobis where `features` {sample: (D,)} and what is typical are known."""
    frame = predictions.frame[["sample", "patient"]].copy()
    frame["energy"] = energy(predictions.logits, predictions.kind)
    if features is not None and typical is not None:
        frame = frame[frame["sample"].isin(set(features))].reset_index(drop=True)
        stacked = np.stack([features[sample] for sample in frame["sample"]]) if len(frame) else np.zeros((0, 1))
        frame["mahalanobis"] = typical.distance(stacked) if len(frame) else []
    return frame
