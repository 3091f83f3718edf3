"""The first screen of the report: how good, compared with what, and where it fails, all read from scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.evaluation import wording

GOOD, BAD, OPEN = "good", "bad", "open"
MAX_NAMES = 4


@dataclass(frozen=True)
class Comparison:
    """A score beside that of the trivial answer."""

    name: str
    score: str
    trivial: str
    """What the trivial answer gets, and what it is."""
    state: str
    """good where the interval lies above it, bad where it lies below, open where it holds it."""


def comparisons(scores: Mapping[str, Any]) -> list[Comparison]:
    """The head scores beside those of the trivial answer: the largest class, or the prevalence, or guessing."""
    macro, overall, classes = (scores.get(key) or {} for key in ("macro", "overall", "classes"))
    trivial = scores.get("baseline") or {}
    gain = (trivial.get("gains") or {}).get("accuracy") or {}
    rows: list[Comparison] = []

    def add(name: str, score: Mapping[str, Any] | None, value: float | None, what: str, state: str = "") -> None:
        if score and score.get("value") is not None and value is not None:
            text = f"{value:.3f}, {what}"
            rows.append(Comparison(name, wording.interval(score), text, state or against(score, value)))

    if scores.get("kind") == "multiclass":
        name, share = largest_class(scores)
        by_gain = against(gain, 0) if gain else ""  # on the same images, so sharper than the interval of either
        add("accuracy", overall.get("accuracy"), share, f"always answering {name}", by_gain)
        if present := sum(of.get("positives", 0) > 0 for of in classes.values()):
            recall = overall.get("balanced_accuracy") or macro.get("sensitivity")
            add("balanced accuracy (mean recall)", recall, 1 / present, "any constant answer")
    several = len(classes) > 1
    add("macro AUROC" if several else "AUROC", macro.get("auroc"), 0.5, "guessing")
    if scores.get("kind") == "multilabel":
        name = "macro average precision" if several else "average precision"
        what = "guessing (the mean prevalence)" if several else "guessing (the prevalence)"
        add(name, macro.get("average_precision"), mean_prevalence(scores), what)
    return rows


def against(score: Mapping[str, Any], trivial: float) -> str:
    """Whether a score lies above `trivial`, by its interval."""
    low, high = score.get("low"), score.get("high")
    if low is None or high is None:
        return OPEN
    return GOOD if low > trivial else BAD if high < trivial else OPEN


def largest_class(scores: Mapping[str, Any]) -> tuple[str, float | None]:
    """The class most images have, and their share: the accuracy of always answering it."""
    trivial = scores.get("baseline") or {}
    if trivial.get("answer") is not None:
        return str(trivial["answer"]), trivial["overall"]["accuracy"]
    positives = {name: of.get("positives", 0) for name, of in (scores.get("classes") or {}).items()}
    if not sum(positives.values()):
        return "", None
    name = max(positives, key=lambda c: positives[c])
    return name, positives[name] / sum(positives.values())


def mean_prevalence(scores: Mapping[str, Any]) -> float | None:
    """Mean share of positives over the classes whose average precision is defined."""
    shares = [
        of["positives"] / (of["positives"] + of["negatives"])
        for of in (scores.get("classes") or {}).values()
        if (of.get("average_precision") or {}).get("value") is not None
    ]
    return float(np.mean(shares)) if shares else None


def failures(scores: Mapping[str, Any]) -> list[str]:
    """Where it is worst: classes, confusions and groups, each in a line."""
    classes = scores.get("classes") or {}
    multiclass = scores.get("kind") == "multiclass"
    said = []
    metric, title = ("sensitivity", "sensitivity (recall)") if multiclass else ("auroc", "AUROC")
    values = {
        name: of[metric]["value"]
        for name, of in classes.items()
        if (of.get(metric) or {}).get("value") is not None and (multiclass or "note" not in of)
    }
    if never := never_answered(scores):
        said.append(f"Never predicted: {named(never)}.")
    if len(values) > 1:
        worst = min(values, key=lambda c: values[c])
        said.append(f"Lowest {title}: {worst}, {wording.interval(classes[worst][metric])}.")
    matrix = scores.get("confusion")
    if matrix and (pairs := wording.most_confused(np.array(matrix["counts"]), matrix["classes"], 1)):
        said.append(f"Most frequent confusion: {pairs[0]}.")
    for column, gap, title in headline_gaps(scores):
        chance = "beyond chance" if beyond_chance(gap) else "within chance"
        text = f"{column}: {gap['worst']} is {gap['value']:.3f} below {gap['best']} in {title}, {chance}."
        said.append(f"Weakest group by {text}")
    return said


def never_answered(scores: Mapping[str, Any]) -> list[str]:
    """Classes of a multiclass table that no image was given, though some have them."""
    matrix = scores.get("confusion")
    if not matrix:
        return []
    counts = np.array(matrix["counts"])
    return [
        c for c, given, there in zip(matrix["classes"], counts.sum(0), counts.sum(1), strict=True) if there > given == 0
    ]


def headline_gaps(scores: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """(column, gap, title) of each subgroup column, those beyond chance first."""
    several = len(scores.get("classes") or {}) > 1
    gaps = []
    for column, of in (scores.get("subgroups") or {}).items():
        found = of.get("gaps") or {}
        accuracy = (found.get("overall") or {}).get("accuracy")
        gap = accuracy or (found.get("macro") or {}).get("auroc")
        if gap:
            gaps.append((column, gap, "accuracy" if accuracy else "macro AUROC" if several else "AUROC"))
    return sorted(gaps, key=lambda each: (not beyond_chance(each[1]), -each[1]["value"]))


def beyond_chance(gap: Mapping[str, Any]) -> bool:
    return gap.get("low") is not None and gap["low"] > 0


def named(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
