"""Out-of-distribution scores: how unlike the training data an image is, and how well that separates data sets.

- energy (Liu et al., 2020): minus the log of the summed exponentials of the logits; of a multilabel table the sum over
  the classes (Wang et al., 2021). It needs the logits alone.
- mahalanobis (Lee et al., 2018): how far the pooled features lie from those of the training images, one Gaussian for
  all of them. The covariance is full along its strongest directions and isotropic along the others (Tipping and
  Bishop, 1999), so that a few hundred images are enough for 2,048 features.

Both grow with the distance from the training data. A low score does not mean that a prediction is correct.

The distances of the validation images, on which the network was not trained, define what is usual: an image beyond
their 99th percentile is called unusual, so about one in a hundred images like them is called unusual too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from finetune.statistics.intervals import delong

if TYPE_CHECKING:
    import pandas as pd

FILE = "typical.safetensors"
"""Beside the model: the distribution of its training images' features, and the distances of its validation images."""
SCORES = ("energy", "mahalanobis")
DIRECTIONS = 128  # of the covariance that are kept at most
MIN_VAL_IMAGES = 20  # validation images needed to call an image unusual: below, 1 in 21 would be
UNUSUAL = 0.99  # quantile of the validation images beyond which an image is called unusual


def energy(logits: np.ndarray, kind: str) -> np.ndarray:
    """Logits (N, K) -> (N,)."""
    logits = np.asarray(logits, np.float64)
    return -scipy.special.logsumexp(logits, axis=1) if kind == "multiclass" else -np.logaddexp(0, logits).sum(axis=1)


@dataclass(frozen=True)
class FeatureGaussian:
    """A Gaussian over features (D,): full covariance along `directions`, isotropic along all others."""

    mean: np.ndarray
    directions: np.ndarray
    """(R, D), of length 1 and at right angles."""
    variances: np.ndarray
    """(R,) along them."""
    residual_variance: float
    """Variance along every other direction."""
    val_distances: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(V,) ascending: distances of the validation images."""

    @classmethod
    def fit(cls, features: np.ndarray) -> FeatureGaussian:
        """The maximum-likelihood fit to features (N, D), N at least 2, with at most N / 2, D - 1 and 128 directions."""
        features = np.asarray(features, np.float64)
        n, dims = features.shape
        mean = features.mean(axis=0)
        _, singular, rows = np.linalg.svd(features - mean, full_matrices=False)
        eigenvalues = singular**2 / n
        n_directions = max(
            min(DIRECTIONS, n // 2, dims - 1), 0
        )  # half the images at most: the last directions are noise
        residual = eigenvalues[n_directions:].sum() / max(dims - n_directions, 1)
        floor = max(float(eigenvalues.sum()) * 1e-9 / dims, 1e-30)
        return cls(
            mean, rows[:n_directions], np.maximum(eigenvalues[:n_directions], floor), float(max(residual, floor))
        )

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Features (N, D) -> Mahalanobis distances (N,)."""
        centered = np.asarray(features, np.float64) - self.mean
        projected = centered @ self.directions.T
        residual = np.maximum((centered**2).sum(axis=1) - (projected**2).sum(axis=1), 0)
        return np.sqrt((projected**2 / self.variances).sum(axis=1) + residual / self.residual_variance)

    def percentile(self, distances: np.ndarray) -> np.ndarray:  # (N,) -> (N,) from 0 to 100
        """The percentage of the validation images that lies nearer than this."""
        return 100 * np.searchsorted(self.val_distances, distances) / len(self.val_distances)

    def unusual(self, distances: np.ndarray) -> np.ndarray:  # (N,) -> bool (N,)
        """Whether this is farther than the 99th percentile of the validation images; of fewer than 100, than all."""
        return np.asarray(distances) > np.quantile(self.val_distances, UNUSUAL, method="higher")

    def save(self, folder: Path, weights_hash: str) -> None:
        """Write FILE into `folder`, in 32 bits, atomically; `weights_hash` identifies the network."""
        arrays = {name: getattr(self, name) for name in ("mean", "directions", "variances")}
        arrays |= {"usual": self.val_distances, "rest": np.array(self.residual_variance)}  # the names in the file
        partial = folder / f".{FILE}.{os.getpid()}"
        try:
            plain = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
            save_file(plain, partial, metadata={"weights_hash": weights_hash})
            os.replace(partial, folder / FILE)
        finally:
            partial.unlink(missing_ok=True)


def read(folder: Path, weights_hash: str) -> tuple[FeatureGaussian | None, str]:
    """The distribution kept beside the model in this folder, else None and the reason why there is none."""
    path = folder / FILE
    if not path.is_file():
        return None, f"there is no {FILE} beside the model"
    try:
        with safe_open(path, framework="numpy") as file:
            stored_hash = (file.metadata() or {}).get("weights_hash")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        mean, directions, variances = (np.asarray(arrays[n], np.float64) for n in ("mean", "directions", "variances"))
        residual_variance, val_distances = (
            float(arrays["rest"].item()),
            np.sort(np.asarray(arrays.get("usual", np.zeros(0)), np.float64)),
        )
    except (OSError, KeyError, SafetensorError, ValueError):
        return None, f"{path} is damaged"
    if stored_hash not in (None, weights_hash):  # files of older runs have no hash
        return None, f"{path} belongs to another model"
    if directions.shape != (len(variances), len(mean)) or not all(
        map(np.isfinite, (residual_variance, mean.sum(), val_distances.sum()))
    ):
        return None, f"{path} is damaged"
    return FeatureGaussian(mean, directions, variances, residual_variance, val_distances), ""


def separation_auroc(in_domain: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """{score: {auroc: {value, low, high}, own, other}} of how well each score separates images of `other` from
    those of `in_domain`.

    Both tables have patient and the scores. The interval is over patients; `own` and `other` are medians.
    """
    patients = np.concatenate([["own " + p for p in in_domain["patient"]], ["other " + p for p in other["patient"]]])
    target = np.r_[np.zeros(len(in_domain)), np.ones(len(other))]
    result = {}
    for score in SCORES:
        if score in in_domain and score in other:
            values = np.r_[in_domain[score], other[score]]
            auroc = delong(target, values, patients).interval().as_dict()
            result[score] = {
                "auroc": auroc,
                "own": float(in_domain[score].median()),
                "other": float(other[score].median()),
            }
    return result


def table(
    samples: list[str], patients: list[str], energies: np.ndarray | None, distances: np.ndarray | None
) -> pd.DataFrame:
    """sample, patient, and energy (N,) and mahalanobis (N,) as far as they are known."""
    import pandas as pd

    frame = pd.DataFrame({"sample": samples, "patient": patients})
    for name, values in zip(SCORES, (energies, distances), strict=True):
        if values is not None:
            frame[name] = values
    return frame
