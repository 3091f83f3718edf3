"""Selective prediction and conformal sets for the report, from scores.json."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from finetune.evaluation import wording
from finetune.pages import plots

MAX_FIGURES = 14
RATES = ("sensitivity", "specificity")
"""Of a class, among the images answered."""
HEADS = {
    "multilabel": {
        "yes": "coverage with the finding",
        "no": "coverage without it",
        "one": "one label",
        "both": "both",
        "neither": "neither",
    },
    "multiclass": {"coverage": "coverage", "size": "mean size", "one": "one class", "neither": "no class"},
}


def selective(scores: dict[str, Any]) -> dict[str, Any] | None:
    """Rows of errors by the share answered, and their curves."""
    selective_scores = scores.get("selective")
    if not selective_scores:
        return None
    rows: list[dict[str, Any]] = []
    less: list[tuple[float, float, float]] = []
    figures: list[tuple[str, Markup]] = []
    for name, of_class in selective_scores.items():
        for i, row in enumerate(of_class["rows"]):
            cells = [wording.interval(row[m]) for m in ("coverage", "errors", *RATES) if m in row]
            if row["target"] == 1:
                cells[0] = "all"
            about = {"name": name, "rows": len(of_class["rows"]) if i == 0 else 0, "point": of_class["point"]}
            rows.append({**about, "target": f"{100 * row['target']:g} %", "cells": cells})
        errors = {row["target"]: row["errors"]["value"] for row in of_class["rows"]}
        few = min(errors)
        if errors[1.0] is not None and errors[few] is not None:
            less.append((errors[1.0], errors[few], few))
        if len(figures) < MAX_FIGURES and of_class["curve"]["coverage"]:
            every, part = wording.number(errors[1.0]), wording.number(errors[few])
            caption = f"{name}: {every} of all predictions wrong, {part} of the most confident {100 * few:g} %"
            svg = plots.risk_coverage(**of_class["curve"], label=f"Errors over the share answered. {caption}")
            figures.append((caption, Markup(svg)))
    shown = [name for name in RATES if scores.get("kind") != "multiclass"]
    return {"rows": rows, "metrics": shown, "figures": figures, "finding": finding(less)}


def finding(less: list[tuple[float, float, float]]) -> str:
    """From (errors of all, errors of the most confident, their share) of each class: the errors at lower coverage."""
    if not less:
        return ""
    every, part = (sum(gain[i] for gain in less) / len(less) for i in (0, 1))
    mean = ", mean over the classes" if len(less) > 1 else ""
    few = min(gain[2] for gain in less)
    return f"errors {100 * every:.1f} % of all, {100 * part:.1f} % of the most confident {100 * few:g} %{mean}"


def conformal(scores: dict[str, Any]) -> dict[str, Any] | None:
    """Rows of the coverage and size of the sets."""
    conformal_scores = scores.get("conformal")
    if not conformal_scores:
        return None
    heads = HEADS["multiclass" if "overall" in conformal_scores else "multilabel"]
    named = {
        **({"all classes": conformal_scores["overall"]} if "overall" in conformal_scores else {}),
        **conformal_scores["classes"],
    }
    rows = [
        {"name": name, "cells": [wording.interval(shares[key]) if key in shares else "" for key in heads]}
        for name, shares in named.items()
    ]
    return {
        "error": conformal_scores["error"],
        "about": conformal_scores["fitted_on"],
        "heads": list(heads.values()),
        "rows": rows,
    }
