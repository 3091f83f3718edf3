"""scores.json of a fit, and the lines that a fit or an evaluation ends with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.evaluation import metrics, wording
from finetune.evaluation.classification.assessment import Assessment, FittedOnVal
from finetune.evaluation.classification.predictions import Predictions


def scores(tables: Mapping[str, Predictions], assessment: Assessment, fitted: FittedOnVal, seed: int) -> dict[str, Any]:
    """What scores.json says of each split; of val its scores alone, as what was fitted on it looks too good there.

    What speaks against the run is said once, of test where there is one.
    """
    plainly = replace(assessment, subgroups=[])
    result: dict[str, Any] = {}
    for split, table in tables.items():  # val first: test is compared with it
        if split == "val":
            result[split] = plainly.score(table, FittedOnVal(), seed=seed, split=split)
        else:
            result[split] = assessment.score(table, fitted, seed=seed, split=split, val=result.get("val"))
    if len(result) > 1 and "val" in result:
        harms = [harm["text"] for harm in result["val"]["harms"]]
        result["val"]["warnings"] = [text for text in result["val"]["warnings"] if text not in harms]
        result["val"]["harms"] = []
    if fitted.notes:
        result["val" if "val" in result else "test"]["notes"] = fitted.notes
    return result


def lines(scores: Mapping[str, Any], synthetic: bool) -> list[str]:
    """The numbers that matter, each with its interval and what an answer that looks at no image gets."""
    made_up = " (SYNTHETIC images)" if synthetic else ""
    result = []
    for split, of_split in scores.items():
        for group, metric in metrics.HEADLINES:
            score = (of_split.get(group) or {}).get(metric)
            if score and score["value"] is not None:
                interval = f" [{score['low']:.3f}, {score['high']:.3f}] (95 %)" if score["low"] is not None else ""
                name = metrics.metric(metric).in_group(group)
                trivial = wording.baseline(of_split, group, metric)
                result.append(
                    f"{split}: {name} {score['value']:.3f}{interval}{'; ' + trivial if trivial else ''}{made_up}"
                )
        for name, score in of_split.get("own_metrics", {}).items():
            result.append(f"{split}: {name} {text_of(score)}")
        result += [f"  {sentence}" for sentence in [*of_split.get("warnings", []), *of_split.get("notes", [])]]
    return result


def text_of(score: dict[str, Any]) -> str:
    """A score of the user's own with its interval, or the reason that there is none."""
    if score["value"] is None:
        return str(score["reason"])
    interval = f"[{score['low']:.4g}, {score['high']:.4g}] (95 %)" if score["low"] is not None else score["reason"]
    return f"{score['value']:.4g} {interval}"
