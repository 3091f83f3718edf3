"""Reliability of probabilities: mean confidence and observed rate per bin, and the calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from finetune.evaluation.classification.predictions import Predictions
from finetune.statistics import intervals
from finetune.statistics.intervals import Interval

BINS = 15  # as Guo et al. (2017), "On Calibration of Modern Neural Networks"


@dataclass
class Bins:
    """Bins of equal width over the probability; those without samples are left out."""

    count: np.ndarray
    mean_confidence: np.ndarray
    """Mean probability in each bin."""
    observed_rate: np.ndarray
    """Share of positives in each bin."""

    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence and rate, bins weighted by their samples."""
        total = self.count.sum()
        return (
            float((self.count * np.abs(self.mean_confidence - self.observed_rate)).sum() / total)
            if total
            else float("nan")
        )


def binned(target: np.ndarray, prob: np.ndarray, bins: int = BINS) -> Bins:
    """target (n,) of 1, 0 and NaN, prob (n,) -> bins. A value on an edge belongs to the bin above, 1 to the last."""
    labelled = ~np.isnan(target)
    target, prob = target[labelled], prob[labelled]
    bin_number = np.minimum((prob * bins).astype(int), bins - 1)
    count = np.bincount(bin_number, minlength=bins)
    filled = count > 0
    mean_confidence = np.bincount(bin_number, prob, minlength=bins)[filled] / count[filled]
    observed_rate = np.bincount(bin_number, target, minlength=bins)[filled] / count[filled]
    return Bins(count[filled], mean_confidence, observed_rate)


def gaps_per_patient(
    target: np.ndarray, prob: np.ndarray, patient: np.ndarray, n_patients: int
) -> scipy.sparse.csr_matrix:
    """(n,) each -> (BINS, P): per bin and patient the sum of target less probability. Unknown targets are left out."""
    labelled = ~np.isnan(target)
    bin_number = np.minimum((prob[labelled] * BINS).astype(int), BINS - 1)
    gaps = target[labelled] - prob[labelled]
    return scipy.sparse.csr_matrix((gaps, (bin_number, patient[labelled])), shape=(BINS, n_patients))


def interval(value: float, samples: np.ndarray, chance: float, patients: int) -> Interval:
    """The interval of a calibration error from its resamples and what it is `by_chance`.

    Resamples lie above the value, as drawing twice makes bins look worse than they are; so they are mirrored, and the
    lower limit is 0 where correct probabilities reach the value by chance. It covered the truth in 87 to 97 % of
    simulated data sets (100 to 1,000 patients, one or three images each); plain resamples covered it in 0 to 90 %.
    """
    if np.isnan(value) or (why := intervals.too_few(patients)):
        return Interval(value, reason="" if np.isnan(value) else why)
    mirrored = intervals.mirrored(value, samples)
    if np.isnan(mirrored.low) or value > chance:
        return mirrored
    return intervals.checked(Interval(value, 0.0, mirrored.high))


def by_chance(gaps: scipy.sparse.csr_matrix, images: np.ndarray, seed: int, draws: int = 200) -> np.ndarray:
    """Gaps (BINS * M, P) and images (M,) -> the 97.5 % quantile of the calibration error (M,) if every probability were
    correct: the patients' gaps, each with a random sign."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(gaps.shape[1], draws))
    errors = np.abs((gaps @ signs).reshape(len(images), BINS, draws)).sum(axis=1) / np.maximum(images, 1)[:, None]
    return np.asarray(np.quantile(errors, 0.975, axis=1))


def top_label(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Multiclass: whether the prediction is correct (N,; NaN where unknown) and its probability (N,)."""
    truth, probs = predictions.truth, predictions.probs
    answer = predictions.logits.argmax(axis=1)[:, None]
    return np.take_along_axis(truth, answer, 1)[:, 0], np.take_along_axis(probs, answer, 1)[:, 0]


