"""Operating points: thresholds fitted to a criterion on val, stored in the model file, applied unchanged to test.

A threshold is a value of `prob_<class>`, which is never calibrated; from it on an image is called positive. Among the
thresholds that meet the criterion on val, the one with the best other side is taken: the highest specificity for a
required sensitivity, the highest sensitivity for a required specificity or PPV. It lies halfway between two predicted
probabilities. A criterion met on val may be missed on test: with few patients in val the threshold is itself uncertain,
and the intervals on test do not include that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import rates, share_counts
from finetune.evaluation.classification.summary import Support, with_intervals, with_reasons
from finetune.statistics import intervals
from finetune.statistics.ranking import curves
from finetune.statistics.shares import ratio

NAMED = ("youden", "f1")
GOALS = ("sensitivity", "specificity", "ppv", "cost")
METRICS = ("sensitivity", "specificity", "ppv", "npv", "f1", "accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class Criterion:
    """What a threshold is fitted to."""

    goal: str
    """youden (sensitivity + specificity), f1, or at least a sensitivity, specificity or ppv; or the least cost."""
    value: float | None = None
    """The sensitivity, specificity or PPV; for cost how many false alarms a missed positive is worth."""

    @classmethod
    def read(cls, name: str, value: Any) -> Criterion:
        """From the configuration: youden, f1, or one of {sensitivity: 0.9}, {specificity:}, {ppv:}, {cost: 5}."""
        where = f"evaluation.operating_points.{name}={value}"
        if value in NAMED:
            return cls(str(value))
        forms = "youden, f1, {sensitivity: 0.9}, {specificity: 0.9}, {ppv: 0.5} or {cost: 5}"
        if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in GOALS:
            raise FinetuneError(f"{where} is not understood. Write {forms}.")
        goal, number = next(iter(value.items()))
        if not isinstance(number, int | float) or isinstance(number, bool) or not number > 0:
            raise FinetuneError(f"{where}: {goal} must be a number above 0.")
        if goal != "cost" and number >= 1:
            raise FinetuneError(f"{where}: {goal} must lie between 0 and 1, such as 0.9.")
        return cls(str(goal), float(number))

    def __str__(self) -> str:
        if self.value is None:
            return {"youden": "most sensitivity + specificity", "f1": "most F1"}[self.goal]
        if self.goal == "cost":
            return f"least cost, a missed positive as {self.value:g} false alarms"
        if self.goal == "fixed":
            return f"a threshold of {self.value:g}, chosen for no use"
        return f"{'PPV' if self.goal == 'ppv' else self.goal} of {self.value:g}"


def best_threshold(target: np.ndarray, prob: np.ndarray, criterion: Criterion) -> float | None:
    """The threshold for (n,) probabilities; None if no threshold meets the criterion. Unknown targets are left out."""
    true, false = curves(target, prob)
    values = np.unique(prob[~np.isnan(target)])[::-1]
    positives, negatives = true[-1], false[-1]
    if not positives or not negatives:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = true / positives, 1 - false / negatives
        ppv, f1 = true / (true + false), 2 * true / (true + false + positives)
    if criterion.goal in NAMED:
        merit = sensitivity + specificity if criterion.goal == "youden" else f1
        fulfilled = np.ones(len(true), bool)
    elif criterion.goal == "cost":
        assert criterion.value is not None
        merit, fulfilled = -(criterion.value * (positives - true) + false), np.ones(len(true), bool)
    elif criterion.goal == "sensitivity":
        merit, fulfilled = specificity, sensitivity >= criterion.value
    elif criterion.goal == "specificity":
        merit, fulfilled = sensitivity, specificity >= criterion.value
    else:  # with few positive calls any PPV can be reached
        merit, fulfilled = sensitivity, (ppv >= criterion.value) & (true + false >= intervals.MIN_PATIENTS)
    fulfilled &= np.r_[values[0] < 1, np.ones(len(values), bool)]  # above a probability of 1 there is no threshold
    if not fulfilled.any():
        return None
    merit = np.where(fulfilled, merit, -np.inf)
    best = np.flatnonzero(merit == merit.max())
    # of equals: for specificity and PPV the one with fewer false alarms, else the one that finds more positives
    i = int(best[0] if criterion.goal in ("specificity", "ppv") else best[-1])
    upper, lower = (1.0 if i == 0 else values[i - 1]), (values[i] if i < len(values) else 0.0)
    middle = (upper + lower) / 2
    return float(middle if lower < middle <= upper else upper)


def fit_operating_points(
    predictions: Predictions, criteria: Mapping[str, Criterion], split: str = "val"
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Per operating point {goal, value, thresholds}, in plain values for the model file; and notes in sentences.

    A class with fewer than 10 positive or 10 negative patients gets no threshold.
    """
    people, truth, probs = predictions.patients.astype(str), predictions.truth, predictions.probs
    few = [
        name
        for name, column in zip(predictions.classes, truth.T, strict=True)
        if min(len(np.unique(people[column == side])) for side in (0, 1)) < intervals.MIN_PATIENTS
    ]
    points, notes = {}, []
    if few and criteria:
        notes.append(
            f"{split} has fewer than {intervals.MIN_PATIENTS} patients with or without {', '.join(few)}: "
            "no operating point."
        )
    for point, criterion in criteria.items():
        thresholds_or_none = {
            name: best_threshold(truth[:, k], probs[:, k], criterion)
            for k, name in enumerate(predictions.classes)
            if name not in few
        }
        thresholds = {name: threshold for name, threshold in thresholds_or_none.items() if threshold is not None}
        if unmet := [name for name in thresholds_or_none if name not in thresholds]:
            notes.append(f"No threshold gives a {criterion} in {split}: {', '.join(unmet)}.")
        if thresholds:
            points[point] = {"goal": criterion.goal, "value": criterion.value, "split": split, "thresholds": thresholds}
    return points, notes


