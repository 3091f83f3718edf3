"""Every score of a predictions table, each under any weighting of the patients: weights of one give the value, random
weights its resamples. Unknown targets are left out; a score that is not defined is NaN.

Each score equals scikit-learn's function of its name. Of a class it is that of the class against the rest; a macro
score is the mean over the classes and a micro score pools the predictions of all classes, as `average="macro"` and
"micro" do. What scikit-learn defines for several classes at once (accuracy, balanced accuracy, kappa, log loss, Brier
score) stands under `overall` in a multiclass table, and has no macro or micro form there, but that the balanced
accuracy, which is the mean recall, is a macro score too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions, probabilities
from finetune.evaluation.classification.reliability import BINS, gaps_per_patient, top_label
from finetune.evaluation.metrics.classify import CLASSIFY
from finetune.statistics import ranking
from finetune.statistics.ranking import Ranking
from finetune.statistics.shares import ratio

TOP_K = 5
ONLY_OVERALL = ("balanced_accuracy", "brier", "log_loss")
"""Scores of a class against the rest whose means over the classes are not the scores of that name."""


@dataclass
class Scores:
    """Scores under B weightings."""

    classes: dict[str, np.ndarray]
    """(K, B) for each metric."""
    micro: dict[str, np.ndarray]
    """(B,) for each metric: the predictions of all classes pooled."""
    overall: dict[str, np.ndarray]
    """(B,) for each metric of all classes together, which only a multiclass table has."""

    def macro(self) -> dict[str, np.ndarray]:
        """(B,) for each metric: the mean over the classes for which it is defined."""
        left_out = ONLY_OVERALL if self.overall else ()
        means = {name: mean_of_defined(values) for name, values in self.classes.items() if name not in left_out}
        return {**means, "balanced_accuracy": self.overall["balanced_accuracy"]} if self.overall else means


class Scorer:
    """Scores `predictions`, called with a weight for each of `n_patients` patients.

    Classes are ranked by their logit (multilabel) or probability (multiclass, one against the rest). A multilabel
    prediction is positive where its probability reaches `threshold`; a multiclass prediction is its most probable
    class, the first of equals. One-against-rest accuracy is left out for multiclass tables: with ten classes, always
    predicting no reaches 90 %.
    """

    def __init__(self, predictions: Predictions, threshold: float | np.ndarray = 0.5):
        self.predictions = predictions
        names, self.patient = np.unique(predictions.patients.astype(str), return_inverse=True)
        self.n_patients = len(names)
        self.truth = predictions.truth
        self.multiclass = predictions.kind == "multiclass"
        self.decisions = decide(predictions, threshold)
        self.ranks = predictions.probs if self.multiclass else predictions.logits
        self.sums = self._sums_per_patient()
        self.rankings = [
            self._ranking(self.truth[:, k], self.ranks[:, k], self.patient) for k in range(len(predictions.classes))
        ]
        self.pooled = self._ranking(
            self.truth.ravel(), self.ranks.ravel(), np.repeat(self.patient, len(predictions.classes))
        )
        probs = predictions.probs
        pairs = zip(self.truth.T, probs.T, strict=True)
        gaps = [gaps_per_patient(truth, prob, self.patient, self.n_patients) for truth, prob in pairs]
        self.gaps = scipy.sparse.vstack(gaps, format="csr")  # (BINS * K, P)
        self.overall_sums = self._overall_sums_per_patient() if self.multiclass else None

    def __call__(self, weight: np.ndarray) -> Scores:
        """Weights (P, B) -> scores."""
        counts = (self.sums @ weight).reshape(6, len(self.rankings), -1)  # (6, K, B)
        ranked = [r.scores(weight) for r in self.rankings]
        classes = {
            "auroc": np.stack([auroc for auroc, _ in ranked]),
            "average_precision": np.stack([average for _, average in ranked]),
            **self._of_counts(counts),
            "ece": calibration_error(self.gaps @ weight, counts[:4].sum(axis=0)),
        }
        auroc, average = self.pooled.scores(weight)
        micro = {"auroc": auroc, "average_precision": average, **self._of_counts(counts.sum(axis=1))}
        if not self.multiclass:
            return Scores(classes, micro, {})
        micro = {name: values for name, values in micro.items() if name not in ONLY_OVERALL}
        return Scores(classes, micro, self._overall(weight, mean_of_defined(classes["sensitivity"])))

    def values(self) -> Scores:
        """The scores themselves: B = 1, every sample counts once."""
        return self(np.ones((self.n_patients, 1)))

    def share_counts(self, k: int | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Per share of images of class `k` (None: all classes pooled): how many are correct, and of how many, for each
        patient (P,)."""
        classes = len(self.rankings)
        which = range(classes) if k is None else [k]
        tp, fp, fn, tn = (np.asarray(self.sums[[i * classes + j for j in which]].sum(axis=0)).ravel() for i in range(4))
        counts = share_counts(tp, fp, fn, tn)
        return {m: pair for m, pair in counts.items() if m != "accuracy" or not self.multiclass}

    def overall_counts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The same for the shares of a multiclass table that are of all classes together."""
        assert self.overall_sums is not None
        n, right, in_first = (row.toarray()[0] for row in self.overall_sums[0][:3])
        return {"accuracy": (right, n), f"top{TOP_K}_accuracy": (in_first, n)}

    def _of_counts(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        tp, fp, fn, tn, squared, loss = counts
        scores = {**rates(tp, fp, fn, tn), "brier": ratio(squared, tp + fp + fn + tn)}
        scores["log_loss"] = ratio(loss, tp + fp + fn + tn)
        if self.multiclass:
            del scores["accuracy"]
        return scores

    def _ranking(self, truth: np.ndarray, score: np.ndarray, patient: np.ndarray) -> Ranking:
        labelled = ~np.isnan(truth)
        return Ranking(truth[labelled], score[labelled], patient[labelled], self.n_patients)

    def _per_patient(self, values: np.ndarray) -> scipy.sparse.csr_matrix:
        """(N, M) -> (M, P). Sparse, as thousands of small dense products are slow where BLAS shares the processor."""
        rows = np.arange(len(self.patient))
        shape = (self.n_patients, len(self.patient))
        sums = scipy.sparse.csr_matrix((np.ones(len(rows)), (self.patient, rows)), shape=shape) @ values
        return scipy.sparse.csr_matrix(sums.T)

    def _sums_per_patient(self) -> scipy.sparse.csr_matrix:  # (6 * K, P)
        labelled, yes, no = ~np.isnan(self.truth), self.truth == 1, self.truth == 0
        probs = self.predictions.probs
        # log odds, not the probability: its logarithm stays right where the probability rounds to 0 or 1
        odds = log_odds(self.predictions.logits) if self.multiclass else self.predictions.logits
        loss = np.logaddexp(0, np.where(yes, -odds, odds))
        parts = (
            yes & self.decisions,
            no & self.decisions,
            yes & ~self.decisions,
            no & ~self.decisions,
            np.where(labelled, (probs - np.nan_to_num(self.truth)) ** 2, 0.0),
            np.where(labelled, loss, 0.0),
        )
        return self._per_patient(np.hstack(parts).astype(np.float64))

    def _overall_sums_per_patient(self) -> tuple[scipy.sparse.csr_matrix, ...]:
        labelled = ~np.isnan(self.truth).any(axis=1)
        truth = np.where(labelled[:, None], np.nan_to_num(self.truth), 0.0)
        answer = np.where(labelled[:, None], self.decisions, 0.0)
        logits, true = self.predictions.logits, truth.argmax(axis=1)
        if len(logits):
            loss = scipy.special.logsumexp(logits, axis=1) - np.take_along_axis(logits, true[:, None], 1)[:, 0]
        else:
            loss = np.zeros(0)
        squared = ((self.predictions.probs - truth) ** 2).sum(axis=1)
        columns = [labelled, (truth * answer).sum(axis=1), in_top(logits, true, TOP_K), loss, squared]
        singles = np.stack([np.where(labelled, column, 0.0) for column in columns], axis=1)
        self.top_gaps = gaps_per_patient(*top_label(self.predictions), self.patient, self.n_patients)
        return tuple(self._per_patient(part) for part in (singles, truth, answer))

    def _overall(self, weight: np.ndarray, mean_recall: np.ndarray) -> dict[str, np.ndarray]:
        assert self.overall_sums is not None
        (n, right, in_first, loss, squared), true, answered = (sums @ weight for sums in self.overall_sums)
        scores = {"accuracy": ratio(right, n), "balanced_accuracy": mean_recall}
        if len(self.predictions.classes) > TOP_K:
            scores[f"top{TOP_K}_accuracy"] = ratio(in_first, n)
        by_chance = ratio((true * answered).sum(axis=0), n**2)
        scores["kappa"] = ratio(scores["accuracy"] - by_chance, 1 - by_chance)
        scores |= {"brier": ratio(squared, n), "log_loss": ratio(loss, n)}
        return {**scores, "ece": calibration_error(self.top_gaps @ weight, n)}


def decide(predictions: Predictions, threshold: float | np.ndarray = 0.5) -> np.ndarray:
    """(N, K) of yes and no."""
    if predictions.kind == "multilabel":
        return predictions.probs >= threshold
    if np.ndim(threshold) or threshold != 0.5:
        raise FinetuneError(f"threshold={threshold}: a multiclass prediction is the most probable class and has none.")
    return predictions.logits.argmax(axis=1)[:, None] == np.arange(len(predictions.classes))


def rates(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> dict[str, np.ndarray]:
    """Scores from the four counts of predictions, each NaN where its denominator is 0."""
    shares = {name: ratio(right, whole) for name, (right, whole) in share_counts(tp, fp, fn, tn).items()}
    return {
        "accuracy": shares["accuracy"],
        "balanced_accuracy": (shares["sensitivity"] + shares["specificity"]) / 2,
        **shares,
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def share_counts(
    tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The shares among `rates`: numerator and denominator."""
    counts = {"tp": tp, "fp": fp, "fn": fn, "tn": tn}

    def total(keys: tuple[str, ...]) -> np.ndarray:
        return np.sum([counts[key] for key in keys], axis=0)

    return {name: (total(entry.right), total(entry.whole)) for name, entry in CLASSIFY.items() if entry.whole}


