"""The report of masks: what report_segment.html.j2 shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.evaluation import wording
from finetune.pages import case_plots, per_class
from finetune.pages.cases import Cases
from finetune.runs.read import Run

WORDS = per_class.Words("segment", "region", "regions", ("dice",), "the same mask in every image")
MAX_REGIONS = 4  # in the figure over size, which has as many marks
MAX_STRIPS = 24


def context(run: Run, folder: Path) -> dict[str, Any]:
    """The variables of the page's template."""
    shared = per_class.context(run, folder, WORDS)
    cases = shared.pop("case_values")
    scores = shared["scores"]
    return {
        **shared,
        "figures": figures(cases),
        "confusion": confusion(scores),
        "fixed": fixed_masks(scores),
        "mean_shape_known": bool((scores.get("baseline") or {}).get("mean_shape")),
    }


def fixed_masks(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of each region the Dice of the network and of the same mask in every image, as text: {name, network, shape, gain,
    everything}."""
    about = scores.get("baseline") or {}
    shapes = (about.get("mean_shape") or {}).get("classes") or {}
    rows = []
    for name, of_class in (about.get("classes") or {}).items():
        shape = shapes.get(name)
        rows.append(
            {
                "name": name,
                "network": wording.interval(scores["classes"][name]["dice"]),
                "shape": wording.interval(shape["dice"]) if shape else "–",
                "gain": wording.difference(shape["gain"]) if shape else "–",
                "everything": wording.number(of_class.get("everything")),
            }
        )
    return rows


def figures(cases: Cases | None) -> list[tuple[str, Markup]]:
    """Captions and figures of the score of single images: by region, and over the region's size."""
    if cases is None:
        return []
    title = WORDS.entry(cases.metric).title
    values = {name: of_region for name, of_region in cases.values.items() if any(v is not None for v in of_region)}
    drawn = []
    if values:
        shown = dict(list(values.items())[:MAX_STRIPS])
        medians = ", ".join(f"{name} {np.median([v for v in shown[name] if v is not None]):.3f}" for name in shown)
        caption = f"{title} of each image by region; boxes are quartiles"
        svg = case_plots.strips(shown, f"{caption}. Medians: {medians}", title)
        drawn.append((caption, Markup(svg)))
    sized = {name: (cases.sizes[name], values[name]) for name in list(values) if name in cases.sizes}
    if sized:
        caption = f"{title} over the true size of the region, each image a point"
        if len(sized) > MAX_REGIONS:
            sized = dict(list(sized.items())[:MAX_REGIONS])
            caption += f"; the first {MAX_REGIONS} regions"
        x_label = f"true size, {cases.size_unit}"
        drawn.append((caption, Markup(case_plots.value_by_size(sized, caption, x_label, title))))
    return drawn


def confusion(scores: dict[str, Any]) -> Markup | None:
    """The matrix of exclusive regions, in percent of the pixels of each true region."""
    matrix = scores.get("confusion")
    if not matrix or len(matrix["classes"]) < 2:
        return None
    label = "Confusion of regions: percent of the pixels of each true region"
    return Markup(case_plots.region_confusion(np.array(matrix["counts"]), matrix["classes"], label))
