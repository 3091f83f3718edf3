"""How unlike its own data a picture is to the network, and how well that tells another data set apart.

- energy (Liu et al., 2020): minus the log of the summed exponentials of the logits; of a multilabel table the sum over
  the classes of each one's own (Wang et al., 2021). It needs the logits alone.
- mahalanobis (Lee et al., 2018): how far the pooled features lie from those of the training images, one Gaussian for
  all of them. Of the covariance the strongest directions are kept and the rest is taken as round (Tipping and Bishop,
  1999), so that a few hundred images are enough for 2,048 features.

Both are larger the stranger the image. They say what the network does not know, never that an answer is right.

The distances of the validation images, which the network did not learn from, say what is usual: an image beyond the
99th percentile of them is called unusual, so about one in a hundred images like them is called so too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import logsumexp

from finetune.statistics.intervals import delong

FILE = "typical.safetensors"
"""Beside the model: what its training images look like to it, and how far its validation images lie from them."""
SCORES = ("energy", "mahalanobis")
DIRECTIONS = 128  # of the covariance that are kept at most
MIN_VAL_IMAGES = 20  # validation images below which nothing is said of what is usual: 1 in 21 would be called unusual
UNUSUAL = 0.99  # quantile of the validation images beyond which an image is called unusual


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
    usual: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(V,) ascending: distances of the validation images."""

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

    def percentile(self, distances: np.ndarray) -> np.ndarray:  # (N,) -> (N,) from 0 to 100
        """Which part of the validation images lies nearer than this."""
        return 100 * np.searchsorted(self.usual, distances) / len(self.usual)

    def unusual(self, distances: np.ndarray) -> np.ndarray:  # (N,) -> bool (N,)
        """Whether this is farther than the 99th percentile of the validation images: of fewer than 100 than all."""
        return np.asarray(distances) > np.quantile(self.usual, UNUSUAL, method="higher")

    def save(self, folder: Path, weights_hash: str) -> None:
        """Write FILE into `folder`, in 32 bits, atomically; `weights_hash` says whose features these are."""
        arrays = {name: getattr(self, name) for name in ("mean", "directions", "variances", "usual")}
        arrays["rest"] = np.array(self.rest)
        partial = folder / f".{FILE}.{os.getpid()}"
        try:
            plain = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
            save_file(plain, partial, metadata={"weights_hash": weights_hash})
            os.replace(partial, folder / FILE)
        finally:
            partial.unlink(missing_ok=True)


def read(folder: Path, weights_hash: str) -> tuple[Typical | None, str]:
    """What is typical of the model in this folder, else None and the reason why it is not known."""
    path = folder / FILE
    if not path.is_file():
        return None, f"there is no {FILE} beside the model"
    try:
        with safe_open(path, framework="numpy") as file:
            of = (file.metadata() or {}).get("weights_hash")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        mean, directions, variances = (np.asarray(arrays[n], np.float64) for n in ("mean", "directions", "variances"))
        rest, usual = float(arrays["rest"].item()), np.sort(np.asarray(arrays.get("usual", np.zeros(0)), np.float64))
    except (OSError, KeyError, SafetensorError, ValueError):
        return None, f"{path} is damaged"
    if of not in (None, weights_hash):  # files of older runs do not say
        return None, f"{path} belongs to another model"
    if directions.shape != (len(variances), len(mean)) or not all(map(np.isfinite, (rest, mean.sum(), usual.sum()))):
        return None, f"{path} is damaged"
    return Typical(mean, directions, variances, rest, usual), ""


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


def table(
    samples: list[str], patients: list[str], logits: np.ndarray, kind: str, distances: np.ndarray | None
) -> pd.DataFrame:
    """sample, patient, energy, and mahalanobis where the distances (N,) are known."""
    frame = pd.DataFrame({"sample": samples, "patient": patients, "energy": energy(logits, kind)})
    return frame if distances is None else frame.assign(mahalanobis=distances)
