"""The report of boxes: what report_detect.html.j2 shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.evaluation import metrics, wording
from finetune.pages import case_plots, per_class
from finetune.pages.cases import Cases
from finetune.runs.read import Run

WORDS = per_class.Words("detect", "class", "classes", ("ap50", "froc"), "the same box in every image")
MAX_CURVES = 4  # as many as lines can be told apart; the mean is one of them


def context(run: Run, folder: Path) -> dict[str, Any]:
    """The variables of the page's template."""
    shared = per_class.context(run, folder, WORDS)
    cases = shared.pop("case_values")
    shown_points = points(shared["scores"])
    shared["glossary"] += [WORDS.entry(name) for name in point_metrics() if shown_points]
    return {
        **shared,
        "figures": [*froc(shared["scores"]), *false_positives(cases)],
        "points": shown_points,
        "point_heads": [WORDS.entry(name).heading for name in point_metrics()],
        "image_level": image_level(shared["scores"]),
    }


def point_metrics() -> tuple[str, ...]:
    """Names of the scores at an operating point."""
    return metrics.names("detect", at_threshold=True)


def froc(scores: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """The FROC curve of all classes with its band, and those of the first classes."""
    curve = scores.get("froc_curve")
    if not curve:
        return []
    x = curve.get("fp_per_image") or curve.get("false_positives") or []
    mean = curve.get("macro") or curve
    if not mean.get("sensitivity"):
        return []
    classes = curve.get("classes") or {}
    curves = {"mean" if len(classes) > 1 else "sensitivity": {"false_positives": x, **_band(mean)}}
    for name, of_class in list(classes.items())[: MAX_CURVES - 1] if len(classes) > 1 else []:
        curves[name] = {"false_positives": x, "sensitivity": of_class["sensitivity"]}
    score = (scores.get("macro") or {}).get("froc")
    caption = "FROC: sensitivity over false positives per image, the band its 95 % interval at each point"
    if score:
        caption += f"; {WORDS.entry('froc').title} {wording.interval(score)}"
    return [(caption, Markup(case_plots.froc(curves, caption)))]


def _band(curve: Mapping[str, Any]) -> dict[str, Any]:
    return {key: curve[key] for key in ("sensitivity", "low", "high") if curve.get(key)}


def false_positives(cases: Cases | None) -> list[tuple[str, Markup]]:
    """How many false positives each image has."""
    if cases is None or not cases.false_positives:
        return []
    counts = np.array(cases.false_positives)
    none = wording.counted(int((counts == 0).sum()), "image")
    caption = f"False positives of each image; {none} of {len(counts):,} with none, {int(counts.max())} at most"
    return [(caption, Markup(case_plots.counts_histogram(cases.false_positives, caption, "false positives")))]


def points(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table per operating point: class, threshold and its scores; the last row counts all classes together."""
    tables = []
    for name, point in (scores.get("operating_points") or {}).items():
        parts = dict(point["classes"])
        if "all" in point and len(parts) > 1:
            parts["all"] = point["all"]
        rows = [
            {
                "name": c,
                "threshold": f"{part['threshold']:.4g}" if "threshold" in part else "",
                "cells": [per_class.cell(part.get(metric), WORDS.entry(metric)) for metric in point_metrics()],
                "counts": [part.get(count) for count in ("tp", "fp", "fn")],
            }
            for c, part in parts.items()
        ]
        tables.append({"name": name, "criterion": point.get("criterion") or name, "rows": rows})
    return tables


def image_level(scores: Mapping[str, Any]) -> str | None:
    """How well the highest score of an image says whether it has a true box, in a sentence."""
    score = ((scores.get("image_level") or {}).get("any") or {}).get("auroc")
    if not score or score.get("value") is None:
        return None
    title = metrics.metric("auroc").title
    return f"Of whole images, by their highest score: {title} of having a true box {wording.interval(score)}."
