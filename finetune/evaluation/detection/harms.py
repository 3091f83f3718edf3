"""Problems to know before trusting a detector, the most harmful first: rules over the scores of a split in scores.json.

Each rule fires only beyond chance, with limits widened for the number of comparisons (Bonferroni), as in
classification/harms.py. In order of harm:

- points: a threshold chosen for a number of false positives per image gives at least `TIMES` as many.
- baseline: the average precision is not shown to be above that of the same box in every image.
- never found: a class of which no box is found at an operating point, where that rules out a sensitivity of one half.
- calibration: it raises the log loss of the box scores by more than `MIN_RISE` of it.
- val and test: their intervals of the same score do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from finetune.evaluation import wording
from finetune.evaluation.classification.harms import HALF, MIN_RISE, Harm, listed, of_classes, stretched

TIMES = 1.5
Scores = Mapping[str, Any]


def harms(scores: Scores, split: str = "test", val: Scores | None = None) -> list[dict[str, Any]]:
    """{rule, short, text, classes} of every rule that fires on the `scores` of a split, the most harmful first.

    Args:
        val: the scores of val, where `scores` are those of test.
    """
    fired = [
        points(scores, val),
        baseline(scores),
        never_found(scores),
        calibration(scores),
        val_and_test(val, scores, split) if val else None,
    ]
    return [asdict(harm) for harm in fired if harm is not None]


def points(scores: Scores, val: Scores | None = None) -> Harm | None:
    """More false positives per image than a threshold was chosen for, beyond the chance of this split and of val."""
    every = scores.get("operating_points") or {}
    looks = [(name, c) for name, point in every.items() for c in point["classes"]]

    def exceeds(name: str, c: str) -> bool:
        goal, rate = every[name]["goal_value"], every[name]["classes"][c]["false_positives"]
        low = stretched(rate, len(looks))[0]
        if low is None or rate["value"] < TIMES * goal:
            return False
        fitted = ((val or {}).get("operating_points") or {}).get(name, {}).get("classes", {}).get(c)
        high = stretched(fitted["false_positives"], len(looks))[1] if fitted else None
        by_val = high - fitted["false_positives"]["value"] if fitted and high is not None else 0.0
        return bool(rate["value"] - goal > ((rate["value"] - low) ** 2 + by_val**2) ** 0.5)

    over = [key for key in looks if exceeds(*key)]
    if not over:
        return None

    def numbers(key: tuple[str, str]) -> str:
        point = every[key[0]]
        rate = wording.interval(point["classes"][key[1]]["false_positives"], 2)
        return f"{key[1]} at {key[0]} gives {rate} per image instead of {point['goal_value']:g}"

    classes = list(dict.fromkeys(c for _, c in over))
    return Harm(
        "points",
        f"more false positives than the operating points allow{of_classes(classes)}",
        f"Thresholds chosen on val give more false positives here: {listed(over, numbers)}.",
        classes,
    )


def baseline(scores: Scores) -> Harm | None:
    """The detector is no better than the same box in every image."""
    trivial = (scores.get("baseline") or {}).get("classes") or {}
    looks = {name: scores["classes"][name]["ap50"] for name in trivial}

    def beaten(name: str) -> bool:
        low = stretched(looks[name], len(looks))[0]
        value = looks[name]["value"]
        return value is not None and (value if low is None else low) <= trivial[name]["ap50"]

    names = [name for name in looks if beaten(name)]
    if not names:
        return None

    def numbers(name: str) -> str:
        return f"{name} {wording.interval(looks[name])} against {trivial[name]['ap50']:.3f}"

    return Harm(
        "baseline",
        f"AP50{of_classes(names)} is not shown to be above that of one fixed box",
        f"The AP50 is not shown to be above that of the same box in every image: {listed(names, numbers)}.",
        names,
    )


def never_found(scores: Scores) -> Harm | None:
    """Classes of which an operating point finds no box."""
    lost: dict[str, str] = {}
    for name, point in (scores.get("operating_points") or {}).items():
        for c, values in point["classes"].items():
            high = values["sensitivity"]["high"]
            if values["sensitivity"]["value"] == 0 and high is not None and high < HALF:
                lost.setdefault(c, f"{c} at {name} (0 of {values['fn']})")
    if not lost:
        return None
    text = f"No true box is found: {listed(list(lost), lost.__getitem__)}."
    return Harm("never found", f"never found: {', '.join(lost)}", text, list(lost))


def calibration(scores: Scores) -> Harm | None:
    """Calibrated box scores have a higher log loss than those of the network."""
    every = (scores.get("calibration") or {}).get("classes", {})

    def worse(part: Scores) -> bool:
        change, before = part["difference"]["log_loss"], part["before"]["log_loss"]["value"]
        low = stretched(change, len(every))[0]
        return low is not None and low > 0 and change["value"] > MIN_RISE * before

    names = [name for name, part in every.items() if worse(part)]
    if not names:
        return None

    def numbers(name: str) -> str:
        before, after = (every[name][when]["log_loss"]["value"] for when in ("before", "after"))
        return f"{name} from {before:.3f} to {after:.3f}"

    return Harm(
        "calibration",
        f"calibration makes the box scores{of_classes(names)} worse",
        f"Calibration raises the log loss of the box scores: {listed(names, numbers)}. Use the score as it is.",
        names,
    )


def val_and_test(val: Scores, test: Scores, split: str = "test") -> Harm | None:
    """The same score on val and on test, with intervals that do not overlap; the same classes must have one on both."""
    defined = [
        [name for name, c in s.get("classes", {}).items() if c["ap50"]["value"] is not None] for s in (val, test)
    ]
    apart = []
    for metric, title in (("ap50", "AP50"), ("froc", "mean FROC sensitivity")):
        a, b = (s.get("macro", {}).get(metric) for s in (val, test))
        if not a or not b or defined[0] != defined[1] or None in (a["low"], b["low"]):
            continue
        if a["low"] > b["high"] or b["low"] > a["high"]:
            apart.append(f"{title} {wording.interval(a)} on val, {wording.interval(b)} on {split}")
    if not apart:
        return None
    return Harm(
        "val and test",
        f"val and {split} disagree",
        f"Val and {split} differ by more than chance: {'; '.join(apart)}. What was fitted on val may not hold here.",
    )
