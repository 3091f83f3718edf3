"""Problems to know before trusting a segmentation, the most harmful first: rules over the scores of a split.

As in classification/harms.py each rule is a function of the scores alone and fires only beyond chance; with several
regions, limits are widened for their number (Bonferroni). The rules, in order of harm:

- never found: no image of a region has any right pixel, where that rules out half of them.
- baseline: Dice is not shown to be above that of the same mask in every image: each pixel marked, or the mean shape of
  the training masks.
- false alarms: a region is predicted in more than half of the images without it.
- failures: the mean Dice lies `FAR` or more below the median: most images are right, some are lost.
- val and test: their intervals of the mean Dice do not overlap.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from finetune.evaluation import wording
from finetune.evaluation.classification.harms import HALF, Harm, Scores, listed, of_classes, stretched

FAR = 0.1
MASKS = {"everything": "marking every pixel", "mean shape": "the mean shape of the training masks"}
"""Answer of the baseline -> the same in words."""


def harms(scores: Scores, split: str = "test", val: Scores | None = None) -> list[dict[str, Any]]:
    """{rule, short, text, classes} of every rule that fires on the `scores` of a split, the most harmful first.

    Args:
        val: the scores of val, where `scores` are those of test.
    """
    fired = [
        never_found(scores),
        baseline(scores),
        false_alarms(scores),
        failures(scores),
        val_and_test(val, scores, split) if val else None,
    ]
    return [asdict(harm) for harm in fired if harm is not None]


def never_found(scores: Scores) -> Harm | None:
    """Regions of which no image has a single right pixel."""
    classes = scores["classes"]
    names = []
    for name, of_class in classes.items():
        low = stretched(of_class["missed"], len(classes))[0]
        if of_class["missed"]["value"] == 1 and low is not None and low > HALF:
            names.append(name)
    if not names:
        return None

    def numbers(name: str) -> str:
        return f"{name} (0 of {wording.counted(classes[name]['positives'], 'image')})"

    return Harm(
        "never found",
        f"never found: {', '.join(names)}",
        f"Not a single right pixel: {listed(names, numbers)}.",
        names,
    )


def baseline(scores: Scores) -> Harm | None:
    """The Dice is not shown to be above that of the same mask in every image; regions never found have their own
    rule."""
    about = scores.get("baseline") or {}
    gains = {name: gain["dice"] for name, gain in about.get("gains", {}).items()}
    names = []
    for name, gain in gains.items():
        low = stretched(gain, len(gains))[0]
        if gain["value"] is not None and (gain["value"] if low is None else low) <= 0:
            names.append(name)
    lost = never_found(scores)
    names = [name for name in names if lost is None or name not in lost.classes]
    if not names:
        return None

    def numbers(name: str) -> str:
        of_network, trivial = scores["classes"][name]["dice"], about["classes"][name]
        mask = trivial.get("answer", "everything")
        numbers = f"{wording.interval(of_network)} against {trivial['dice']:.3f} of {MASKS[mask]}"
        return f"{name} {numbers}, {wording.difference(gains[name])}"

    return Harm(
        "baseline",
        f"Dice{of_classes(names)} is not shown to be above that of one fixed mask",
        f"The Dice is not shown to be above that of the same mask in every image: {listed(names, numbers)}.",
        names,
    )


def false_alarms(scores: Scores) -> Harm | None:
    """Regions that are predicted in more than half of the images without them."""
    classes = scores["classes"]
    names = []
    for name, of_class in classes.items():
        low = stretched(of_class["false_alarms"], len(classes))[0]
        if low is not None and low > HALF:
            names.append(name)
    if not names:
        return None

    def numbers(name: str) -> str:
        share = wording.percent(classes[name]["false_alarms"])
        return f"{name} in {share} of {wording.counted(classes[name]['negatives'], 'image')}"

    return Harm(
        "false alarms",
        f"predicted where it is not: {', '.join(names)}",
        f"Predicted in more than half of the images without it: {listed(names, numbers)}.",
        names,
    )


def failures(scores: Scores) -> Harm | None:
    """Regions whose mean Dice lies far below the median, beyond the mean's interval."""
    classes = scores["classes"]
    names = []
    for name, of_class in classes.items():
        dice, median = of_class["dice"], of_class["dice"]["median"]["value"]
        high = stretched(dice, len(classes))[1]
        if high is not None and median - dice["value"] >= FAR and high < median:
            names.append(name)
    if not names:
        return None

    def numbers(name: str) -> str:
        of_class = classes[name]
        missed = f"{of_class['missed']['count']:,} of {wording.counted(of_class['positives'], 'image')} missed"
        median = wording.number(of_class["dice"]["median"]["value"])
        return f"{name} {wording.interval(of_class['dice'])} against a median of {median}, {missed}"

    return Harm(
        "failures",
        f"some images are lost{of_classes(names)}",
        f"The mean Dice lies far below the median, so some images are lost: {listed(names, numbers)}.",
        names,
    )


def val_and_test(val: Scores, test: Scores, split: str = "test") -> Harm | None:
    """The mean Dice over the same regions on val and on test, with intervals that do not overlap. Val chose the epoch,
    so val may be slightly better."""
    defined = [
        [name for name, of_class in scores["classes"].items() if of_class["dice"]["value"] is not None]
        for scores in (val, test)
    ]
    a, b = (scores["macro"]["dice"] for scores in (val, test))
    if defined[0] != defined[1] or None in (a["low"], b["low"]) or not (a["low"] > b["high"] or b["low"] > a["high"]):
        return None
    return Harm(
        "val and test",
        f"val and {split} disagree",
        f"Val and {split} differ by more than chance: Dice {wording.interval(a)} on val, {wording.interval(b)} on "
        f"{split}. What was chosen on val may not hold here.",
    )
