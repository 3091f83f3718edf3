"""Scores of the user's own: a function of targets and probabilities, with an interval from resampled patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions
from finetune.statistics import intervals

Metric = Callable[[np.ndarray, np.ndarray], float]
"""(targets (N, K) with NaN for unknown, probabilities (N, K)) -> a number; NaN where it is not defined."""

RESAMPLES = 400
"""The maximum: a Python function is slower than the scores that are computed for many resamples at once."""
MIN_PATIENTS = 10
"""With fewer patients resampling is unreliable, and the interval is left out."""


def scores(
    predictions: Predictions, metrics: Mapping[str, Metric], *, n_boot: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Name -> {value, low, high}; low and high are None, with a `reason`, where there is no interval."""
    _, patient = np.unique(predictions.patients, return_inverse=True)
    rows = np.split(np.argsort(patient, kind="stable"), np.cumsum(np.bincount(patient))[:-1])
    return {
        name: _score(name, metric, predictions.targets, predictions.probs, rows, min(n_boot, RESAMPLES), seed)
        for name, metric in metrics.items()
    }


def _score(
    name: str, metric: Metric, target: np.ndarray, prob: np.ndarray, rows: list[np.ndarray], n_boot: int, seed: int
) -> dict[str, Any]:
    value = _call(name, metric, target, prob)
    result: dict[str, Any] = {"value": value, "low": None, "high": None}
    if value is None:
        return {**result, "reason": "not defined on these images"}
    if len(rows) < MIN_PATIENTS:
        return {**result, "reason": f"fewer than {MIN_PATIENTS} patients"}
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n_boot):
        resampled_rows = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        samples.append(_call(name, metric, target[resampled_rows], prob[resampled_rows]))
    defined = np.array([sample for sample in samples if sample is not None])
    if len(defined) < 2 or defined.min() == defined.max():
        return {**result, "reason": "the same in every resample of the patients"}
    interval = intervals.percentile(value, defined)
    return {"value": value, "low": interval.low, "high": interval.high}


def _call(name: str, metric: Metric, target: np.ndarray, prob: np.ndarray) -> float | None:
    """The metric as a number, None where it is not defined.

    Raises:
        FinetuneError: it fails, or gives something else than one number.
    """
    where = f"evaluation.metrics.{name}"
    try:
        value = metric(target.copy(), prob.copy())
    except Exception as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise FinetuneError(f"{where} fails with {type(error).__name__} on {len(target)} images: {line}") from error
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise FinetuneError(f"{where} gives {type(value).__name__}, it must give one number.") from None
    return number if math.isfinite(number) else None
