"""Free-response ROC (Bunch et al., 1977): how many true boxes are found at how many false positives per image.

The mean of the sensitivities at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image is the score of LUNA16 (Setio et
al., 2017, "competition performance metric") and, without 1/8, of CAMELYON16 (Ehteshami Bejnordi et al., 2017). Their
programs interpolate between thresholds; here a sensitivity is one that a threshold reaches, so it is slightly lower.
"""

from __future__ import annotations

import numpy as np
import scipy

from finetune.evaluation.detection.matching import IGNORED, RIGHT

LEVELS = 2.0 ** np.arange(-3, 4)
"""1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image."""
GRID = 2.0 ** (np.arange(-12, 13) / 4)
"""Points of the curve, LEVELS among them."""


class Froc:
    """Sensitivity at numbers of false positives per image.

    A threshold lies between two different scores, so detections of the same score count together. The sensitivity at a
    level is the highest at which the false positives per image do not exceed it.

    Args:
        status, score, patient: (D,) of RIGHT, WRONG, IGNORED; scores; numbers of the patients, below P.
        truths, images: (P,) true boxes to be found and images of each patient.
    """

    def __init__(
        self, status: np.ndarray, score: np.ndarray, patient: np.ndarray, truths: np.ndarray, images: np.ndarray
    ):
        order = np.argsort(-score, kind="stable")
        order = order[status[order] != IGNORED]
        score, patient, right = score[order], patient[order], status[order] == RIGHT
        tie = np.cumsum(np.r_[False, score[1:] != score[:-1]]) if len(score) else np.zeros(0, int)
        is_step = np.zeros(tie[-1] + 1 if len(tie) else 0, bool)
        is_step[tie[right]] = True
        step = (np.cumsum(is_step) - is_step)[tie]  # that of its score, or the next below
        steps = int(is_step.sum())
        self.truths, self.images = truths.astype(np.float64), images.astype(np.float64)

        def count(rows: np.ndarray) -> scipy.sparse.csr_matrix:
            shape = (steps + 1, len(truths))
            return scipy.sparse.csr_matrix((np.ones(rows.sum()), (step[rows], patient[rows])), shape=shape)[:steps]

        self.right, self.wrong = count(right), count(~right)

    def sensitivity(self, levels: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Levels (L,) and patient weights (P, B) -> (L, B); NaN without true boxes."""
        truths, images = self.truths @ weight, self.images @ weight
        correct = np.cumsum(np.ascontiguousarray((self.right @ weight).T), axis=1)
        false = np.cumsum(np.ascontiguousarray((self.wrong @ weight).T), axis=1)
        correct = np.concatenate([np.zeros((weight.shape[1], 1)), correct], axis=1)
        result = np.full((len(levels), weight.shape[1]), np.nan)
        for b in np.flatnonzero(truths > 0):
            # 1e-9: false positives per image that equal the level but for rounding
            place = np.searchsorted(false[b], levels * images[b] * (1 + 1e-9), side="right")
            result[:, b] = correct[b, place] / truths[b]
        return result
