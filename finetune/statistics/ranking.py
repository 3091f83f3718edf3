"""Scores that depend only on the order of the predictions: AUROC, average precision, and the two curves behind them."""

from __future__ import annotations

import numpy as np
import scipy

STEPS_AT_ONCE = 512  # times 32 resamples they stay in the processor's cache: 5 times faster than all at once
TINY = np.finfo(np.float64).tiny  # where nothing was drawn yet there is 0 / TINY to add


class Ranking:
    """Predictions of one class, sorted once; AUROC and average precision for any number of weightings of the patients.

    Going down the sorted predictions, only values that at least one positive has can change either score. So the
    samples are counted into such steps: the positives of each step, the negatives tied with them, and the negatives
    between one step and the next. Counts are per patient, so a step's weight under B resamples is one sparse product.

    Args:
        target: (n,) of 1 and 0, known samples only.
        score: (n,) higher means more likely positive.
        patient: (n,) number of each sample's patient, below `n_patients`.
    """

    def __init__(self, target: np.ndarray, score: np.ndarray, patient: np.ndarray, n_patients: int):
        order = np.argsort(-score, kind="stable")
        score, patient, positive = score[order], patient[order], target[order] == 1
        # number of each sample's value among the distinct ones
        tie = np.cumsum(np.r_[False, score[1:] != score[:-1]]) if len(score) else np.zeros(0, int)
        has_positive = np.zeros(tie[-1] + 1 if len(tie) else 0, bool)
        has_positive[tie[positive]] = True
        n_steps = int(has_positive.sum())
        step = (np.cumsum(has_positive) - has_positive)[tie]  # the own step, or the next one below
        tied = has_positive[tie]

        def count(keep: np.ndarray) -> scipy.sparse.csr_matrix:
            """The row past the last step holds the negatives below it."""
            shape = (n_steps + 1, n_patients)
            return scipy.sparse.csr_matrix((np.ones(keep.sum()), (step[keep], patient[keep])), shape=shape)

        counts = [count(positive), count(~positive & ~tied), count(~positive & tied)]
        starts = range(0, n_steps, STEPS_AT_ONCE)
        self.blocks = [[matrix[i : min(i + STEPS_AT_ONCE, n_steps)] for matrix in counts] for i in starts]
        self.totals = scipy.sparse.csr_matrix(
            [np.bincount(patient[keep], minlength=n_patients) for keep in (positive, ~positive)], dtype=np.float64
        )

    def scores(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patient weights (P, B) -> AUROC (B,) and average precision (B,); NaN without positives or negatives."""
        wrong, average, true_so_far, above = np.zeros((4, weight.shape[1]))
        for positives, between, tied in self.blocks:
            true = positives @ weight  # (steps, B) weight of the positives at each step
            strictly = between @ weight
            strictly[0] += above
            np.cumsum(strictly, axis=0, out=strictly)  # negatives above each step
            upto, half = strictly, strictly  # with those tied, with half of those tied
            if tied.nnz:
                tied_weight = tied @ weight
                upto = np.cumsum(tied_weight, axis=0)
                half = strictly + upto - tied_weight / 2
                upto += strictly
            wrong += np.einsum("sb,sb->b", true, half)
            so_far = np.cumsum(true, axis=0)
            so_far += true_so_far
            average += np.einsum("sb,sb,sb->b", true, so_far, 1 / np.maximum(so_far + upto, TINY))
            true_so_far, above = so_far[-1], upto[-1]
        positives, negatives = self.totals @ weight
        pairs = positives * negatives
        with np.errstate(invalid="ignore", divide="ignore"):
            return (pairs - wrong) / pairs, np.where(pairs > 0, average / positives, np.nan)


def auroc(target: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Share of (positive, negative) pairs in the right order, ties counting half. Unknown targets are left out."""
    return _single(target, score, weight)[0]


def average_precision(target: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean precision over the positives, each at its own threshold. Unknown targets are left out."""
    return _single(target, score, weight)[1]


def _single(target: np.ndarray, score: np.ndarray, weight: np.ndarray | None) -> tuple[float, float]:
    labelled = ~np.isnan(target)
    n = int(labelled.sum())
    weight = np.ones(n) if weight is None else np.asarray(weight, np.float64)[labelled]
    scores = Ranking(target[labelled], score[labelled], np.arange(n), n).scores(weight[:, None])
    return float(scores[0][0]), float(scores[1][0])


def curves(target: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(true positives, false positives) at every distinct threshold, from strict to lax, each beginning at 0."""
    labelled = ~np.isnan(target)
    target, score = target[labelled], score[labelled]
    order = np.argsort(-score, kind="stable")
    score, target = score[order], target[order]
    last = np.r_[np.flatnonzero(np.diff(score)), len(score) - 1] if len(score) else np.zeros(0, int)
    true = np.cumsum(target)[last]
    return np.r_[0.0, true], np.r_[0.0, last + 1 - true]
