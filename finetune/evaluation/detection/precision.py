"""COCO's average precision of one class under any number of weightings of the patients, from one sort."""

from __future__ import annotations

import numpy as np
import scipy

from finetune.evaluation.detection.matching import RIGHT, WRONG

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision, to the last bit: a recall of 0.07 does not reach 7 * 0.01."""
TINY = np.finfo(np.float64).tiny


class AveragePrecision:
    """COCO's average precision: the mean over 101 recalls of the best precision at that recall or a higher one.

    A detection that is wrong at every threshold only adds to the false positives below it. So only those that are right
    (or ignored) at some threshold are steps; the others are counted between them, per patient.

    Args:
        status: (D, T) of RIGHT, WRONG, IGNORED.
        score: (D,)
        patient: (D,) number of each detection's patient, below `n_patients`.
        truths: (P,) true boxes of each patient that are to be found.
    """

    def __init__(self, status: np.ndarray, score: np.ndarray, patient: np.ndarray, truths: np.ndarray):
        order = np.argsort(-score, kind="stable")
        status, patient = status[order], patient[order]
        step = (status != WRONG).any(axis=1)
        steps, self.truths = int(step.sum()), truths.astype(np.float64)
        below = (np.cumsum(step) - step)[~step]  # the next step
        shape = (steps + 1, len(truths))
        self.between = scipy.sparse.csr_matrix((np.ones(len(below)), (below, patient[~step])), shape=shape)[:steps]
        self.patient = patient[step]
        self.right = (status[step] == RIGHT).T.astype(np.float64)  # (T, steps)
        self.wrong = (status[step] == WRONG).T.astype(np.float64)

    def scores(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patient weights (P, B) -> average precision (T, B) and recall (T, B); NaN without true boxes."""
        truths = self.truths @ weight  # (B,)
        thresholds, resamples = len(self.right), weight.shape[1]
        precision = np.zeros((thresholds, resamples))
        recall = np.zeros((thresholds, resamples))
        if len(self.patient):
            drawn = np.ascontiguousarray(weight[self.patient].T)  # (B, steps)
            others = np.cumsum(np.ascontiguousarray((self.between @ weight).T), axis=1)
            for t in range(thresholds):
                correct = np.cumsum(drawn * self.right[t], axis=1)
                false = others + np.cumsum(drawn * self.wrong[t], axis=1) if self.wrong[t].any() else others
                best = correct / np.maximum(correct + false, TINY)
                best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
                recall[t] = correct[:, -1]
                correct /= np.maximum(truths, TINY)[:, None]
                for b in range(resamples):
                    place = np.searchsorted(correct[b], RECALLS)
                    precision[t, b] = best[b, place[place < len(self.patient)]].sum() / len(RECALLS)
        recall /= np.maximum(truths, TINY)
        return np.where(truths > 0, precision, np.nan), np.where(truths > 0, recall, np.nan)
