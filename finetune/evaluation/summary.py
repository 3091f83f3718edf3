"""The scores of one split with their intervals, as they stand in scores.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation import intervals
from finetune.evaluation.files import plain, write_json_atomic
from finetune.evaluation.intervals import Interval
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.reliability import binned, top_label
from finetune.evaluation.scores import Scorer, Scores, confusion, mean_of_defined

__all__ = ["summarise", "write_json_atomic"]

UNBOUNDED = ("log_loss", "kappa")
SHARES = {  # metric -> whose patients it is a share of
    "accuracy": "known",
    "sensitivity": "positive",
    "specificity": "negative",
    "ppv": "yes",
    "npv": "no",
    "top5_accuracy": "known",
}


def summarise(
    predictions: Predictions, n_boot: int = 2000, seed: int = 0, threshold: float | np.ndarray = 0.5
) -> dict[str, Any]:
    """{"macro", "micro", "overall", "classes", ...} of scores {"value", "low", "high"}; what is undefined is None.

    The expected calibration error has no interval: drawing samples twice makes bins look worse than they are, so its
    resamples lie above its value.

    Args:
        n_boot: resamples of the patients; 0 leaves only the intervals that need none.
        threshold: probability from which a multilabel answer is yes, one for all classes or one each.

    Example:
        >>> test = finetune.Predictions.read("outputs/latest/predictions_test.csv")
        >>> finetune.summarise(test, threshold=0.2)["macro"]["auroc"]
        {'value': 0.91, 'low': 0.87, 'high': 0.94, 'n_classes': 14, 'n_undefined': 0}
    """
    scorer = Scorer(predictions, threshold)
    resamples = intervals.resamples(scorer.n_patients, n_boot if scorer.n_patients else 0, seed)
    result = described(scorer, joined([scorer(weight) for weight in resamples]))
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


def described(scorer: Scorer, drawn: Scores | None) -> dict[str, Any]:
    """{"macro", "micro", "classes", and of a multiclass table "overall"}: the scores with the intervals that follow
    from their resamples `drawn`."""
    value, names, truth, patients = scorer.values(), scorer.predictions.classes, scorer.truth, _patients(scorer)
    classes: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(names):
        own = {metric: rows[k] for metric, rows in drawn.classes.items()} if drawn else {}
        found = with_intervals({m: float(v[k, 0]) for m, v in value.classes.items()}, own, patients["class"][k])
        found["auroc"] = intervals.delong(truth[:, k], scorer.ranks[:, k], scorer.patient).interval()
        found["ece"] = Interval(binned(truth[:, k], scorer.predictions.probs[:, k]).error())
        classes[name] = {**{m: vars(i) for m, i in found.items()}, **_counts(truth[:, k], scorer.patient)}

    pooled = np.repeat(scorer.patient, len(names))
    micro = with_intervals(_first(value.micro), drawn.micro if drawn else {}, patients["all"])
    micro["auroc"] = intervals.delong(truth.ravel(), scorer.ranks.ravel(), pooled).interval()
    result: dict[str, Any] = {
        "macro": _macro(value, drawn, classes),
        "micro": {m: vars(i) for m, i in micro.items()},
        "classes": classes,
    }
    if scorer.multiclass:
        overall = with_intervals(_first(value.overall), drawn.overall if drawn else {}, patients["overall"])
        overall["ece"] = Interval(binned(*top_label(scorer.predictions)).error())
        result["overall"] = {m: vars(i) for m, i in overall.items()}
    return result


def warnings(classes: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader must know before the numbers, in sentences."""
    said = []
    for lacking in ("positives", "negatives"):
        if names := [name for name, c in classes.items() if c[lacking] == 0 and c["positives"] + c["negatives"]]:
            said.append(f"No {lacking}, so AUROC is undefined and left out of the macro mean: {', '.join(names)}.")
    if names := [name for name, c in classes.items() if c["positives"] + c["negatives"] == 0]:
        said.append(f"Nothing is known about any image, so no score is defined: {', '.join(names)}.")
    if names := [name for name, c in classes.items() if "note" in c]:
        said.append(
            f"Fewer than {intervals.FEWEST} positive or negative patients, so scores are uncertain: {', '.join(names)}."
        )
    return said


def with_intervals(
    values: dict[str, float], drawn: dict[str, np.ndarray], patients: dict[str, int]
) -> dict[str, Interval]:
    """Each value with the interval that its kind of score takes; `patients` are those that each share is made of."""
    found = {}
    for metric, value in values.items():
        samples = drawn.get(metric, np.zeros(0))
        if metric in SHARES and value in (0.0, 1.0):
            found[metric] = intervals.exact(value, patients[SHARES[metric]])
        elif metric in UNBOUNDED or (metric == "brier" and value > 1):
            found[metric] = intervals.percentile(value, samples)
        else:
            found[metric] = intervals.on_logit_scale(value, intervals.spread(samples))
    return found


def _macro(value: Scores, drawn: Scores | None, classes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over the classes with a defined score, how many those are, and how many are left out."""
    samples = drawn.macro() if drawn else {}
    values = _first(value.macro()) | {"ece": _mean([c["ece"]["value"] for c in classes.values()])}
    found = {}
    for metric, mean in values.items():
        defined = [c[metric] for c in classes.values() if not np.isnan(c[metric]["value"])]
        if metric == "ece":
            interval = Interval(mean)
        elif mean in (0.0, 1.0):  # all classes are at the edge: the mean of their limits
            interval = Interval(mean, _mean([c["low"] for c in defined]), _mean([c["high"] for c in defined]))
        else:
            interval = with_intervals({metric: mean}, samples, {})[metric]
        found[metric] = {**vars(interval), "n_classes": len(defined), "n_undefined": len(classes) - len(defined)}
    return found


def _counts(truth: np.ndarray, patient: np.ndarray) -> dict[str, Any]:
    people = {side: len(np.unique(patient[truth == side])) for side in (1, 0)}
    known = ~np.isnan(truth)
    counts: dict[str, Any] = {
        "n": len(truth),
        "positives": int((truth == 1).sum()),
        "negatives": int((truth == 0).sum()),
        "unknown": int((~known).sum()),
        "positive_patients": people[1],
        "negative_patients": people[0],
    }
    fewer, lacking = min((people[1], "positive"), (people[0], "negative"))
    if 0 < fewer < intervals.FEWEST:
        counts["note"] = f"fewer than {intervals.FEWEST} {lacking} patients"
    return counts


def patients_behind(truth: np.ndarray, yes: np.ndarray, patient: np.ndarray) -> dict[str, int]:
    """How many patients each share of answers is made of."""
    known = ~np.isnan(truth)
    groups = {"known": known, "positive": truth == 1, "negative": truth == 0}
    groups |= {"yes": known & yes, "no": known & ~yes}
    return {name: len(np.unique(patient[rows])) for name, rows in groups.items()}


def _patients(scorer: Scorer) -> dict[str, Any]:
    """How many patients stand behind each share: per class, for all classes' answers in one pot, and overall."""
    truth, yes, patient = scorer.truth, scorer.decisions, scorer.patient
    k = truth.shape[1]
    return {
        "class": [patients_behind(truth[:, i], yes[:, i], patient) for i in range(k)],
        "all": patients_behind(truth.ravel(), yes.ravel(), np.repeat(patient, k)),
        "overall": {"known": len(np.unique(patient[~np.isnan(truth).any(axis=1)]))},
    }


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
