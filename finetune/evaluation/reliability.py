"""How well probabilities mean what they say: binned against what happened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.evaluation.predictions import Predictions

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


def top_label(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Multiclass: whether the answer was right (N,; NaN where unknown) and how sure it was (N,)."""
    truth, probs = predictions.truth, predictions.probs
    answer = predictions.logits.argmax(axis=1)[:, None]
    return np.take_along_axis(truth, answer, 1)[:, 0], np.take_along_axis(probs, answer, 1)[:, 0]