def before_after(
    predictions: Predictions, calibrated: np.ndarray, n_boot: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Per class (and for `overall`, multiclass: the most probable class) the calibration error, Brier score and log
    loss of the network's probabilities, of the calibrated ones (N, K), and their differences, each with its interval.

    With the bins of both for a figure. Both are scored on the same resamples of the patients, so the values for the
    network's probabilities equal those in the table of scores. A class without calibrated probabilities is left out.
    """
    names, patient = np.unique(predictions.patients.astype(str), return_inverse=True)
    truth, probs = predictions.truth, predictions.probs
    parts: dict[str, tuple[_Losses, _Losses]] = {}
    for k, name in enumerate(predictions.classes):
        if not np.isnan(calibrated[:, k]).any():
            pair = [_Losses.binary(truth[:, k], p[:, k], patient, len(names)) for p in (probs, calibrated)]
            parts[name] = (pair[0], pair[1])
    if predictions.kind == "multiclass" and not np.isnan(calibrated).any():
        pair = [_Losses.multiclass(truth, p, patient, len(names)) for p in (probs, calibrated)]
        parts["overall"] = (pair[0], pair[1])
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in parts}
    for weight in intervals.resamples(len(names), n_boot if len(names) else 0, seed):
        for name, (before, after) in parts.items():
            chunks[name].append(np.stack([before(weight), after(weight)]))
    result: dict[str, dict[str, Any]] = {}
    for name, (before, after) in parts.items():
        once = np.ones((len(names), 1))
        value = np.stack([before(once), after(once)])[:, :, 0]  # (2, 3)
        resampled = np.concatenate(chunks[name], axis=2) if chunks[name] else np.zeros((2, 3, 0))
        result[name] = {}
        for i, (when, losses) in enumerate({"before": before, "after": after}.items()):
            scores = {m: losses.interval(m, float(value[i, j]), resampled[i, j], seed) for j, m in enumerate(LOSSES)}
            result[name][when] = {metric: interval.as_dict() for metric, interval in scores.items()}
            result[name][when]["bins"] = vars(losses.bins)
        change, changes = value[1] - value[0], resampled[1] - resampled[0]
        result[name]["difference"] = {
            metric: intervals.difference(float(change[j]), changes[j], patients=before.patients).as_dict()
            for j, metric in enumerate(LOSSES)
        }
    return result


LOSSES = ("ece", "brier", "log_loss")
"""The scores that a calibration may change, in the order of the table before and after it."""


class _Losses:
    """Calibration error, Brier score and log loss under weights of the patients."""

    def __init__(
        self,
        confidence: np.ndarray,
        outcome: np.ndarray,
        brier: np.ndarray,
        prob_of_truth: np.ndarray,
        patient: np.ndarray,
        p: int,
    ):
        """(n,) each: `confidence` is the probability that is binned, `prob_of_truth` that of the true class."""
        loss = -np.log(np.maximum(prob_of_truth, np.finfo(np.float64).tiny))
        self.bins = binned(outcome, confidence)
        self.gaps = gaps_per_patient(outcome, confidence, patient, p)
        rows = np.repeat([0, 1, 2], len(confidence))
        values = np.r_[brier, loss, np.ones(len(confidence))]
        self.sums = scipy.sparse.csr_matrix((values, (rows, np.tile(patient, 3))), shape=(3, p))
        self.patients = len(np.unique(patient))

    @classmethod
    def binary(cls, target: np.ndarray, prob: np.ndarray, patient: np.ndarray, p: int) -> _Losses:
        labelled = ~np.isnan(target)
        target, prob = target[labelled], prob[labelled]
        return cls(prob, target, (target - prob) ** 2, np.where(target == 1, prob, 1 - prob), patient[labelled], p)

    @classmethod
    def multiclass(cls, truth: np.ndarray, probs: np.ndarray, patient: np.ndarray, p: int) -> _Losses:
        labelled = ~np.isnan(truth).any(axis=1)
        truth, probs, patient = truth[labelled], probs[labelled], patient[labelled]
        top = probs.argmax(axis=1)[:, None]
        confidence, correct = (np.take_along_axis(values, top, 1)[:, 0] for values in (probs, truth))
        brier = ((truth - probs) ** 2).sum(axis=1)
        return cls(confidence, correct, brier, (probs * truth).sum(axis=1), patient, p)

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        """Weights (P, B) -> (3, B), NaN where nobody was drawn."""
        brier, loss, n = self.sums @ weight
        losses = np.stack([np.abs(self.gaps @ weight).sum(axis=0), brier, loss])
        return np.divide(losses, n, out=np.full(losses.shape, np.nan), where=n > 0)

    def interval(self, metric: str, value: float, samples: np.ndarray, seed: int) -> Interval:
        """That of one of LOSSES."""
        if metric == "ece":
            chance = by_chance(self.gaps, np.array([self.sums[2].sum()]), seed)
            return interval(value, samples, float(chance[0]), self.patients)
        return intervals.resampled(metric, value, samples, self.patients)
