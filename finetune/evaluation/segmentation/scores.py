"""The scores of a case, one image and region, and when they are defined (Maier-Hein et al., 2024, Metrics Reloaded).

- Neither marked nor predicted: nothing to score; undefined, left out of means and counted.
- Only one of the two: Dice and IoU are 0. Sensitivity needs marked pixels, precision predicted ones.
- Distances need both surfaces. Where only one is there they are undefined and counted as failures: a mean over the
  other images alone would reward a network that finds only easy ones.
"""

from __future__ import annotations

import numpy as np

from finetune.statistics.shares import ratio

OVERLAPS = ("dice", "iou", "sensitivity", "precision")
"""Scores of pixel counts, between 0 and 1."""
DISTANCES = ("assd", "hd95")
"""Average symmetric surface distance and 95 % Hausdorff distance, in pixels, or mm where the spacing is known."""
SCORES = (*OVERLAPS, *DISTANCES)


def overlaps(intersection: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> score, from pixel counts of any shape, NaN where unknown; NaN where undefined."""
    union = truth + prediction - intersection
    return {
        "dice": ratio(2 * intersection, truth + prediction),
        "iou": ratio(intersection, union),
        "sensitivity": ratio(intersection, truth),
        "precision": ratio(intersection, prediction),
    }


def mean_dice(counts: np.ndarray) -> float:
    """The validation score: the mean over regions of their mean Dice over images.

    Args:
        counts: (N, R, 3) pixels of intersection, truth and prediction of each image and region, without the background;
            NaN where a region is unknown.

    Returns:
        NaN where no image has a defined Dice. Images and regions without one are left out.
    """
    counts = np.asarray(counts, np.float64)
    dice = overlaps(counts[..., 0], counts[..., 1], counts[..., 2])["dice"]  # (N, R)
    defined = ~np.isnan(dice)
    of_regions = ratio(np.nansum(dice, axis=0), defined.sum(axis=0))
    return float(ratio(np.nansum(of_regions), (~np.isnan(of_regions)).sum()))


def failures(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Whether a region is only marked, or only predicted: bool of the counts' shape."""
    return ((truth > 0) & (prediction == 0)) | ((truth == 0) & (prediction > 0))
