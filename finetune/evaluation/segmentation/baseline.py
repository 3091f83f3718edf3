"""The Dice of two predictions that look at no image, which a network has to beat.

- everything: each pixel is marked. Its Dice is high where the region fills the image.
- nothing: no pixel is marked. Its Dice is 0 where the region is, and undefined where it is not.

`gains` are by how much the network's Dice is above that of marking everything, which is never below that of nothing, on
the images where both are defined.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.segmentation.table import CaseTable
from finetune.statistics import means
from finetune.statistics.shares import ratio


def baseline(cases: CaseTable, dice: np.ndarray, patient: np.ndarray, n_patients: int) -> dict[str, Any]:
    """{"answer", "macro": {"dice"}, "classes": {region: {"everything", "nothing", "dice"}}, "gains": {region: {"dice":
    {"value", "low", "high"}}}}.

    Args:
        dice: (N, R) of the network, NaN where undefined.
        patient: (N,) number of each image's patient.
    """
    truth = cases.counts("truth")
    everything = ratio(2 * truth, truth + cases.pixels[:, None])  # (N, R)
    classes: dict[str, dict[str, float]] = {}
    gains: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(cases.regions):
        trivial = everything[:, k]
        if np.isnan(trivial).all():
            continue
        mean = float(np.nanmean(trivial))
        nothing = 0.0 if (truth[:, k] > 0).any() else np.nan
        classes[name] = {"everything": mean, "nothing": nothing, "dice": mean}
        gains[name] = {"dice": means.mean(dice[:, k] - trivial, patient, n_patients).signed().as_dict()}
    macro = float(np.mean([of_class["dice"] for of_class in classes.values()])) if classes else np.nan
    return {"answer": "everything", "macro": {"dice": macro}, "classes": classes, "gains": gains}
