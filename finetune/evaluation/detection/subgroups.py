"""AP50 and FROC of each group of a metadata column, and the gap between the best and the worst group.

Groups, bands of numbers and the correction for the number of pairs are those of classification/subgroups.py. A mean
over classes is compared over those of which every group has enough patients with a true box.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.classification.scores import mean_of_defined
from finetune.evaluation.classification.subgroups import (
    MAX_RESAMPLES,
    UNKNOWN,
    grouped,
    ordered,
    wanted_columns,
    widest_gap,
)
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.scorer import Scorer, Scores, joined
from finetune.evaluation.detection.summary import described
from finetune.statistics import intervals
from finetune.statistics.intervals import MIN_PATIENTS

GAPS = ("ap50", "froc")
TITLES = {"ap50": "AP50", "froc": "The mean FROC sensitivity"}


def subgroups(
    detections: Detections,
    columns: list[str] | str | None = "all",
    *,
    n_boot: int = 2000,
    seed: int = 0,
    hit: str = "iou",
) -> dict[str, Any]:
    """Column -> {groups: {group: {n, patients, macro, classes, note}}, worst, best, gaps}, or {left_out: why}."""
    result: dict[str, Any] = {}
    for column in wanted_columns(detections.metadata, columns):
        group, why = grouped(detections.images[column], detections.patients.astype(str), column)
        result[column] = (
            {"left_out": why} if why else _of_column(detections, group, min(n_boot, MAX_RESAMPLES), seed, hit)
        )
    return result


def _of_column(detections: Detections, group: np.ndarray, n_boot: int, seed: int, hit: str) -> dict[str, Any]:
    everyone, patient = np.unique(detections.patients.astype(str), return_inverse=True)
    names, scorers, owners = ordered(group), {}, {}
    for name in names:
        rows = group == name
        scorers[name], owners[name] = Scorer(detections.select(rows), ious=(0.5,), hit=hit), np.unique(patient[rows])
    chunks: dict[str, list[Scores]] = {name: [] for name in names}
    for weight in intervals.resamples(len(everyone), n_boot, seed):  # the same draw for all groups
        for name in names:
            chunks[name].append(scorers[name](weight[owners[name]]))
    scores = {name: (scorers[name].values(), joined(chunks[name])) for name in names}
    groups = {}
    for name in names:
        about: dict[str, Any] = {"n": len(scorers[name].detections), "patients": scorers[name].n_patients}
        if about["patients"] < MIN_PATIENTS:
            about["note"] = f"fewer than {MIN_PATIENTS} patients"
        groups[name] = {**about, **described(scorers[name], *scores[name])}
    compared = {name: pair for name, pair in scores.items() if name != UNKNOWN}
    gaps = _gaps(detections.classes, compared, groups)
    head = gaps["macro"].get("ap50")
    named = {"worst": head["worst"], "best": head["best"]} if head else {}
    return {"groups": groups, **named, "gaps": gaps}


def _gaps(
    classes: list[str], scores: dict[str, tuple[Scores, Scores | None]], groups: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """{macro: {metric: gap}, classes: {class: {metric: gap}}}; a gap is {worst, best, value, low, high, pairs}."""

    def enough(name: str, c: str) -> bool:
        return bool(groups[name]["classes"][c]["patients_with"] >= MIN_PATIENTS)

    shared = [k for k, c in enumerate(classes) if scores and all(enough(name, c) for name in scores)]
    gaps: dict[str, dict[str, Any]] = {"macro": {}, "classes": {c: {} for c in classes}}
    for metric in GAPS:
        for k, c in enumerate(classes):
            of_class = {
                name: (float(value.classes[metric][k, 0]), _samples(resampled, metric, [k]))
                for name, (value, resampled) in scores.items()
                if enough(name, c)
            }
            if gap := widest_gap(metric, of_class):
                gaps["classes"][c][metric] = gap
        means = {
            name: (float(value.classes[metric][shared, 0].mean()), _samples(resampled, metric, shared))
            for name, (value, resampled) in scores.items()
            if shared
        }
        if gap := widest_gap(metric, means):
            gaps["macro"][metric] = {**gap, "classes": [classes[k] for k in shared]}
    return gaps


def _samples(resampled: Scores | None, metric: str, rows: list[int]) -> np.ndarray:
    return mean_of_defined(resampled.classes[metric][rows]) if resampled else np.zeros(0)


def gap_warnings(groups: dict[str, Any]) -> list[str]:
    """Sentences on the gaps that are beyond chance."""
    sentences = []
    for column, of_column in groups.items():
        for metric, gap in of_column.get("gaps", {}).get("macro", {}).items():
            if gap["low"] is not None and gap["low"] > 0:
                sentences.append(
                    f"{TITLES[metric]} is lower for {column} = {gap['worst']} than for {gap['best']}: "
                    f"by {gap['value']:.3f} ({gap['low']:.3f} to {gap['high']:.3f})."
                )
    return sentences