def decision_thresholds(points: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{class: {threshold, point}}: the `prob_<class>` from which a multilabel prediction is positive, wherever one
    threshold is needed (decisions, worst errors, selective prediction). It is that of the first operating point that
    has one for the class, else 0.5, whose `point` is None."""
    decided: dict[str, dict[str, Any]] = {}
    for name in classes:
        point = next((p for p, about in points.items() if name in about["thresholds"]), None)
        threshold = 0.5 if point is None else float(points[point]["thresholds"][name])
        decided[name] = {"threshold": threshold, "point": point}
    return decided


def thresholds_in_words(decided: Mapping[str, Mapping[str, Any]], limit: int = 5) -> str:
    """`Pneumonia 0.43 (youden), Mass 0.5 (not chosen on val)`: the thresholds of the first few classes."""
    parts = [
        f"{name} {about['threshold']:.3g} ({about['point'] or 'no operating point'})"
        for name, about in list(decided.items())[:limit]
    ]
    more = len(decided) - limit
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def evaluate_operating_points(
    predictions: Predictions,
    points: Mapping[str, Mapping[str, Any]],
    *,
    n_boot: int = 2000,
    seed: int = 0,
    prevalence: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Per operating point {criterion, classes: {class: {threshold, sensitivity: {value, low, high}, ...}}}.

    Args:
        prevalence: per class, the share of positives where the model is to be used: PPV and NPV there, by Bayes' rule
            from sensitivity and specificity, as `ppv_at_prevalence` and `npv_at_prevalence`.
    """
    names, patient = np.unique(predictions.patients.astype(str), return_inverse=True)
    truth, probs = predictions.truth, predictions.probs
    columns = [
        (point, name, k, float(about["thresholds"][name]))
        for point, about in points.items()
        for k, name in enumerate(predictions.classes)
        if name in about["thresholds"]
    ]
    result: dict[str, Any] = {
        point: {
            "criterion": str(Criterion(about["goal"], about["value"])),
            "goal": about["goal"],
            "goal_value": about["value"],
            "chosen_on": about["split"],
            "classes": {},
        }
        for point, about in points.items()
    }
    if not columns:
        return result
    target = truth[:, [k for _, _, k, _ in columns]]  # (N, M)
    yes = probs[:, [k for _, _, k, _ in columns]] >= np.array([threshold for *_, threshold in columns])
    outcomes = ((target == 1) & yes, (target == 0) & yes, (target == 1) & ~yes, (target == 0) & ~yes)
    rows, n = np.arange(len(patient)), len(names)
    by_patient = scipy.sparse.csr_matrix((np.ones(len(rows)), (patient, rows)), shape=(n, len(rows)))
    sums = scipy.sparse.csr_matrix((by_patient @ np.hstack(outcomes).astype(np.float64)).T)  # (4 * M, P)
    prevalences = np.array([(prevalence or {}).get(name, np.nan) for _, name, _, _ in columns])[:, None]

    def scores_under(weight: np.ndarray) -> dict[str, np.ndarray]:  # (P, B) -> (M, B) each
        scores = rates(*(sums @ weight).reshape(4, len(columns), -1))
        ppv, npv = at_prevalence(scores["sensitivity"], scores["specificity"], prevalences)
        return {**{metric: scores[metric] for metric in METRICS}, "ppv_at_prevalence": ppv, "npv_at_prevalence": npv}

    values = scores_under(np.ones((n, 1)))
    resampled = [scores_under(weight) for weight in intervals.resamples(n, n_boot if n else 0, seed)]
    for i, (point, name, _, threshold) in enumerate(columns):
        samples = (
            {
                metric: np.concatenate([values_of_column[metric][i] for values_of_column in resampled])
                for metric in values
            }
            if resampled
            else {}
        )
        values_of_column = {metric: float(value[i, 0]) for metric, value in values.items()}
        if np.isnan(prevalences[i, 0]):
            values_of_column = {metric: values_of_column[metric] for metric in METRICS}
        per_patient = [sums[j * len(columns) + i].toarray()[0] for j in range(4)]  # tp, fp, fn, tn
        intervals_of_column = with_intervals(
            values_of_column, samples, Support.of(target[:, i], patient, share_counts(*per_patient))
        )
        counts = {count: int(total.sum()) for count, total in zip(("tp", "fp", "fn", "tn"), per_patient, strict=True)}
        n_known = {"positives": counts["tp"] + counts["fn"], "negatives": counts["fp"] + counts["tn"]}
        scores = {metric: interval.as_dict() for metric, interval in with_reasons(intervals_of_column, n_known).items()}
        result[point]["classes"][name] = {"threshold": threshold, **scores, **counts}
    return result


def at_prevalence(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """PPV and NPV where `prevalence` is the share of positives: Bayes' rule, sensitivity and specificity being kept."""
    with_it, without = np.asarray(prevalence), 1 - np.asarray(prevalence)
    ppv = ratio(sensitivity * with_it, sensitivity * with_it + (1 - specificity) * without)
    npv = ratio(specificity * without, specificity * without + (1 - sensitivity) * with_it)
    return ppv, npv
