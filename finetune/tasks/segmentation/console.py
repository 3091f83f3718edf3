"""The lines that a fit or an evaluation of masks ends with."""

from collections.abc import Mapping
from typing import Any

MAX_REGIONS = 12


def lines(scores: Mapping[str, Any], synthetic: bool) -> list[str]:
    """The mean Dice of each split, that of each region, and what speaks against them."""
    made_up = " (SYNTHETIC images)" if synthetic else ""
    result = []
    for split, of_split in scores.items():
        dice = of_split["macro"]["dice"]
        trivial = ((of_split.get("baseline") or {}).get("macro") or {}).get("dice")
        beside = "" if trivial is None else f"; the same mask in every image: {trivial:.3f}"
        result.append(f"{split}: mean Dice {text_of(dice)}{beside}{made_up}")
        for name, of_region in list(of_split["classes"].items())[:MAX_REGIONS]:
            distance, unit = of_region["hd95"], of_split["unit"]
            far = f", 95 % Hausdorff {distance['value']:.1f} {unit}" if distance["value"] is not None else ""
            result.append(f"{split}: {name} Dice {text_of(of_region['dice'])}{far}")
        result += [f"  {sentence}" for sentence in [*of_split.get("warnings", []), *of_split.get("notes", [])]]
    return result


def text_of(score: Mapping[str, Any]) -> str:
    """A score with its interval, or why there is none."""
    if score["value"] is None:
        return f"undefined ({score.get('reason') or 'no image has the region'})"
    interval = f" [{score['low']:.3f}, {score['high']:.3f}] (95 %)" if score["low"] is not None else ""
    return f"{score['value']:.3f}{interval}"
