"""The report of labels, one or several per image: what report_classify.html.j2 shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.evaluation import metrics, wording
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import Scorer
from finetune.evaluation.metrics import DECISIONS, PROBABILITIES, RANKING
from finetune.pages import conditions, overview, plots, run_parts, sections, threshold_explorer, uncertainty
from finetune.runs.read import Run

MAX_FIGURES = 30  # classes with figures, those with the most positives; the tables have all
MAX_CELLS = 20  # classes up to which the confusion matrix is a table
NAMED = ("f1", "npv")
"""Decisions named in the summary of the table of all scores, beside the probabilities."""
INTERVALS = (
    "AUROC of a class by DeLong's method over patients, shares of images by Wilson's, in the tables and at the slider"
)


def context(run: Run) -> dict[str, Any]:
    """The variables of the page's template."""
    split = run_parts.split_shown(run)
    scores = run.scores.get(split, {}) if split else {}
    val = run.scores.get("val", {}) if split == "test" else {}
    has_patients = run_parts.has_patients(run, scores)
    predictions = run.predictions.get(split or "")
    checks = conditions.checks(scores, val, run.audit, run.openings, has_patients) if scores else []
    points = sections.operating_points(scores)
    selective = uncertainty.selective(scores)
    errors = sections.errors(run.errors)
    point = decided_by(points, scores)
    multiclass = scores.get("kind") == "multiclass"
    return {
        **run_parts.of_run(run, checks),
        "verdict": wording.verdict(scores, split or "", has_patients) if scores else [],
        "comparisons": overview.comparisons(scores),
        "failures": overview.failures(scores),
        "thumbnails": run_parts.thumbnails("Most confident errors" + ("" if multiclass else f" at {point}"), errors),
        "findings": {
            **run_parts.findings(run),
            **{check.link: check.text for check in checks if check.link in ("calibration", "conformal")},
            "selective": (selective or {}).get("finding", ""),
            "all_scores": all_scores(),
        },
        "decided_by": point,
        "has_val": bool(val),
        "tables": tables(str(scores.get("kind") or "multilabel")),
        "rows": rows(scores, val),
        "micro": [name for name in metrics.names(group=RANKING) if name in scores.get("micro", {})],
        "figures": class_figures(predictions, scores) if predictions else [],
        "overall": scores.get("overall", {}),
        "confusion": confusion(scores),
        "calibration": sections.calibration(scores, predictions),
        "at_threshold": metrics.names(at_threshold=True),
        "points": points,
        "explorer": threshold_explorer.part(predictions, scores, MAX_FIGURES) if predictions else None,
        "selective": selective,
        "conformal": uncertainty.conformal(scores),
        "errors": errors,
        "subgroups": sections.subgroups(scores),
        "interval_methods": INTERVALS,
    }


def tables(kind: str) -> dict[str, tuple[str, ...]]:
    """Names of the scores in each table per class: the main one, decisions, and probabilities."""
    return {
        "main": metrics.in_main_table(kind),
        "decisions": metrics.in_further_tables(kind, (DECISIONS, RANKING)),
        "probabilities": metrics.in_further_tables(kind, (PROBABILITIES,)),
    }


def all_scores() -> str:
    """What the table of all scores has, in a line."""
    named = [*NAMED, *metrics.names(group=PROBABILITIES)]
    return ", ".join([*(metrics.metric(name).heading for name in named), "micro averages"])


def decided_by(points: list[dict[str, Any]], scores: dict[str, Any]) -> str:
    """The thresholds that define the errors shown: those of the first operating point, where a class has one."""
    if not points:
        return "a threshold of 0.5"
    lacking = len(points[0]["rows"]) < len(scores.get("classes", {}))
    return f"the operating point {points[0]['name']}" + (" (0.5 for classes without one)" if lacking else "")


def rows(scores: dict[str, Any], val: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per class of the score tables: each score as text, or the reason why it is undefined."""
    table = []
    for name, of_class in scores.get("classes", {}).items():
        cells = {
            metric: wording.interval(score) if score["value"] is not None else wording.undefined(metric, of_class)
            for metric, score in of_class.items()
            if isinstance(score, dict)
        }
        labelled = of_class["positives"] + of_class["negatives"]
        table.append(
            {
                "name": name,
                "counts": of_class,
                "cells": cells,
                "auroc": of_class["auroc"],
                "share": of_class["positives"] / labelled if labelled else None,
                "val": val.get("classes", {}).get(name, {}).get("auroc", {}).get("value"),
            }
        )
    return table


def class_figures(predictions: Predictions, scores: dict[str, Any]) -> list[dict[str, Any]]:
    """ROC and precision over recall of each class that has positives and negatives."""
    scorer = Scorer(predictions)
    truth, ranks = scorer.truth, scorer.ranks
    positives = (truth == 1).sum(axis=0)
    selected = [k for k in range(len(predictions.classes)) if positives[k] and (truth[:, k] == 0).any()]
    selected = sorted(sorted(selected, key=lambda k: -positives[k])[:MAX_FIGURES])
    figures: list[dict[str, Any]] = []
    for k in selected:
        name = predictions.classes[k]
        of_class = scores.get("classes", {}).get(name, {})
        auroc, average = (wording.interval(of_class.get(m)) for m in ("auroc", "average_precision"))
        plots_of_class = [
            (f"ROC, area {auroc}", plots.roc(truth[:, k], ranks[:, k], f"ROC curve of {name}, area {auroc}")),
            (
                f"Average precision {average}",
                plots.precision_recall(truth[:, k], ranks[:, k], f"Precision over recall of {name}, average {average}"),
            ),
        ]
        figures.append({"name": name, "drawn": [(caption, Markup(svg)) for caption, svg in plots_of_class]})
    return figures


def confusion(scores: dict[str, Any]) -> dict[str, Any] | None:
    """The matrix as a table or, of many classes, as a figure; and its largest errors in words."""
    matrix = scores.get("confusion")
    if not matrix:
        return None
    counts, classes = np.array(matrix["counts"]), matrix["classes"]
    small = len(classes) <= MAX_CELLS
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return {
        "classes": classes,
        "rows": [(c, list(zip(counts[i], shares[i], strict=True))) for i, c in enumerate(classes)] if small else [],
        "figure": None
        if small
        else Markup(plots.confusion(counts, classes, "Confusion matrix; the largest errors are named")),
        "pairs": wording.most_confused(counts, classes),
    }
