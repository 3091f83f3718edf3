"""How well probabilities mean what they say: binned against what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from finetune.evaluation.classification.predictions import Predictions
from finetune.statistics import intervals
from finetune.statistics.intervals import Interval

BINS = 15  # as Guo et al. (2017), "On Calibration of Modern Neural Networks"


@dataclass
class Bins:
    """Bins of equal width over the probability; those without samples are left out."""

    count: np.ndarray
    said: np.ndarray
    """Mean probability in each bin."""
    happened: np.ndarray
    """Share of positives in each bin."""

    def error(self) -> float:
        """Expected calibration error: the mean distance of said and happened, bins weighted by their samples."""
        total = self.count.sum()
        return float((self.count * np.abs(self.said - self.happened)).sum() / total) if total else float("nan")


def binned(target: np.ndarray, prob: np.ndarray, bins: int = BINS) -> Bins:
    """target (n,) of 1, 0 and NaN, prob (n,) -> bins. What lies on an edge belongs to the bin above, 1 to the last."""
    known = ~np.isnan(target)
    target, prob = target[known], prob[known]
    number = np.minimum((prob * bins).astype(int), bins - 1)
    count = np.bincount(number, minlength=bins)
    some = count > 0
    said = np.bincount(number, prob, minlength=bins)[some] / count[some]
    happened = np.bincount(number, target, minlength=bins)[some] / count[some]
    return Bins(count[some], said, happened)


def gaps_per_patient(target: np.ndarray, prob: np.ndarray, patient: np.ndarray, n_patients: int) -> sparse.csr_matrix:
    """(n,) each -> (BINS, P): per bin and patient the sum of target less probability. Unknown targets are left out."""
    known = ~np.isnan(target)
    number = np.minimum((prob[known] * BINS).astype(int), BINS - 1)
    gaps = target[known] - prob[known]
    return sparse.csr_matrix((gaps, (number, patient[known])), shape=(BINS, n_patients))


def interval(value: float, samples: np.ndarray, chance: float, patients: int) -> Interval:
    """The interval of a calibration error from its resamples and what it is `by_chance`.

    Resamples lie above the value, as drawing twice makes bins look worse than they are; so they are mirrored, and the
    lower limit is 0 where the value is one that chance makes of right probabilities. It held the truth in 87 to 97 %
    of simulated worlds (100 to 1,000 patients, one or three images each), that of the plain resamples in 0 to 90 %.
    """
    if np.isnan(value) or (why := intervals.too_few(patients)):
        return Interval(value, reason="" if np.isnan(value) else why)
    mirrored = intervals.mirrored(value, samples)
    if np.isnan(mirrored.low) or value > chance:
        return mirrored
    return intervals.checked(Interval(value, 0.0, mirrored.high))


def by_chance(gaps: sparse.csr_matrix, images: np.ndarray, seed: int, draws: int = 200) -> np.ndarray:
    """Gaps (BINS * M, P) and images (M,) -> the calibration error (M,) below which 97.5 % lie where every probability
    means what it says: the patients' own gaps, each patient's with a sign drawn at random."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(gaps.shape[1], draws))
    errors = np.abs((gaps @ signs).reshape(len(images), BINS, draws)).sum(axis=1) / np.maximum(images, 1)[:, None]
    return np.asarray(np.quantile(errors, 0.975, axis=1))


def top_label(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Multiclass: whether the answer was right (N,; NaN where unknown) and how sure it was (N,)."""
    truth, probs = predictions.truth, predictions.probs
    answer = predictions.logits.argmax(axis=1)[:, None]
    return np.take_along_axis(truth, answer, 1)[:, 0], np.take_along_axis(probs, answer, 1)[:, 0]


def before_after(
    predictions: Predictions, calibrated: np.ndarray, n_boot: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Per class (and for `overall`, multiclass: the most probable class) the calibration error, Brier score and log
    loss of the network's probabilities, of the calibrated ones (N, K), and their differences, each with its interval.

    With the bins of both, to be drawn. Both are scored on the same resamples of the patients, so that what the table
    of scores says of the network's probabilities stands here too. A class without calibrated probabilities is left out.
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
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in parts}
    for weight in intervals.resamples(len(names), n_boot if len(names) else 0, seed):
        for name, (before, after) in parts.items():
            drawn[name].append(np.stack([before(weight), after(weight)]))
    found: dict[str, dict[str, Any]] = {}
    for name, (before, after) in parts.items():
        once = np.ones((len(names), 1))
        value = np.stack([before(once), after(once)])[:, :, 0]  # (2, 3)
        resampled = np.concatenate(drawn[name], axis=2) if drawn[name] else np.zeros((2, 3, 0))
        found[name] = {}
        for i, (when, losses) in enumerate({"before": before, "after": after}.items()):
            each = {m: losses.interval(m, float(value[i, j]), resampled[i, j], seed) for j, m in enumerate(LOSSES)}
            found[name][when] = {metric: interval.as_dict() for metric, interval in each.items()}
            found[name][when]["bins"] = vars(losses.bins)
        change, changes = value[1] - value[0], resampled[1] - resampled[0]
        found[name]["difference"] = {
            metric: intervals.difference(float(change[j]), changes[j], patients=before.patients).as_dict()
            for j, metric in enumerate(LOSSES)
        }
    return found


LOSSES = ("ece", "brier", "log_loss")


class _Losses:
    """Calibration error, Brier score and log loss under weights of the patients."""

    def __init__(
        self, said: np.ndarray, happened: np.ndarray, brier: np.ndarray, truly: np.ndarray, patient: np.ndarray, p: int
    ):
        """(n,) each: said is the probability that is binned, truly the one of what was true."""
        loss = -np.log(np.maximum(truly, np.finfo(np.float64).tiny))
        self.bins = binned(happened, said)
        self.gaps = gaps_per_patient(happened, said, patient, p)
        rows = np.repeat([0, 1, 2], len(said))
        values = np.r_[brier, loss, np.ones(len(said))]
        self.sums = sparse.csr_matrix((values, (rows, np.tile(patient, 3))), shape=(3, p))
        self.patients = len(np.unique(patient))

    @classmethod
    def binary(cls, target: np.ndarray, prob: np.ndarray, patient: np.ndarray, p: int) -> _Losses:
        known = ~np.isnan(target)
        target, prob = target[known], prob[known]
        return cls(prob, target, (target - prob) ** 2, np.where(target == 1, prob, 1 - prob), patient[known], p)

    @classmethod
    def multiclass(cls, truth: np.ndarray, probs: np.ndarray, patient: np.ndarray, p: int) -> _Losses:
        known = ~np.isnan(truth).any(axis=1)
        truth, probs, patient = truth[known], probs[known], patient[known]
        top = probs.argmax(axis=1)[:, None]
        sure, right = (np.take_along_axis(values, top, 1)[:, 0] for values in (probs, truth))
        brier = ((truth - probs) ** 2).sum(axis=1)
        return cls(sure, right, brier, (probs * truth).sum(axis=1), patient, p)

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
