"""The scores of one split with their intervals, as written to scores.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from finetune.evaluation import wording
from finetune.evaluation.classification import reliability
from finetune.evaluation.classification.baseline import baseline
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import Scorer, Scores, confusion, mean_of_defined
from finetune.evaluation.metrics import SHARES
from finetune.files import plain, write_json_atomic
from finetune.statistics import intervals
from finetune.statistics.intervals import Interval

__all__ = ["summarise", "write_json_atomic"]

NONE = np.zeros(0)  # no resamples
MEANS_OF_SHARES = {"balanced_accuracy": ("sensitivity", "specificity")}


@dataclass(frozen=True)
class Support:
    """The patients behind the scores of a class, or of all classes together."""

    labelled: int
    positive: int
    negative: int
    shares: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Per share of images how many are correct, and of how many, for each patient (P,)."""

    @classmethod
    def of(cls, truth: np.ndarray, patient: np.ndarray, shares: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Support:
        """truth (n,) of 1, 0 and NaN, patient (n,) numbers."""
        groups = (~np.isnan(truth), truth == 1, truth == 0)
        labelled, positive, negative = (len(np.unique(patient[rows])) for rows in groups)
        return cls(labelled, positive, negative, shares)


def summarise(
    predictions: Predictions, n_boot: int = 2000, seed: int = 0, threshold: float | np.ndarray = 0.5
) -> dict[str, Any]:
    """{"macro", "micro", "overall", "classes", "baseline", ...} of scores {"value", "low", "high"}; what is undefined
    is None, as are the limits where there is no interval, and then "reason" says why.

    Args:
        n_boot: resamples of the patients; 0 leaves only the intervals that need none.
        threshold: probability from which a multilabel class is positive, one for all classes or one per class.

    Example:
        >>> test = finetune.Predictions.read("outputs/latest/predictions_test.csv")
        >>> finetune.summarise(test, threshold=0.2)["macro"]["auroc"]
        {'value': 0.91, 'low': 0.87, 'high': 0.94, 'n_classes': 14, 'n_undefined': 0}
    """
    scorer = Scorer(predictions, threshold)
    resamples = intervals.resamples(scorer.n_patients, n_boot if scorer.n_patients else 0, seed)
    result = described(scorer, joined([scorer(weight) for weight in resamples]), seed)
    result["baseline"] = baseline(scorer)
    if scorer.multiclass:
        result["confusion"] = {"classes": predictions.classes, "counts": confusion(predictions).tolist()}
    result |= {
        "kind": predictions.kind,
        "n": len(predictions),
        "patients": scorer.n_patients,
        "threshold": None if scorer.multiclass else threshold,
        "intervals": {"level": intervals.LEVEL, "unit": "patient", "resamples": n_boot, "seed": seed},
        "warnings": warnings(result["classes"]),
    }
    return plain(result)


def described(scorer: Scorer, resampled: Scores | None, seed: int = 0) -> dict[str, Any]:
    """{"macro", "micro", "classes", and of a multiclass table "overall"}: the scores with the intervals that follow
    from their resamples `resampled`."""
    value, names, truth, patient = scorer.values(), scorer.predictions.classes, scorer.truth, scorer.patient
    of_class: dict[str, dict[str, Interval]] = {}
    counts = {name: _counts(truth[:, k], patient) for k, name in enumerate(names)}
    chance = reliability.by_chance(scorer.gaps, (~np.isnan(truth)).sum(axis=0), seed)
    for k, name in enumerate(names):
        samples = {metric: rows[k] for metric, rows in resampled.classes.items()} if resampled else {}
        values = {m: float(v[k, 0]) for m, v in value.classes.items()}
        support = Support.of(truth[:, k], patient, scorer.share_counts(k))
        intervals_of_class = with_intervals(values, samples, support)
        intervals_of_class["auroc"] = intervals.delong(truth[:, k], scorer.ranks[:, k], patient).interval()
        intervals_of_class["ece"] = reliability.interval(
            values["ece"], samples.get("ece", NONE), float(chance[k]), support.labelled
        )
        of_class[name] = with_reasons(intervals_of_class, counts[name])
    everyone = np.repeat(patient, len(names))
    pooled = Support.of(truth.ravel(), everyone, scorer.share_counts())
    micro = with_intervals(_first(value.micro), resampled.micro if resampled else {}, pooled)
    micro["auroc"] = intervals.delong(truth.ravel(), scorer.ranks.ravel(), everyone).interval()
    sums = {key: sum(c[key] for c in counts.values()) for key in ("positives", "negatives")}
    overall = _overall(scorer, value, resampled, of_class, seed) if scorer.multiclass else {}
    result: dict[str, Any] = {
        "macro": _macro(value, resampled, of_class, overall, scorer.n_patients),
        "micro": {m: i.as_dict() for m, i in with_reasons(micro, sums).items()},
        "classes": {name: {**{m: i.as_dict() for m, i in of_class[name].items()}, **counts[name]} for name in names},
    }
    return {**result, "overall": {m: i.as_dict() for m, i in overall.items()}} if scorer.multiclass else result


def _overall(
    scorer: Scorer, value: Scores, resampled: Scores | None, of_class: Mapping[str, Mapping[str, Interval]], seed: int
) -> dict[str, Interval]:
    samples = resampled.overall if resampled else {}
    labelled = ~np.isnan(scorer.truth).any(axis=1)
    patients = len(np.unique(scorer.patient[labelled]))
    support = Support(patients, 0, 0, scorer.overall_counts())
    values = _first(value.overall)
    scores = with_intervals(values, samples, support)
    recalls = [
        scores_of_class["sensitivity"]
        for scores_of_class in of_class.values()
        if not np.isnan(scores_of_class["sensitivity"].value)
    ]
    scores["balanced_accuracy"] = intervals.mean_of_shares(recalls)  # images of different classes
    chance = reliability.by_chance(scorer.top_gaps, np.array([labelled.sum()]), seed)
    scores["ece"] = reliability.interval(values["ece"], samples.get("ece", NONE), float(chance[0]), patients)
    why = "truth and predictions are all of one class" if labelled.any() else "no image has a known class"
    return {m: replace(i, reason=why) if np.isnan(i.value) else i for m, i in scores.items()}


def warnings(classes: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader must know before the numbers, in sentences."""
    sentences = []
    for lacking in ("positives", "negatives"):
        if names := [name for name, c in classes.items() if c[lacking] == 0 and c["positives"] + c["negatives"]]:
            sentences.append(f"No {lacking}, so AUROC is undefined and left out of the macro mean: {', '.join(names)}.")
    if names := [name for name, c in classes.items() if c["positives"] + c["negatives"] == 0]:
        sentences.append(f"Nothing is known about any image, so no score is defined: {', '.join(names)}.")
    if names := [name for name, c in classes.items() if "note" in c]:
        sentences.append(
            f"Fewer than {intervals.MIN_PATIENTS} positive or negative patients, so scores are uncertain: "
            f"{', '.join(names)}."
        )
    return sentences


def with_intervals(
    values: Mapping[str, float], samples: Mapping[str, np.ndarray], support: Support
) -> dict[str, Interval]:
    """Each value with the interval of its kind of score, from the counts of images or from resamples."""
    scores = {}
    for metric, value in values.items():
        if metric in support.shares:
            scores[metric] = intervals.share(*support.shares[metric])
        else:
            fewer = min(support.positive, support.negative)
            scores[metric] = intervals.resampled(metric, value, samples.get(metric, NONE), support.labelled, fewer)
    for metric, parts in MEANS_OF_SHARES.items():
        if metric in scores and all(part in support.shares for part in parts):
            scores[metric] = intervals.mean_of_shares([scores[part] for part in parts])
    return scores


def with_reasons(scores: Mapping[str, Interval], counts: Mapping[str, Any]) -> dict[str, Interval]:
    """The scores, with the reason where one is undefined for these counts."""
    return {
        metric: replace(interval, reason=wording.why_undefined(metric, counts))
        if np.isnan(interval.value)
        else interval
        for metric, interval in scores.items()
    }


def _macro(
    value: Scores,
    resampled: Scores | None,
    of_class: Mapping[str, Mapping[str, Interval]],
    overall: Mapping[str, Interval],
    patients: int,
) -> dict[str, dict[str, Any]]:
    """Means over the classes with a defined score, how many those are, and how many are left out."""
    samples = resampled.macro() if resampled else {}
    means = {}
    for metric, mean in _first(value.macro()).items():
        recall = bool(overall) and metric in ("sensitivity", "balanced_accuracy")  # for all classes these are the same
        name = "sensitivity" if recall else metric
        defined = [
            scores_of_class[name] for scores_of_class in of_class.values() if not np.isnan(scores_of_class[name].value)
        ]
        if recall:
            interval = overall["balanced_accuracy"]
        else:
            interval = macro_interval(metric, mean, defined, samples.get(metric, NONE), patients)
        counts = {"n_classes": len(defined), "n_undefined": len(of_class) - len(defined)}
        means[metric] = {**interval.as_dict(), **counts}
    return means


def macro_interval(metric: str, mean: float, classes: list[Interval], samples: np.ndarray, patients: int) -> Interval:
    """The interval of a mean over classes, from their own intervals and the resamples of the mean.

    It is null where no class has one; of a single class it is the class's own. Resamples of a class with few images
    that are all correct, or all wrong, show no spread, so the interval of a mean of shares is at least as wide as the
    limits of its parts imply. With too few patients, or no spread at all, the limits are the means of the classes'
    limits.
    """
    if not classes:
        return Interval(mean, reason="defined for no class")
    without = [interval for interval in classes if np.isnan(interval.low)]
    if len(classes) == 1 or len(without) == len(classes):
        return Interval(mean, classes[0].low, classes[0].high, classes[0].reason)
    by_resamples = intervals.resampled(metric, mean, samples, patients)
    if without:
        return by_resamples
    if np.isnan(by_resamples.low) or metric == "ece":  # whose resamples lie above its value
        return Interval(
            mean, _mean([interval.low for interval in classes]), _mean([interval.high for interval in classes])
        )
    if metric in SHARES:
        parts = intervals.mean_of_shares(classes)
        return Interval(mean, min(by_resamples.low, parts.low), max(by_resamples.high, parts.high))
    return by_resamples


def _counts(truth: np.ndarray, patient: np.ndarray) -> dict[str, Any]:
    people = {side: len(np.unique(patient[truth == side])) for side in (1, 0)}
    labelled = ~np.isnan(truth)
    counts: dict[str, Any] = {
        "n": len(truth),
        "positives": int((truth == 1).sum()),
        "negatives": int((truth == 0).sum()),
        "unknown": int((~labelled).sum()),
        "positive_patients": people[1],
        "negative_patients": people[0],
    }
    fewer, lacking = min((people[1], "positive"), (people[0], "negative"))
    if 0 < fewer < intervals.MIN_PATIENTS:
        counts["note"] = f"fewer than {intervals.MIN_PATIENTS} {lacking} patients"
    return counts


def joined(chunks: list[Scores]) -> Scores | None:
    """Chunks of resamples, one after the other."""
    if not chunks:
        return None
    parts = [
        {m: np.concatenate([getattr(c, part)[m] for c in chunks], axis=-1) for m in getattr(chunks[0], part)}
        for part in ("classes", "micro", "overall")
    ]
    return Scores(*parts)


def _first(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {metric: float(value[0]) for metric, value in values.items()}


def _mean(values: list[float]) -> float:
    return float(mean_of_defined(np.array(values, dtype=np.float64)))
