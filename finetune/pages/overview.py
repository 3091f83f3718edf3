"""The first screen of the report: scores, comparison with a trivial prediction, and failures, from scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.evaluation import wording
from finetune.evaluation.metrics import BRIEF, MACRO, metric

GOOD, BAD, OPEN = "good", "bad", "open"
MAX_NAMES = 4


@dataclass(frozen=True)
class Comparison:
    """A score beside that of the trivial prediction."""

    name: str
    score: str
    trivial: str
    """The score of the trivial prediction, and its name."""
    state: str
    """good where the interval lies above it, bad where it lies below, open where it holds it."""


def comparisons(scores: Mapping[str, Any]) -> list[Comparison]:
    """The head scores beside those of the trivial prediction: the largest class, the prevalence, or guessing."""
    macro, overall, classes = (scores.get(key) or {} for key in ("macro", "overall", "classes"))
    trivial = scores.get("baseline") or {}
    gain = (trivial.get("gains") or {}).get("accuracy") or {}
    rows: list[Comparison] = []

    def add(name: str, score: Mapping[str, Any] | None, value: float | None, what: str, state: str = "") -> None:
        if score and score.get("value") is not None and value is not None:
            text = f"{value:.3f}, {what}"
            rows.append(Comparison(name, wording.interval(score), text, state or compare_with(score, value)))

    if scores.get("kind") == "multiclass":
        name, share = largest_class(scores)
        by_gain = compare_with(gain, 0) if gain else ""  # on the same images, so sharper than the interval of either
        add(metric("accuracy").title, overall.get("accuracy"), share, f"always predicting {name}", by_gain)
        if present := sum(class_scores.get("positives", 0) > 0 for class_scores in classes.values()):
            recall = overall.get("balanced_accuracy") or macro.get("sensitivity")
            add(f"{metric('balanced_accuracy').title} (mean recall)", recall, 1 / present, "any constant prediction")
    several = len(classes) > 1
    group = MACRO if several else ""
    add(metric("auroc").in_group(group), macro.get("auroc"), metric("auroc").chance, "guessing")
    if scores.get("kind") == "multilabel":
        what = "guessing (the mean prevalence)" if several else "guessing (the prevalence)"
        title = metric("average_precision").in_group(group)
        add(title, macro.get("average_precision"), mean_prevalence(scores), what)
    return rows


def compare_with(score: Mapping[str, Any], trivial: float) -> str:
    """Whether the interval of a score lies above `trivial`."""
    low, high = score.get("low"), score.get("high")
    if low is None or high is None:
        return OPEN
    return GOOD if low > trivial else BAD if high < trivial else OPEN


def largest_class(scores: Mapping[str, Any]) -> tuple[str, float | None]:
    """The most frequent class and its share: the accuracy of always predicting it."""
    trivial = scores.get("baseline") or {}
    if trivial.get("answer") is not None:
        return str(trivial["answer"]), trivial["overall"]["accuracy"]
    positives = {name: class_scores.get("positives", 0) for name, class_scores in (scores.get("classes") or {}).items()}
    if not sum(positives.values()):
        return "", None
    name = max(positives, key=lambda c: positives[c])
    return name, positives[name] / sum(positives.values())


def mean_prevalence(scores: Mapping[str, Any]) -> float | None:
    """Mean share of positives over the classes whose average precision is defined."""
    shares = [
        class_scores["positives"] / (class_scores["positives"] + class_scores["negatives"])
        for class_scores in (scores.get("classes") or {}).values()
        if (class_scores.get("average_precision") or {}).get("value") is not None
    ]
    return float(np.mean(shares)) if shares else None


def failures(scores: Mapping[str, Any]) -> list[str]:
    """The worst classes, confusions and groups, one line each."""
    classes = scores.get("classes") or {}
    multiclass = scores.get("kind") == "multiclass"
    lines = []
    judged = "sensitivity" if multiclass else "auroc"
    values = {
        name: class_scores[judged]["value"]
        for name, class_scores in classes.items()
        if (class_scores.get(judged) or {}).get("value") is not None and (multiclass or "note" not in class_scores)
    }
    if never := never_predicted(scores):
        lines.append(f"Never predicted: {named(never)}.")
    if len(values) > 1:
        worst = min(values, key=lambda c: values[c])
        lines.append(f"Lowest {metric(judged).heading}: {worst}, {wording.interval(classes[worst][judged])}.")
    matrix = scores.get("confusion")
    if matrix and (pairs := wording.most_confused(np.array(matrix["counts"]), matrix["classes"], 1)):
        lines.append(f"Most frequent confusion: {pairs[0]}.")
    for column, gap, title in headline_gaps(scores):
        chance = "beyond chance" if beyond_chance(gap) else "within chance"
        text = f"{column}: {gap['worst']} is {gap['value']:.3f} below {gap['best']} in {title}, {chance}."
        lines.append(f"Weakest group by {text}")
    return lines


def never_predicted(scores: Mapping[str, Any]) -> list[str]:
    """Classes of a multiclass table that were never predicted, though some images have them."""
    matrix = scores.get("confusion")
    if not matrix:
        return []
    counts = np.array(matrix["counts"])
    return [
        c
        for c, n_predicted, n_true in zip(matrix["classes"], counts.sum(0), counts.sum(1), strict=True)
        if n_true > n_predicted == 0
    ]


def headline_gaps(scores: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """(column, gap, title) of each subgroup column, those beyond chance first."""
    several = len(scores.get("classes") or {}) > 1
    heads = sorted(BRIEF, key=lambda head: head[0] == MACRO)  # of all classes together before means over them
    gaps = []
    for column, column_scores in (scores.get("subgroups") or {}).items():
        column_gaps = column_scores.get("gaps") or {}
        for group, name in heads:
            if gap := (column_gaps.get(group) or {}).get(name):
                gaps.append((column, gap, metric(name).in_group(group if several else "")))
                break
    return sorted(gaps, key=lambda entry: (not beyond_chance(entry[1]), -entry[1]["value"]))


def beyond_chance(gap: Mapping[str, Any]) -> bool:
    return gap.get("low") is not None and gap["low"] > 0


def named(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
