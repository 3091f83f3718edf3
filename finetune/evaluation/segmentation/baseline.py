"""The Dice of predictions that look at no image, which a network has to beat.

- everything: each pixel is marked. Its Dice is high where the region fills the image.
- nothing: no pixel is marked. Its Dice is 0 where the region is, and undefined where it is not.
- mean shape: the one mask that is most like those of the training images, in each image (mean_shape.py). It is known
  where the training masks are: in a fit, and in evaluations of its model.

The answer of a region is everything or the mean shape, whichever has the higher mean Dice on these images. `gains` are
by how much the network's Dice is above that of the answer, on the images where both are defined.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.segmentation.scores import overlaps
from finetune.evaluation.segmentation.table import CaseTable
from finetune.statistics import means
from finetune.statistics.shares import ratio

EVERYTHING, SHAPE, BOTH = "everything", "mean shape", "the better of both"


def baseline(cases: CaseTable, dice: np.ndarray, patient: np.ndarray, n_patients: int) -> dict[str, Any]:
    """{"answer", "macro": {"dice"}, "gain": {"dice"}, "classes": {region: {"answer", "everything", "nothing", "dice"}},
    "gains": {region: {"dice"}}, "mean_shape"}. A gain is {"value", "low", "high"}, `gain` the mean over regions.

    `mean_shape` is None where the training masks are not known, else {"macro": {"dice", "gain"}, "classes": {region:
    {"dice", "gain"}}}, each {"value", "low", "high"} over patients: its Dice, and how much higher the network's is.

    Args:
        dice: (N, R) of the network, NaN where undefined.
        patient: (N,) number of each image's patient.
    """
    truth = cases.counts("truth")
    everything = ratio(2 * truth, truth + cases.pixels[:, None])  # (N, R)
    counts = cases.mean_shape
    of_shape = None if counts is None else overlaps(counts[..., 0], truth, counts[..., 1])["dice"]
    best = everything.copy()
    classes: dict[str, dict[str, Any]] = {}
    gains: dict[str, dict[str, Any]] = {}

    def gain(trivial: np.ndarray, k: int | slice) -> dict[str, Any]:
        return means.mean(dice[:, k] - trivial[:, k], patient, n_patients).signed().as_dict()

    for k, name in enumerate(cases.regions):
        if np.isnan(everything[:, k]).all():
            continue
        of_all = mean = float(np.nanmean(everything[:, k]))
        nothing = 0.0 if (truth[:, k] > 0).any() else np.nan
        answer = EVERYTHING
        if of_shape is not None and (defined := of_shape[~np.isnan(of_shape[:, k]), k]).size and defined.mean() > mean:
            answer, mean, best[:, k] = SHAPE, float(defined.mean()), of_shape[:, k]
        classes[name] = {"answer": answer, EVERYTHING: of_all, "nothing": nothing, "dice": mean}
        gains[name] = {"dice": gain(best, k)}
    answers = {of_class["answer"] for of_class in classes.values()}
    shape = None
    if of_shape is not None:

        def described(k: int | slice) -> dict[str, Any]:
            score = means.mean(of_shape[:, k], patient, n_patients).between_0_and_1()
            return {"dice": score.as_dict(), "gain": gain(of_shape, k)}

        names = {name: k for k, name in enumerate(cases.regions) if name in classes}
        shape = {"macro": described(slice(None)), "classes": {name: described(k) for name, k in names.items()}}
    return {
        "answer": answers.pop() if len(answers) == 1 else BOTH if answers else EVERYTHING,
        "macro": {"dice": float(np.mean([of_class["dice"] for of_class in classes.values()])) if classes else np.nan},
        "gain": {"dice": gain(best, slice(None))},
        "classes": classes,
        "gains": gains,
        "mean_shape": shape,
    }
