"""One case: pixel counts and surface distances of each region, from two label maps.

- Exclusive regions: a pixel is the number of its region, 0 the background; 255 in the truth is unknown and not counted.
- Overlapping regions: bit k of a pixel is set where region k holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from finetune.errors import FinetuneError

UNKNOWN = 255
"""Pixel of an exclusive truth about which nothing is known."""
THRESHOLDS = np.arange(1, 20) / 20
"""Probabilities 0.05 to 0.95 at which pixels of overlapping regions are counted, to choose one of them on val."""
PERCENTILE = 95.0


@dataclass(frozen=True)
class Counts:
    """Pixels of one case; R regions, without the background."""

    pixels: int
    """Known ones."""
    regions: np.ndarray
    """(R, 3) int64: intersection, truth, prediction."""
    confusion: np.ndarray | None
    """(K, K) int64 truth x prediction with the background; None of overlapping regions."""


@dataclass(frozen=True)
class Case:
    """What stays of an image."""

    sample: str
    patient: str | None
    pixels: int
    """Known ones."""
    spacing: tuple[float, float] | None
    """Millimetres per row and per column."""
    known: np.ndarray
    """(R,) bool: regions that the truth says anything of."""
    counts: np.ndarray
    """(R, 3) pixels of intersection, truth and prediction."""
    distances: np.ndarray
    """(R, 2) assd and hd95, NaN where undefined."""
    confusion: np.ndarray | None
    """(K, K) pixels, truth by prediction; of exclusive regions."""
    at_thresholds: np.ndarray | None
    """(R, T, 2) pixels of intersection and prediction at each of `THRESHOLDS`; of probabilities."""
    metadata: Mapping[str, Any]
    mean_shape: np.ndarray | None = None
    """(R, 2) pixels of intersection and prediction of the training masks' mean shape; None where it is unknown."""


def check_maps(prediction: np.ndarray, truth: np.ndarray, n_values: int, overlapping: bool, sample: str) -> None:
    """Fail on label maps that cannot be compared.

    Args:
        n_values: numbers that are regions are below it.

    Raises:
        FinetuneError: another size, no whole numbers, or a value that is no region.
    """
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        sizes = " and ".join(" x ".join(map(str, array.shape)) for array in (prediction, truth))
        raise FinetuneError(
            f"{sample}: prediction and truth have {sizes} pixels (height x width); they must be of one size. Resize "
            "the prediction to the image as stored, by the nearest pixel."
        )
    for what, array in (("prediction", prediction), ("truth", truth)):
        if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.integer):
            raise FinetuneError(f"{sample}: the {what} is {array.dtype}; a label map holds whole numbers.")
        if not array.size:
            raise FinetuneError(f"{sample}: the {what} has no pixels.")
        values = array if overlapping or what == "prediction" else array[array != UNKNOWN]
        if not values.size:
            continue
        worst = int(values.min()) if values.min() < 0 else int(values.max())
        if not 0 <= worst < n_values:
            ignored = "" if overlapping or what == "prediction" else f", or {UNKNOWN} for unknown"
            raise FinetuneError(
                f"{sample}: the {what} holds the value {worst}, which is no region: values are 0 to {n_values - 1}"
                f"{ignored}."
            )


def count(prediction: np.ndarray, truth: np.ndarray, n_regions: int, overlapping: bool) -> Counts:
    """Pixel counts of label maps (H, W) that `check_maps` took; `n_regions` without the background."""
    if not overlapping:
        known = truth != UNKNOWN
        k = n_regions + 1
        pairs = truth[known].astype(np.int64) * k + prediction[known]
        confusion = np.bincount(pairs, minlength=k * k).reshape(k, k)
        regions = np.stack([np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)], axis=1)[1:]
        return Counts(int(known.sum()), regions, confusion)
    pairs = np.bincount((truth.astype(np.int64).ravel() << n_regions) + prediction.ravel(), minlength=1)
    values = np.flatnonzero(pairs)  # few of the bit fields occur
    bits = np.arange(n_regions)
    of_truth, of_prediction = (values >> n_regions)[:, None] >> bits & 1, values[:, None] >> bits & 1  # (V, R)
    number = pairs[values]
    regions = np.stack([number @ (of_truth & of_prediction), number @ of_truth, number @ of_prediction], axis=1)
    return Counts(truth.size, regions, None)


def count_at_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:  # -> (T, 2) int64
    """Pixels of the intersection and of the prediction where the prediction is `probabilities >= threshold`.

    Args:
        probabilities: (H, W) of one region, between 0 and 1.
        truth: (H, W) bool.
    """
    reached = np.searchsorted(THRESHOLDS, probabilities.astype(np.float64, copy=False), side="right")  # 0 to T
    below = [np.bincount(part.ravel(), minlength=len(THRESHOLDS) + 1) for part in (reached[truth], reached)]
    return np.stack([counts[::-1].cumsum()[::-1][1:] for counts in below], axis=1)


def region_of(label_map: np.ndarray, k: int, overlapping: bool) -> np.ndarray:  # (H, W) -> bool (H, W)
    """Pixels of region `k`, counted without the background."""
    return (label_map >> k) & 1 == 1 if overlapping else label_map == k + 1


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Average symmetric surface distance and 95 % Hausdorff distance; NaN unless both have pixels.

    The surface of a region are its pixels with one of the four neighbours outside; the image's border counts as
    outside. Distances lie between centres of pixels. The average is over the pixels of both surfaces, the 95 %
    distance is the larger of the two directions.

    Args:
        prediction, truth: bool (H, W).
        spacing: millimetres between rows and between columns; without it distances are in pixels.
    """
    box = scipy.ndimage.find_objects((prediction | truth).astype(np.uint8))
    if not box or not prediction.any() or not truth.any():
        return np.nan, np.nan
    surfaces = [mask & ~scipy.ndimage.binary_erosion(mask) for mask in (prediction[box[0]], truth[box[0]])]
    between = [
        scipy.ndimage.distance_transform_edt(~surfaces[other], sampling=spacing)[surfaces[this]]
        for this, other in ((0, 1), (1, 0))
    ]
    return float(np.concatenate(between).mean()), float(max(np.percentile(part, PERCENTILE) for part in between))
