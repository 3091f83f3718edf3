"""Calibration, operating points, subgroups and openings of the test split for the report, from scores.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.evaluation import metrics, wording
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.reliability import LOSSES, Bins, binned, top_label
from finetune.pages import plots

MAX_FIGURES = 14  # reliability diagrams; the table has all classes
MIN_IMAGES = 100  # known labels below which a reliability diagram shows chance more than calibration
MIN_BIN_SIZE = 20  # images that a drawn bin holds
TOP = "All classes, the most probable"
TIMES = {"network": "before", "calibrated": "after"}
BESIDE = ("average_precision", "sensitivity", "specificity")
"""Scores in the table of groups, beside the one that they are compared by."""
METHODS = {
    "temperature": "one temperature for all classes",
    "platt": "a slope and an offset for each class (Platt)",
    "isotonic": "a rising curve for each class (isotonic regression)",
}


def calibration(scores: dict[str, Any], predictions: Predictions | None = None) -> dict[str, Any] | None:
    """Rows of scores before and after calibration, with reliability diagrams; without one, the diagrams alone.

    The diagrams of classes with fewer than MIN_IMAGES images are left out and named in `few`.
    """
    fitted = scores.get("calibration")
    named: dict[str, dict[str, Any]] = {}
    if fitted:
        named = {**({TOP: fitted["overall"]} if "overall" in fitted else {}), **fitted["classes"]}
    bins_by_name: dict[str, list[Bins]]
    if fitted:
        bins_by_name = {name: [_bins(part[when]) for when in TIMES.values()] for name, part in named.items()}
    else:
        bins_by_name = {name: [bins] for name, bins in (network_bins(predictions) if predictions else {}).items()}
    rows = [
        {
            "name": name,
            "lines": [
                *((title, [wording.interval(part[when].get(m)) for m in LOSSES]) for title, when in TIMES.items()),
                ("change", [wording.difference(part["difference"].get(m)) for m in LOSSES]),
            ],
        }
        for name, part in named.items()
    ]
    too_few = [name for name, part in bins_by_name.items() if part[0].count.sum() < MIN_IMAGES]
    figures = []
    for name in [name for name in bins_by_name if name not in too_few][:MAX_FIGURES]:
        errors = [wording.number(part.error()) for part in bins_by_name[name]]
        caption = ", calibrated ".join([f"calibration error {errors[0]}", *errors[1:]])
        bins = [plots.merged(part, MIN_BIN_SIZE) for part in bins_by_name[name]]
        svg = plots.reliability(bins[0], f"Reliability of {name}: {caption}", *bins[1:])
        figures.append((f"{name}: {caption}", Markup(svg)))
    if not rows and not bins_by_name:
        return None
    return {
        "method": METHODS.get(fitted["method"], fitted["method"]) if fitted else None,
        "about": (fitted or {}).get("fitted_on") or {},
        "rows": rows,
        "metrics": LOSSES,
        "figures": figures,
        "few": too_few,
        "min_images": MIN_IMAGES,
        "min_bin_size": MIN_BIN_SIZE,
    }


def _bins(part: dict[str, Any]) -> Bins:
    return Bins(**{key: np.array(values) for key, values in part["bins"].items()})


def network_bins(predictions: Predictions) -> dict[str, Bins]:
    """Bins of the network's probabilities, for classes with positives and negatives."""
    truth, probs = predictions.truth, predictions.probs
    both = [k for k in range(len(predictions.classes)) if (truth[:, k] == 1).any() and (truth[:, k] == 0).any()]
    overall = {TOP: binned(*top_label(predictions))} if predictions.kind == "multiclass" and len(predictions) else {}
    return overall | {predictions.classes[k]: binned(truth[:, k], probs[:, k]) for k in both}


def operating_points(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """One table per point: class, threshold and its scores."""
    names = metrics.names(at_threshold=True)
    points = []
    for name, point in (scores.get("operating_points") or {}).items():
        rows = [
            {
                "name": c,
                "threshold": f"{values['threshold']:.4g}",
                "cells": [wording.interval(values[m]) for m in names],
                "counts": [values[count] for count in ("tp", "fp", "fn", "tn")],
            }
            for c, values in point["classes"].items()
        ]
        points.append({"name": name, "criterion": point["criterion"], "rows": rows})
    return points


def subgroups(
    scores: dict[str, Any], head: str = "auroc", beside: Sequence[str] = BESIDE, task: str = "classify"
) -> dict[str, Any] | None:
    """Per column a forest plot, a table and the gap; and the columns that were left out, with the reason.

    Args:
        head: the score whose mean over the classes is compared, where there is no accuracy.
        beside: further scores in the table.
    """
    subgroup_scores = scores.get("subgroups")
    if not subgroup_scores:
        return None
    columns = []
    for column, of_column in subgroup_scores.items():
        if "groups" not in of_column:
            continue
        groups, gaps = of_column["groups"], of_column["gaps"]
        several = len(next(iter(groups.values()))["classes"]) > 1
        accuracy = all("accuracy" in (group_scores.get("overall") or {}) for group_scores in groups.values())
        where, metric = ("overall", "accuracy") if accuracy else ("macro", head)
        title = metrics.metric(metric, task).in_group(where if several else "")
        compared = {
            name: group_scores[where][metric] if accuracy else (group_scores.get("compared") or {}).get(metric)
            for name, group_scores in groups.items()
        }
        points = [(f"{name} ({group_scores['n']:,})", compared[name] or {}) for name, group_scores in groups.items()]
        rows = [
            {
                "name": name,
                "n": group_scores["n"],
                "patients": group_scores["patients"],
                "note": group_scores.get("note"),
                "cells": [
                    wording.interval(compared[name]) if compared[name] else "too few",
                    *(wording.interval(group_scores["macro"].get(m)) for m in beside),
                ],
            }
            for name, group_scores in groups.items()
        ]
        gap = gaps[where].get(metric)
        defined = [point for point in points if point[1].get("value") is not None]
        label = f"{title} by {column}: " + "; ".join(f"{name} {wording.interval(score)}" for name, score in defined)
        columns.append(
            {
                "name": column,
                "title": title,
                "figure": Markup(plots.forest(defined, label, title)) if len(defined) > 1 else None,
                "heads": [title, *(metrics.metric(name, task).title for name in beside)],
                "rows": rows,
                "gap": wording.gap(gap, title) if gap else None,
                "over": (gap or {}).get("classes") if several else None,
            }
        )
    left_out = {
        column: group_scores["left_out"]
        for column, group_scores in subgroup_scores.items()
        if "left_out" in group_scores
    }
    return {"columns": columns, "left_out": left_out}


def openings(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How often the scores of the test split were seen, when, and by which command."""
    if not records:
        return None
    times = [
        (str(record.get("when")), wording.shortened_command(str(record.get("command") or ""))) for record in records
    ]
    count = {1: "once, by the fit itself", 2: "twice"}.get(len(times), f"{len(times)} times")
    return {"count": count, "times": times, "often": len(times) > 1}


def errors(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The most confident errors, each with its id and a sentence."""
    texts = [wording.error(record) for record in records]
    return [
        {**record, "id": f"error-{number}", "text": text, "alt": f"{record['sample']}: {text}"}
        for number, (record, text) in enumerate(zip(records, texts, strict=True), 1)
    ]
