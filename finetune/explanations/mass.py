"""How much of a heat map lies inside what is predicted, and inside what is true.

`even` is the share of an even heat: the area of the inside, as a share of all pixels that may have heat. Heat outside
is context only where a place of the map is smaller than what is explained: a coarse map spreads it over its places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.explanations.localisation import share
from finetune.files import plain
from finetune.statistics.intervals import MIN_PATIENTS

MIN_MAPS = 20
"""Maps with heat, for a statement about them."""
INSIDE = ("predicted", "true")


@dataclass(frozen=True)
class Mass:
    """The heat of one map."""

    name: str
    """Class or region that the map is of."""
    patient: str
    predicted: float
    """Share of the heat inside the prediction; NaN without heat, or without a prediction."""
    true: float
    """Share inside the truth; NaN where it is not known, or nothing is there."""
    predicted_even: float
    """The same for a heat that is spread evenly."""
    true_even: float


def inside(heat: np.ndarray, pixels: np.ndarray | None) -> float:
    """The share of the heat (H, W) on the pixels (H, W) bool; NaN where there is no heat or no pixel."""
    total = float(heat.sum(dtype=np.float64))
    if pixels is None or not pixels.any() or not total > 0:
        return float("nan")
    return float(heat[pixels].sum(dtype=np.float64)) / total


def measure(
    name: str,
    patient: str,
    heat: np.ndarray,
    predicted: np.ndarray | None,
    true: np.ndarray | None,
    reach: np.ndarray | None = None,
) -> Mass:
    """The shares of one map (H, W).

    Args:
        predicted: bool (H, W); None or empty for nothing.
        true: the same; None where it is not known.
        reach: bool (H, W), the pixels that may have heat; None for all.
    """
    even = np.ones(heat.shape) if reach is None else reach.astype(np.float64)
    without = not heat.any()
    return Mass(
        name,
        patient,
        inside(heat, predicted),
        inside(heat, true),
        float("nan") if without else inside(even, predicted),
        float("nan") if without else inside(even, true),
    )


def summarise(masses: Sequence[Mass], subject: str, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Any]:
    """{subject, all: scores, classes: {name: scores}, sentence}; scores are {n, patients, predicted: {value, low, high,
    n, even}, true: {...}, note}. Means over maps with 95 % intervals over patients.

    Args:
        subject: what a prediction is, in the sentence: `region` or `box`.
    """
    names = list(dict.fromkeys(mass.name for mass in masses))
    classes = {name: _scores([mass for mass in masses if mass.name == name], n_boot, seed) for name in names}
    result = {"subject": subject, "all": _scores(masses, n_boot, seed), "classes": classes}
    return plain({**result, "sentence": in_a_sentence(result)})


def in_a_sentence(result: dict[str, Any]) -> str:
    """How much of the heat lies inside predictions, and how much an even heat would have there."""
    scores, subject = result["all"]["predicted"], result["subject"]
    if scores["n"] < MIN_MAPS:
        return (
            f"How much of the heat lies in the predicted {subject} is unknown: {scores['n']} maps have heat and a "
            f"prediction, {MIN_MAPS} are needed."
        )
    interval = "" if np.isnan(scores["low"]) else f" ({100 * scores['low']:.0f} to {100 * scores['high']:.0f} %)"
    return (
        f"{100 * scores['value']:.0f} %{interval} of the heat lies in the predicted {subject}, as a mean over "
        f"{scores['n']:,} maps; of an even heat it would be {100 * scores['even']:.0f} %."
    )


def _scores(masses: Sequence[Mass], n_boot: int, seed: int) -> dict[str, Any]:
    scores: dict[str, Any] = {"n": len(masses), "patients": len({mass.patient for mass in masses})}
    for which in INSIDE:
        values = np.array([getattr(mass, which) for mass in masses], np.float64)
        even = np.array([getattr(mass, f"{which}_even") for mass in masses], np.float64)
        known = ~np.isnan(values)
        _, patient = np.unique([mass.patient for mass in masses], return_inverse=True) if masses else ([], known)
        _, patient = np.unique(patient[known], return_inverse=True)
        of_inside = share(values[known], patient, n_boot, seed).as_dict()
        scores[which] = {**of_inside, "n": int(known.sum()), "even": float(even[known].mean()) if known.any() else None}
    if masses and scores["patients"] < MIN_PATIENTS:
        scores["note"] = f"fewer than {MIN_PATIENTS} patients"
    return scores
