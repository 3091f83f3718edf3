"""scores.json of a fit, and the last lines of a fit or an evaluation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.evaluation import metrics, wording
from finetune.evaluation.classification.assessment import Assessment, FittedOnVal
from finetune.evaluation.classification.predictions import Predictions


def compute_scores(
    tables: Mapping[str, Predictions], assessment: Assessment, fitted: FittedOnVal, seed: int
) -> dict[str, Any]:
    """The scores of each split, for scores.json. Values fitted on val are not scored on val, where they look too good.

    Harms are reported once, for test if there is one.
    """
    without_subgroups = replace(assessment, subgroups=[])
    result: dict[str, Any] = {}
    for split, table in tables.items():  # val first: test is compared with it
        if split == "val":
            result[split] = without_subgroups.score(table, FittedOnVal(), seed=seed, split=split)
        else:
            result[split] = assessment.score(table, fitted, seed=seed, split=split, val=result.get("val"))
    if len(result) > 1 and "val" in result:
        harms = [harm["text"] for harm in result["val"]["harms"]]
        result["val"]["warnings"] = [text for text in result["val"]["warnings"] if text not in harms]
        result["val"]["harms"] = []
    if fitted.notes:
        result["val" if "val" in result else "test"]["notes"] = fitted.notes
    return result


def summary_lines(scores: Mapping[str, Any], synthetic: bool) -> list[str]:
    """The headline scores, each with its interval and the score of a trivial prediction."""
    synthetic_note = " (SYNTHETIC images)" if synthetic else ""
    result = []
    for split, split_scores in scores.items():
        for group, metric in metrics.HEADLINES:
            score = (split_scores.get(group) or {}).get(metric)
            if score and score["value"] is not None:
                interval = f" [{score['low']:.3f}, {score['high']:.3f}] (95 %)" if score["low"] is not None else ""
                name = metrics.metric(metric).in_group(group)
                trivial = wording.baseline(split_scores, group, metric)
                result.append(
                    f"{split}: {name} {score['value']:.3f}{interval}{'; ' + trivial if trivial else ''}{synthetic_note}"
                )
        for name, score in split_scores.get("own_metrics", {}).items():
            result.append(f"{split}: {name} {format_score(score)}")
        result += [f"  {sentence}" for sentence in [*split_scores.get("warnings", []), *split_scores.get("notes", [])]]
    return result


def format_score(score: dict[str, Any]) -> str:
    """A score of a user's metric with its interval, or the reason why it is undefined."""
    if score["value"] is None:
        return str(score["reason"])
    interval = f"[{score['low']:.4g}, {score['high']:.4g}] (95 %)" if score["low"] is not None else score["reason"]
    return f"{score['value']:.4g} {interval}"
