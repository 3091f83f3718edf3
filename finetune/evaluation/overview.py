"""The first screen of the report: how good, compared with what, where it fails, and what speaks against using it.

Everything is read from scores.json and the audit; nothing is computed from images here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.evaluation import wording

GOOD, BAD, OPEN = "good", "bad", "open"
MARKS = {GOOD: ("✓", "held"), BAD: ("✗", "not held"), OPEN: ("–", "not known")}
TARGET = re.compile(r"(sensitivity|specificity|PPV) of ([\d.]+)$")
MOST_NAMES = 4


@dataclass(frozen=True)
class Comparison:
    """A score beside that of the trivial answer."""

    name: str
    score: str
    trivial: str
    """What the trivial answer gets, and what it is."""
    state: str
    """good where the interval lies above it, bad where it lies below, open where it holds it."""


@dataclass(frozen=True)
class Check:
    """A condition of use, and what the evaluated split says of it."""

    name: str
    state: str
    text: str
    link: str
    """Id of the section with the numbers."""


def comparisons(scores: Mapping[str, Any]) -> list[Comparison]:
    """The head scores beside those of the trivial answer: the largest class, or the prevalence, or guessing."""
    macro, classes = scores.get("macro") or {}, scores.get("classes") or {}
    rows: list[Comparison] = []

    def add(name: str, score: Mapping[str, Any] | None, trivial: float | None, what: str) -> None:
        if score and score.get("value") is not None and trivial is not None:
            text = f"{trivial:.3f}, {what}"
            rows.append(Comparison(name, wording.interval(score), text, against(score, trivial)))

    if scores.get("kind") == "multiclass":
        name, share = largest_class(scores)
        add("accuracy", (scores.get("overall") or {}).get("accuracy"), share, f"always answering {name}")
        if len(classes) > 2:
            recall = f"mean recall of {len(classes)} classes"
            add(recall, macro.get("sensitivity"), 1 / len(classes), "any constant answer")
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
    baseline = scores.get("baseline") or {}
    if isinstance(baseline, Mapping) and isinstance(baseline.get("accuracy"), int | float) and "class" in baseline:
        return str(baseline["class"]), float(baseline["accuracy"])
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


def checks(
    scores: Mapping[str, Any],
    val: Mapping[str, Any],
    audit: Mapping[str, Any],
    openings: Sequence[Any],
    has_patients: bool,
) -> list[Check]:
    """What a user has to know before relying on the model, what did not hold first."""
    made = [
        calibration(scores),
        conformal(scores),
        *targets(scores),
        transfer(scores, val),
        groups(scores),
        leaks(audit),
        opened(openings),
    ]
    if not has_patients:
        made.append(Check("Patients", OPEN, "not known, so intervals may be too narrow.", "data"))
    return sorted((check for check in made if check), key=lambda check: (BAD, OPEN, GOOD).index(check.state))


def calibration(scores: Mapping[str, Any]) -> Check | None:
    """Whether the calibration that was fitted on val lowers the log loss here too."""
    found = scores.get("calibration")
    if not found:
        return Check("Calibration", OPEN, "none was fitted.", "calibration")
    named_parts = {"all classes": found["overall"]} if "overall" in found else found["classes"]
    changes = {name: part["difference"]["log_loss"] for name, part in named_parts.items()}
    changes = {name: change for name, change in changes.items() if change.get("low") is not None}
    worse = [name for name, change in changes.items() if change["low"] > 0]
    better = [name for name, change in changes.items() if change["high"] < 0]
    if worse:
        name = max(worse, key=lambda c: changes[c]["value"])
        before, after = (named_parts[name][when]["log_loss"]["value"] for when in ("before", "after"))
        of = "" if name == "all classes" else f" for {named(worse)}"
        which = "" if len(worse) == 1 else f" ({name})"
        return Check(
            "Calibration", BAD, f"makes the log loss worse{of}: {before:.3f} to {after:.3f}{which}.", "calibration"
        )
    if better:
        of = (
            ""
            if "overall" in found
            else f" for {len(better)} of {wording.counted(len(named_parts), 'class', 'classes')}"
        )
        return Check(
            "Calibration", GOOD, f"lowers the log loss{of}, and raises it for none beyond chance.", "calibration"
        )
    return Check("Calibration", OPEN, "changes the log loss no more than chance.", "calibration")


def conformal(scores: Mapping[str, Any]) -> Check | None:
    """Whether the sets hold the truth as often as promised; the side that is worst is named."""
    found = scores.get("conformal")
    if not found:
        return None
    promise = 1 - found["error"]
    if "overall" in found:
        parts = {"": found["overall"]["coverage"]}
    else:
        sides = (("yes", "with"), ("no", "without"))
        parts = {f" of images {word} {name}": of[side] for name, of in found["classes"].items() for side, word in sides}
    parts = {what: share for what, share in parts.items() if share.get("value") is not None}
    if not parts:
        return None
    below = {what: share for what, share in parts.items() if share.get("high") is not None and share["high"] < promise}
    worst = min(below or parts, key=lambda what: parts[what]["value"])
    lowest = "lowest " if len(parts) > 1 else ""
    text = f"{100 * promise:g} % coverage promised, {lowest}{wording.percent(parts[worst])}{worst} on this split."
    return Check("Conformal prediction sets", BAD if below else GOOD, text, "conformal")


def targets(scores: Mapping[str, Any]) -> list[Check]:
    """Whether operating points that were chosen for a sensitivity, specificity or PPV reach it here."""
    made = []
    for name, point in (scores.get("operating_points") or {}).items():
        if not (wanted := TARGET.match(str(point.get("wish")))):
            continue
        metric, goal = wanted[1], float(wanted[2])
        shares = {
            c: of[metric.lower()] for c, of in point["classes"].items() if of[metric.lower()]["value"] is not None
        }
        missed = {c: share for c, share in shares.items() if share.get("high") is not None and share["high"] < goal}
        if not shares:
            continue
        worst = min(missed or shares, key=lambda c: shares[c]["value"])
        lowest = "lowest " if len(shares) > 1 else ""
        text = f"{metric} {goal:g} wanted, {lowest}{wording.interval(shares[worst])} for {worst}."
        made.append(Check(f"Operating point {name}", BAD if missed else GOOD, text, "points"))
    return made


def transfer(scores: Mapping[str, Any], val: Mapping[str, Any]) -> Check | None:
    """Whether val, which chose the epoch, and test agree."""
    for group, metric, title in (("macro", "auroc", "AUROC"), ("overall", "accuracy", "accuracy")):
        here, there = ((s.get(group) or {}).get(metric) or {} for s in (scores, val))
        if here.get("low") is None or there.get("low") is None:
            continue
        apart = here["high"] < there["low"] or there["high"] < here["low"]
        text = f"{title} {there['value']:.3f} and {here['value']:.3f}: the intervals "
        text += "do not overlap." if apart else "overlap."
        return Check("val and test", BAD if apart else GOOD, text, "scores")
    return None


def groups(scores: Mapping[str, Any]) -> Check | None:
    gaps = headline_gaps(scores)
    if not gaps:
        return None
    if wide := [column for column, gap, _ in gaps if beyond_chance(gap)]:
        return Check("Subgroups", BAD, f"a gap beyond chance by {named(wide)}.", "subgroups")
    columns = named([column for column, *_ in gaps])
    return Check("Subgroups", GOOD, f"no gap beyond chance by {columns}.", "subgroups")


def leaks(audit: Mapping[str, Any]) -> Check:
    if not audit:
        return Check("Audit", OPEN, "there is none.", "data")
    if found := audit.get("leaks"):
        return Check("Splits", BAD, f"{wording.counted(len(found), 'leak')} between them.", "data")
    return Check("Splits", GOOD, "no patient and no image was found in two of them.", "data")


def opened(openings: Sequence[Any]) -> Check | None:
    if len(openings) < 2:
        return None
    text = f"opened {len(openings)} times; what was chosen after the first is optimistic."
    return Check("Test split", OPEN, text, "provenance")


def named(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
