"""What the report says of calibration, operating points, subgroups and openings of the test split, from scores.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.evaluation import wording
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.reliability import LOSSES, Bins, binned, top_label
from finetune.pages import plots

MAX_FIGURES = 14  # reliability diagrams; the table has all classes
MIN_IMAGES = 100  # known labels below which a reliability diagram shows chance more than calibration
MIN_BIN_SIZE = 20  # images that a drawn bin holds
TOP = "All classes, the most probable"
TIMES = {"network": "before", "calibrated": "after"}
MACRO = ("average_precision", "sensitivity", "specificity")
METHODS = {
    "temperature": "one temperature for all classes",
    "platt": "a slope and an offset for each class (Platt)",
    "isotonic": "a rising curve for each class (isotonic regression)",
}


def calibration(scores: dict[str, Any], predictions: Predictions | None = None) -> dict[str, Any] | None:
    """Rows of before and after, with their reliability diagrams; without a calibration, the diagrams alone.

    The diagrams of classes with fewer than MIN_IMAGES images are left out: `few` names them.
    """
    fitted = scores.get("calibration")
    named: dict[str, dict[str, Any]] = {}
    if fitted:
        named = {**({TOP: fitted["overall"]} if "overall" in fitted else {}), **fitted["classes"]}
    drawn: dict[str, list[Bins]]
    if fitted:
        drawn = {name: [_bins(each[when]) for when in TIMES.values()] for name, each in named.items()}
    else:
        drawn = {name: [bins] for name, bins in (network_bins(predictions) if predictions else {}).items()}
    rows = [
        {
            "name": name,
            "lines": [
                *((title, [wording.interval(each[when].get(m)) for m in LOSSES]) for title, when in TIMES.items()),
                ("change", [wording.difference(each["difference"].get(m)) for m in LOSSES]),
            ],
        }
        for name, each in named.items()
    ]
    few = [name for name, each in drawn.items() if each[0].count.sum() < MIN_IMAGES]
    figures = []
    for name in [name for name in drawn if name not in few][:MAX_FIGURES]:
        errors = [wording.number(each.error()) for each in drawn[name]]
        caption = ", calibrated ".join([f"calibration error {errors[0]}", *errors[1:]])
        bins = [plots.merged(each, MIN_BIN_SIZE) for each in drawn[name]]
        svg = plots.reliability(bins[0], f"Reliability of {name}: {caption}", *bins[1:])
        figures.append((f"{name}: {caption}", Markup(svg)))
    if not rows and not drawn:
        return None
    return {
        "method": METHODS.get(fitted["method"], fitted["method"]) if fitted else None,
        "about": (fitted or {}).get("fitted_on") or {},
        "rows": rows,
        "figures": figures,
        "few": few,
        "least": MIN_IMAGES,
        "least_bin": MIN_BIN_SIZE,
    }


def _bins(told: dict[str, Any]) -> Bins:
    return Bins(**{key: np.array(values) for key, values in told["bins"].items()})


def network_bins(predictions: Predictions) -> dict[str, Bins]:
    """The bins of the network's own probabilities, of classes with positives and negatives."""
    truth, probs = predictions.truth, predictions.probs
    both = [k for k in range(len(predictions.classes)) if (truth[:, k] == 1).any() and (truth[:, k] == 0).any()]
    overall = {TOP: binned(*top_label(predictions))} if predictions.kind == "multiclass" and len(predictions) else {}
    return overall | {predictions.classes[k]: binned(truth[:, k], probs[:, k]) for k in both}


def operating_points(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """One table per point: class, threshold and what it gives."""
    metrics = ("sensitivity", "specificity", "ppv", "npv")
    points = []
    for name, found in (scores.get("operating_points") or {}).items():
        rows = [
            {
                "name": c,
                "threshold": f"{each['threshold']:.4g}",
                "cells": [wording.interval(each[m]) for m in metrics],
                "counts": [each[count] for count in ("tp", "fp", "fn", "tn")],
            }
            for c, each in found["classes"].items()
        ]
        points.append({"name": name, "wish": found["wish"], "rows": rows})
    return points


def subgroups(scores: dict[str, Any]) -> dict[str, Any] | None:
    """Per column a forest plot, a table and the gap; and the columns that were left out, with the reason."""
    found = scores.get("subgroups")
    if not found:
        return None
    columns = []
    for column, of_column in found.items():
        if "groups" not in of_column:
            continue
        groups, gaps = of_column["groups"], of_column["gaps"]
        several = len(next(iter(groups.values()))["classes"]) > 1
        accuracy = all("accuracy" in (of.get("overall") or {}) for of in groups.values())
        where, metric = ("overall", "accuracy") if accuracy else ("macro", "auroc")
        title = "accuracy" if accuracy else "macro AUROC" if several else "AUROC"
        head = {
            name: of[where][metric] if accuracy else (of.get("compared") or {}).get(metric)
            for name, of in groups.items()
        }
        drawn = [(f"{name} ({of['n']:,})", head[name] or {}) for name, of in groups.items()]
        rows = [
            {
                "name": name,
                "n": of["n"],
                "patients": of["patients"],
                "note": of.get("note"),
                "cells": [
                    wording.interval(head[name]) if head[name] else "too few",
                    *(wording.interval(of["macro"][m]) for m in MACRO),
                ],
            }
            for name, of in groups.items()
        ]
        gap = gaps["overall"].get("accuracy") if accuracy else gaps["macro"].get("auroc")
        known = [each for each in drawn if each[1].get("value") is not None]
        label = f"{title} by {column}: " + "; ".join(f"{name} {wording.interval(score)}" for name, score in known)
        columns.append(
            {
                "name": column,
                "title": title,
                "figure": Markup(plots.forest(known, label, title)) if len(known) > 1 else None,
                "heads": ["accuracy" if accuracy else title, "average precision", "sensitivity", "specificity"],
                "rows": rows,
                "gap": wording.gap(gap, title) if gap else None,
                "over": (gap or {}).get("classes") if several else None,
            }
        )
    left_out = {column: of["left_out"] for column, of in found.items() if "left_out" in of}
    return {"columns": columns, "left_out": left_out}


def openings(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How often the scores of the test split were seen, when, and by which command."""
    if not found:
        return None
    times = [(str(each.get("when")), wording.shortened_command(str(each.get("command") or ""))) for each in found]
    count = {1: "once, by the fit itself", 2: "twice"}.get(len(times), f"{len(times)} times")
    return {"count": count, "times": times, "often": len(times) > 1}


def errors(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The most confident errors, each in a sentence beside its images."""
    return [{**each, "said": wording.error(each), "alt": f"{each['sample']}: {wording.error(each)}"} for each in found]