def calibration_error(gaps: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Summed truth less probability of each bin (BINS * K, B) and images (K, B) -> calibration error (K, B). Of all
    classes together (BINS, B) and (B,) -> (B,)."""
    return ratio(np.abs(gaps.reshape(*n.shape[:-1], BINS, n.shape[-1])).sum(axis=-2), n)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def in_top(logits: np.ndarray, true: np.ndarray, k: int) -> np.ndarray:
    """Whether the true class is among the `k` largest logits; of equals the later class counts as larger."""
    true_logit = np.take_along_axis(logits, true[:, None], axis=1) if len(logits) else logits[:, :1]
    later = np.arange(logits.shape[1]) > true[:, None]
    return ((logits > true_logit) | ((logits == true_logit) & later)).sum(axis=1) < k


def confusion(predictions: Predictions) -> np.ndarray:
    """(K, K) counts of a multiclass table: rows are the true class, columns the prediction."""
    truth, k = predictions.truth, len(predictions.classes)
    labelled = ~np.isnan(truth).any(axis=1)
    true, answer = truth[labelled].argmax(axis=1), decide(predictions)[labelled].argmax(axis=1)
    return np.bincount(true * k + answer, minlength=k * k).reshape(k, k)


def macro_auroc(target: np.ndarray, logits: np.ndarray, kind: str = "multilabel") -> float:
    """Mean AUROC over the classes that have positives and negatives; NaN where none has.

    target and logits are (N, K); a multiclass logit is meaningful only relative to the others of its row, so there
    the probabilities are ranked.
    """
    ranks = probabilities(logits, kind) if kind == "multiclass" else np.asarray(logits, np.float64)
    target = np.asarray(target, np.float64)
    hard = np.where((target == 0) | (target == 1), target, np.nan)
    aurocs = [ranking.auroc(hard[:, k], ranks[:, k]) for k in range(target.shape[1])]
    return float(mean_of_defined(np.array(aurocs)))


def log_odds(logits: np.ndarray) -> np.ndarray:
    """Multiclass logits (N, K) -> log(p / (1 - p)) of each class, right also where p rounds to 0 or 1."""
    if not len(logits):
        return logits
    total = scipy.special.logsumexp(logits, axis=1, keepdims=True)
    top = logits.argmax(axis=1)[:, None]
    others = logits.copy()
    np.put_along_axis(others, top, -np.inf, axis=1)
    rest = scipy.special.logsumexp(others, axis=1, keepdims=True)  # all but the top class
    odds = logits - total
    with np.errstate(divide="ignore"):  # only for the top class, replaced below
        odds = odds - np.log1p(-np.exp(np.minimum(odds, 0.0)))
    np.put_along_axis(odds, top, np.take_along_axis(logits, top, 1) - rest, axis=1)
    return odds
