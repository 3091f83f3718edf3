"""Which images a page shows: the worst, the middle and the best by Dice, the mean over the regions of each image."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.segmentation.table import CaseTable
from finetune.files import plain
from finetune.statistics.shares import ratio


def dice_of_images(cases: CaseTable) -> np.ndarray:  # (N,)
    """The mean over the regions with a defined Dice, NaN where there is none."""
    dice = cases.scores("dice")
    return ratio(np.nansum(dice, axis=1), (~np.isnan(dice)).sum(axis=1))


def examples(cases: CaseTable, number: int = 6) -> dict[str, list[dict[str, Any]]]:
    """{worst, median, best}, at most `number` of each: {sample, patient, dice, regions: {region: Dice or None}}.

    The worst come first, the middle and the best in ascending order. An image is in one list only; where there are few
    the worst come before the best. Ties are in the order of the table.
    """
    dice = dice_of_images(cases)
    order = np.flatnonzero(~np.isnan(dice))
    order = order[np.argsort(dice[order], kind="stable")]
    worst, rest = order[:number], order[number:]
    best = rest[max(len(rest) - number, 0) :]
    middle = rest[: len(rest) - len(best)]
    start = max((len(middle) - number) // 2, 0)
    chosen = {"worst": worst, "median": middle[start : start + number], "best": best}
    of_region, samples, patients = cases.scores("dice"), cases.frame["sample"], cases.patients

    def described(row: int) -> dict[str, Any]:
        regions = dict(zip(cases.regions, of_region[row], strict=True))
        return {"sample": samples[row], "patient": patients[row], "dice": dice[row], "regions": regions}

    return plain({name: [described(row) for row in rows.tolist()] for name, rows in chosen.items()})
