"""The first screen of the report: the conditions for using a model, and whether they hold on this split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.evaluation import metrics, wording
from finetune.pages.overview import BAD, GOOD, OPEN, beyond_chance, headline_gaps, named

MARKS = {GOOD: ("✓", "held"), BAD: ("✗", "not held"), OPEN: ("–", "not known")}
TITLES = {metrics.metric(name).title: name for name in metrics.names(at_threshold=True)}
TARGET = re.compile(rf"({'|'.join(TITLES)}) of ([\d.]+)$")
RULES = {
    "Calibration": "calibration",
    "Conformal": "sets",
    "Operating point": "points",
    "val and test": "val and test",
}
"""Start of a check's name -> the rule of `scores["harms"]` that decides it."""


@dataclass(frozen=True)
class Check:
    """A condition of use, and whether it holds on the evaluated split."""

    name: str
    state: str
    text: str
    link: str
    """Id of the section with the numbers."""


def checks(
    scores: Mapping[str, Any],
    val: Mapping[str, Any],
    audit: Mapping[str, Any],
    openings: Sequence[Any],
    has_patients: bool,
) -> list[Check]:
    """The conditions to check before relying on a model of labels, those that did not hold first."""
    of_labels = [calibration(scores), conformal(scores), *targets(scores)]
    return shared(scores, val, audit, openings, has_patients, of_labels)


def shared(
    scores: Mapping[str, Any],
    val: Mapping[str, Any],
    audit: Mapping[str, Any],
    openings: Sequence[Any],
    has_patients: bool,
    of_task: Sequence[Check | None] = (),
) -> list[Check]:
    """The conditions of every task, after those of one task; those that did not hold come first."""
    judged_checks: list[Check | None] = [
        *of_task,
        transfer(scores, val),
        groups(scores),
        leaks(audit),
        opened(openings),
    ]
    if not has_patients:
        judged_checks.append(Check("Patients", OPEN, "not known, so intervals may be too narrow.", "data"))
    judged = by_harms([check for check in judged_checks if check], scores)
    return sorted(judged, key=lambda check: (BAD, OPEN, GOOD).index(check.state))


def by_harms(checks_made: list[Check], scores: Mapping[str, Any]) -> list[Check]:
    """`checks_made`, marked bad exactly where a rule of `scores["harms"]` fired: the rules account for the patients of
    val and for the number of comparisons. Rules without a check of their own are added."""
    if "harms" not in scores:
        return checks_made
    short = {harm["rule"]: harm["short"] for harm in scores["harms"]}
    judged, seen = [], set()
    for check in checks_made:
        rule = next((rule for start, rule in RULES.items() if check.name.startswith(start)), None)
        seen.add(rule)
        if rule is not None and rule not in short and check.state == BAD:
            check = replace(check, state=OPEN)
        elif rule in short and check.state != BAD and rule != "points":
            check = Check(check.name, BAD, f"{short[rule]}.", check.link)
        judged.append(check)
    added = [
        Check(rule.capitalize(), BAD, f"{short_text}.", "scores")
        for rule, short_text in short.items()
        if rule not in seen
    ]
    return judged + added


def calibration(scores: Mapping[str, Any]) -> Check | None:
    """Whether the calibration that was fitted on val lowers the log loss here too."""
    calibration_scores = scores.get("calibration")
    if not calibration_scores:
        return Check("Calibration", OPEN, "none was fitted.", "calibration")
    named_parts = (
        {"all classes": calibration_scores["overall"]}
        if "overall" in calibration_scores
        else calibration_scores["classes"]
    )
    changes = {name: part["difference"]["log_loss"] for name, part in named_parts.items()}
    changes = {name: change for name, change in changes.items() if change.get("low") is not None}
    worse = [name for name, change in changes.items() if change["low"] > 0]
    better = [name for name, change in changes.items() if change["high"] < 0]
    if worse:
        name = max(worse, key=lambda c: changes[c]["value"])
        before, after = (named_parts[name][when]["log_loss"]["value"] for when in ("before", "after"))
        which = "" if name == "all classes" else f" for {named(worse)}"
        example = "" if len(worse) == 1 else f" ({name})"
        return Check(
            "Calibration", BAD, f"makes the log loss worse{which}: {before:.3f} to {after:.3f}{example}.", "calibration"
        )
    if better:
        which = (
            ""
            if "overall" in calibration_scores
            else f" for {len(better)} of {wording.counted(len(named_parts), 'class', 'classes')}"
        )
        return Check(
            "Calibration", GOOD, f"lowers the log loss{which}, and raises it for none beyond chance.", "calibration"
        )
    return Check("Calibration", OPEN, "changes the log loss no more than chance.", "calibration")


def conformal(scores: Mapping[str, Any]) -> Check | None:
    """Whether the sets hold the truth as often as promised; names the worst side."""
    conformal_scores = scores.get("conformal")
    if not conformal_scores:
        return None
    promise = 1 - conformal_scores["error"]
    if "overall" in conformal_scores:
        parts = {"": conformal_scores["overall"]["coverage"]}
    else:
        sides = (("yes", "with"), ("no", "without"))
        parts = {
            f" of images {word} {name}": sides_of_class[side]
            for name, sides_of_class in conformal_scores["classes"].items()
            for side, word in sides
        }
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
    target_checks = []
    for name, point in (scores.get("operating_points") or {}).items():
        if not (match := TARGET.match(str(point.get("criterion")))):
            continue
        title, goal = match[1], float(match[2])
        shares = {
            c: class_scores[TITLES[title]]
            for c, class_scores in point["classes"].items()
            if class_scores[TITLES[title]]["value"] is not None
        }
        missed = {c: share for c, share in shares.items() if share.get("high") is not None and share["high"] < goal}
        if not shares:
            continue
        worst = min(missed or shares, key=lambda c: shares[c]["value"])
        lowest = "lowest " if len(shares) > 1 else ""
        text = f"{title} {goal:g} required, {lowest}{wording.interval(shares[worst])} for {worst}."
        target_checks.append(Check(f"Operating point {name}", BAD if missed else GOOD, text, "points"))
    return target_checks


def transfer(scores: Mapping[str, Any], val: Mapping[str, Any]) -> Check | None:
    """Whether val, which chose the epoch, and test agree."""
    for group, name in metrics.BRIEF:
        on_split, on_val = ((s.get(group) or {}).get(name) or {} for s in (scores, val))
        if on_split.get("low") is None or on_val.get("low") is None:
            continue
        apart = on_split["high"] < on_val["low"] or on_val["high"] < on_split["low"]
        text = f"{metrics.metric(name).title} {on_val['value']:.3f} and {on_split['value']:.3f}: the intervals "
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
    if leak_list := audit.get("leaks"):
        return Check("Splits", BAD, f"{wording.counted(len(leak_list), 'leak')} between them.", "data")
    return Check("Splits", GOOD, "no patient and no image was found in two of them.", "data")


def opened(openings: Sequence[Any]) -> Check | None:
    if len(openings) < 2:
        return None
    text = f"opened {len(openings)} times; what was chosen after the first is optimistic."
    return Check("Test split", OPEN, text, "provenance")
