"""scores.json of a fit, and the lines that a fit or an evaluation of boxes ends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.evaluation import metrics, wording
from finetune.evaluation.detection.answers import DETECT
from finetune.evaluation.detection.assessment import DetectionAssessment, DetectionFit
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.thresholds import evaluate_operating_points
from finetune.evaluation.metrics import MACRO


def scores(
    tables: Mapping[str, Detections], assessment: DetectionAssessment, fitted: DetectionFit, seed: int
) -> dict[str, Any]:
    """What scores.json says of each split; of val its scores alone, as what was fitted on it looks too good there.

    What speaks against the run is said once, of test where there is one.
    """
    without_groups = replace(assessment, subgroups=[])
    result: dict[str, Any] = {}
    for split, table in tables.items():  # val first: test is compared with it
        if split == "val":
            of_split = without_groups.score(table, DetectionFit(), seed=seed, split=split)
        else:
            of_split = assessment.score(table, fitted, seed=seed, split=split, val=_compared(result, tables, fitted))
        result[split] = with_note(of_split, table)
    if len(result) > 1 and "val" in result:
        harms = [harm["text"] for harm in result["val"]["harms"]]
        result["val"]["warnings"] = [text for text in result["val"]["warnings"] if text not in harms]
        result["val"]["harms"] = []
    if fitted.notes and result:
        result["val" if "val" in result else "test"]["notes"] = fitted.notes
    return result


def _compared(
    result: Mapping[str, Any], tables: Mapping[str, Detections], fitted: DetectionFit
) -> dict[str, Any] | None:
    """The scores of val, with the operating points that tell by how much chance has moved their thresholds."""
    if "val" not in result:
        return None
    points = evaluate_operating_points(tables["val"], fitted.operating_points) if fitted.operating_points else {}
    return {**result["val"], "operating_points": points}


def with_note(of_split: dict[str, Any], table: Detections) -> dict[str, Any]:
    """The scores of a split with a warning on images that are not in them."""
    if n := table.unlabelled:
        what = (
            "1 image, whose true boxes are not known, is"
            if n == 1
            else f"{n:,} images, whose true boxes are not known, are"
        )
        of_split["warnings"] = [*of_split["warnings"], f"{what} not in the scores."]
    return of_split


def lines(scores: Mapping[str, Any], synthetic: bool) -> list[str]:
    """The means over the classes with their intervals and what the same box in every image gets; then the warnings."""
    made_up = " (SYNTHETIC images)" if synthetic else ""
    result = []
    for split, of_split in scores.items():
        for name in metrics.names(DETECT, headline=MACRO):
            score = (of_split.get(MACRO) or {}).get(name)
            if not score:
                continue
            entry = metrics.metric(name, DETECT)
            trivial = ((of_split.get("baseline") or {}).get(MACRO) or {}).get(name)
            beside = "" if trivial is None else f"; the same box in every image: {wording.number(trivial)}"
            result.append(f"{split}: {entry.in_group(MACRO)} {text_of(score)}{beside}{made_up}")
        result += [f"  {sentence}" for sentence in [*of_split.get("warnings", []), *of_split.get("notes", [])]]
    return result


def text_of(score: Mapping[str, Any]) -> str:
    """A score with its interval, or why there is none."""
    if score["value"] is None:
        return f"undefined ({score.get('reason') or 'no true boxes'})"
    interval = f" [{score['low']:.3f}, {score['high']:.3f}] (95 %)" if score["low"] is not None else ""
    return f"{score['value']:.3f}{interval}"
