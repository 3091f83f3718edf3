"""Scores of masks as text for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.evaluation.wording import counted, in_words, interval

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "assd": "average surface distance",
    "hd95": "95 % Hausdorff distance",
}


def why_undefined(score: str, counts: Mapping[str, Any], overlapping: bool) -> str:
    """The reason why the score of a region is defined in no image.

    Args:
        counts: `positives` and `negatives`, images with and without the region.
        overlapping: whether any image has the region both marked and predicted.
    """
    if not counts["positives"] and not counts["negatives"]:
        return "nothing known"
    if score == "sensitivity":
        return "no image has the region"
    if score == "precision":
        return "never predicted"
    if score in ("assd", "hd95"):
        if overlapping:
            return "not measured: the spacing is unknown, or masks were marked at another threshold"
        return "no image has the region both marked and predicted"
    return "no image has the region, and it is never predicted"


def verdict(scores: Mapping[str, Any], split: str, has_patients: bool = True) -> list[str]:
    """The result in a few sentences, the most important first: what speaks against the run, then its Dice, compared
    with that of the same mask in every image."""
    people = f" of {scores['patients']:,} patients" if has_patients else ""
    images = f"{counted(scores['n'], 'image')}{people}"
    on = f"On all images of these data ({images})" if split == "all" else f"On the {split} split ({images})"
    harm = [harm["short"] for harm in scores.get("harms", [])]
    sentences = [f"Before use: {'; '.join(harm)}."] if harm else []
    macro, classes = scores["macro"]["dice"], scores["classes"]
    if macro["value"] is None:
        return [*sentences, f"{on} no region has a defined Dice."]
    defined = {name: c["dice"] for name, c in classes.items() if c["dice"]["value"] is not None}
    over = f", the mean over {len(defined)} of {len(classes)} regions" if len(classes) > 1 else ""
    trivial = (scores.get("baseline") or {}).get("macro", {}).get("dice")
    compared = "" if trivial is None else f"; the same mask in every image gives {trivial:.3f}"
    sentences.append(f"{on} the Dice is {in_words(macro)}{over}{compared}.")
    if len(defined) > 1:
        best, worst = (pick(defined, key=lambda name: defined[name]["value"]) for pick in (max, min))
        sentences.append(
            f"The highest Dice is that of {best}, {interval(defined[best])}, the lowest that of {worst}, "
            f"{interval(defined[worst])}."
        )
    lost = {name: c["missed"] for name, c in classes.items() if c["missed"]["count"]}
    if lost:
        listed = ", ".join(f"{name} in {c['count']:,} of {classes[name]['positives']:,}" for name, c in lost.items())
        sentences.append(f"Missed completely: {listed} images that have the region.")
    return sentences
