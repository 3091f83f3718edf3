"""Case tables without images: pixel counts as they would come of masks."""

from collections.abc import Sequence

import numpy as np

from finetune.evaluation.segmentation.cases import THRESHOLDS, Case
from finetune.evaluation.segmentation.table import CaseTable


def case_table(
    counts,
    patients: Sequence[str] | None = None,
    *,
    regions: Sequence[str] = ("a",),
    overlapping: bool = True,
    distances=None,
    spacing=None,
    pixels: int = 1000,
    curve=None,
    samples: Sequence[str] | None = None,
    **metadata,
) -> CaseTable:
    """counts (N, R, 3) of intersection, truth and prediction, NaN where unknown."""
    counts = np.asarray(counts, np.float64).reshape(len(counts), -1, 3)
    n, r = counts.shape[:2]
    known = ~np.isnan(counts).any(axis=2)
    distances = np.full((n, r, 2), np.nan) if distances is None else np.asarray(distances, float).reshape(n, r, 2)
    cases = [
        Case(
            sample=samples[i] if samples else f"{i}.png",
            patient=patients[i] if patients is not None else f"p{i}",
            pixels=pixels,
            spacing=spacing[i] if spacing else None,
            known=known[i],
            counts=np.nan_to_num(counts[i]).astype(int),
            distances=distances[i],
            confusion=None if overlapping else np.zeros((r + 1, r + 1), int),
            at_thresholds=None if curve is None else np.asarray(curve[i]).reshape(r, len(THRESHOLDS), 2),
            metadata={name: values[i] for name, values in metadata.items()},
        )
        for i in range(n)
    ]
    marked = None if curve is None else dict.fromkeys(regions, 0.5)
    return CaseTable.from_cases(cases, list(regions), overlapping, marked)


def dice_table(dice, patients=None, **options) -> CaseTable:
    """One region of 1,000 marked and 1,000 predicted pixels with these values of Dice; NaN: neither."""
    dice = np.asarray(dice, float)
    size = np.where(np.isnan(dice), 0, 1000)
    counts = np.stack([np.nan_to_num(dice) * 1000, size, size], axis=1).round()
    return case_table(counts[:, None], patients, pixels=10_000, **options)
