"""report.html: what a run did, how far its numbers can be trusted, and their provenance, in one file.

Everything is read from the run folder, so the report can be rebuilt at any time; missing files are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from finetune.errors import FinetuneError
from finetune.evaluation import wording
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import Scorer
from finetune.files import write_text_atomic
from finetune.pages import conditions, overview, plots, sections
from finetune.pages import threshold_explorer as threshold_explorer
from finetune.pages import uncertainty as uncertainty
from finetune.runs.folder import RunFolder
from finetune.runs.read import Run

MAX_FIGURES = 30  # classes with figures, those with the most positives; the tables have all
MAX_CAUTIONS = 4  # shown at once; the others unfold
MAX_CELLS = 20  # classes up to which the confusion matrix is a table
NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity (recall)",
    "specificity": "specificity",
    "ppv": "PPV (precision)",
    "npv": "NPV",
    "f1": "F1",
    "brier": "Brier score",
    "log_loss": "log loss",
    "ece": "calibration error (ECE)",
    "top5_accuracy": "top-5 accuracy",
    "kappa": "Cohen's kappa",
}


def write_report(folder: Path | str, scores: dict[str, Any] | None = None) -> Path:
    """Write `folder`/report.html from the files of the run in `folder`.

    Args:
        scores: the contents of scores.json for a run that writes it last; by default it is read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FinetuneError(f"{folder} is not a folder; name a run folder, such as outputs/latest.")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # class names and paths come from users' tables
        undefined=ChainableUndefined,  # a file of the run may lack any key
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "interval": wording.interval,
        "shortened": wording.shortened,
        "counted": wording.counted,
    }
    page = environment.get_template("report.html.j2").render(context(Run.read(folder, scores)))
    return write_text_atomic(RunFolder(folder).report, page)


def context(run: Run) -> dict[str, Any]:
    """The variables of the page's template."""
    data, weights = run.environment.get("data") or {}, run.environment.get("weights") or {}
    split = next((s for s in ("test", "val") if s in run.scores), next(iter(run.scores), None))
    scores = run.scores.get(split, {}) if split else {}
    has_patients = run.audit.get("has_patients", scores.get("patients") != scores.get("n"))
    val = run.scores.get("val", {}) if split == "test" else {}
    name = data.get("name") or (run.config.get("data") or {}).get("name") or "unnamed data"
    evaluated = run.config.get("job") == "evaluate"
    model = run.environment.get("model") or {}
    backbone = model.get("backbone") if evaluated else (run.config.get("backbone") or {}).get("name")
    predictions = run.predictions.get(split or "")
    checks = conditions.checks(scores, val, run.audit, run.openings, has_patients) if scores else []
    points = sections.operating_points(scores)
    selective = uncertainty.selective(scores)
    notes = [note for of_split in run.scores.values() for note in of_split.get("notes", [])]
    debug = bool(run.config.get("debug_run"))
    return {
        "title": ("DEBUG run: " if debug else "") + (f"{name}, {backbone}" if backbone else str(name)),
        "sentence": wording.what_was_evaluated(model, name, split or "", scores, has_patients)
        if evaluated
        else wording.what_was_run(backbone, name, splits(run), has_patients),
        "evaluated": evaluated,
        "synthetic": bool(data.get("synthetic")),
        "random_weights": bool(weights.get("random")),
        "split": split,
        "where": "all images" if evaluated and split == "all" else f"the {split or 'evaluated'} split",
        "scores": scores,
        "verdict": wording.verdict(scores, split or "", has_patients) if scores else [],
        "reference": None if data.get("synthetic") else (run.config.get("data") or {}).get("reference"),
        "comparisons": overview.comparisons(scores),
        "failures": overview.failures(scores),
        "checks": checks,
        "marks": conditions.MARKS,
        "findings": findings(run, checks, selective),
        "decided_by": decided_by(points, scores),
        "most_cautions": MAX_CAUTIONS,
        "cautions": [
            *([wording.DEBUG] if debug else []),
            *scores.get("warnings", []),
            *notes,
            *run.audit.get("warnings", []),
        ],
        "has_patients": has_patients,
        "has_val": bool(val),
        "problems": run.problems,
        "data": data,
        "weights": weights,
        "audit": run.audit,
        "near_copies": run.near_copies,
        "leaks": [
            leak.get("text", str(leak)) if isinstance(leak, dict) else str(leak) for leak in run.audit.get("leaks", [])
        ],
        "splits": splits(run),
        "class_names": list(scores.get("classes", {})) or data.get("classes") or [],
        "share_figure": share_figure(run),
        "training_figures": training_figures(run.metrics),
        "best_epoch": best_epoch(run.metrics, run.environment.get("best")),
        "same_seed": wording.SAME_SEED if run.environment.get("seed") is not None else None,
        "rows": rows(scores, val),
        "figures": class_figures(predictions, scores) if predictions else [],
        "overall": {NAMES.get(m, m): score for m, score in scores.get("overall", {}).items()},
        "confusion": confusion(scores),
        "calibration": sections.calibration(scores, predictions),
        "points": points,
        "explorer": threshold_explorer.part(predictions, scores, MAX_FIGURES) if predictions else None,
        "selective": selective,
        "conformal": uncertainty.conformal(scores),
        "errors": sections.errors(run.errors),
        "subgroups": sections.subgroups(scores),
        "openings": sections.openings(run.openings),
        "names": NAMES,
        "command": wording.shortened_command(run.environment.get("command") or ""),
        "environment": run.environment,
        "settings": wording.settings(wording.read_by_evaluation(run.config) if evaluated else run.config),
    }


def decided_by(points: list[dict[str, Any]], scores: dict[str, Any]) -> str:
    """The thresholds that define the errors shown: those of the first operating point, where a class has one."""
    if not points:
        return "a threshold of 0.5"
    lacking = len(points[0]["rows"]) < len(scores.get("classes", {}))
    return f"the operating point {points[0]['name']}" + (" (0.5 for classes without one)" if lacking else "")


def findings(run: Run, checks: list[conditions.Check], selective: dict[str, Any] | None) -> dict[str, str]:
    """The summary beside the title of each folded section."""
    by_link: dict[str, str] = {check.link: check.text for check in checks if check.link in ("calibration", "conformal")}
    images = [f"{split['name']} {wording.counted(split.get('images') or 0, 'image')}" for split in splits(run)]
    warnings = wording.counted(len(run.audit.get("warnings") or []), "warning")
    seed, commit = run.environment.get("seed"), str(run.environment.get("commit") or "")[:8]
    sources = [f"seed {seed}" if seed is not None else "", f"commit {commit}" if commit else ""]
    return {
        **by_link,
        "selective": (selective or {}).get("finding", ""),
        "data": ", ".join([*images, warnings] if run.audit else images),
        "provenance": ", ".join(filter(None, sources)),
    }


def splits(run: Run) -> list[dict[str, Any]]:
    """One row per split: images, patients, and per class how many are positive, from the audit or else the scores."""
    rows = [{"name": name, **counts} for name, counts in (run.audit.get("counts") or {}).items()]
    if len(rows) == 1 and len(run.scores) == 1:  # all images of other data, which the audit has as one split
        rows[0]["name"] = next(iter(run.scores))
    if rows:
        return rows
    key_names = {"positives": "positive", "negatives": "negative", "unknown": "unknown"}
    return [
        {
            "name": name,
            "images": of_split.get("n"),
            "patients": of_split.get("patients"),
            "classes": {
                c: {singular_key: v[many] for many, singular_key in key_names.items()}
                for c, v in of_split.get("classes", {}).items()
            },
        }
        for name, of_split in run.scores.items()
    ]


def share_figure(run: Run) -> Markup | None:
    """Bars: the share of positives per class and split, of the images whose label is known."""
    by_split = {s["name"]: s.get("classes") or {} for s in splits(run)}
    names = list(dict.fromkeys(name for classes in by_split.values() for name in classes))[:40]
    if not names:
        return None

    def share(counts: dict[str, int] | None) -> float:
        labelled = counts.get("positive", 0) + counts.get("negative", 0) if counts else 0
        return counts["positive"] / labelled if counts and labelled else np.nan

    series = {split: [share(classes.get(name)) for name in names] for split, classes in by_split.items()}
    if np.isnan([value for values in series.values() for value in values]).all():
        return None
    label = "Share of positive images per class and split; the numbers are in the table"
    return Markup(plots.bars(names, series, label, "positive images"))


def training_figures(metrics: pd.DataFrame) -> list[tuple[str, Markup]]:
    """Captions and figures of loss, validation scores and learning rate over the epochs, where they were written."""
    if metrics.empty or "epoch" not in metrics:
        return []
    numbers = metrics.apply(pd.to_numeric, errors="coerce")
    numbers = numbers.groupby("epoch", as_index=False).last()  # a step-wise logger has several rows per epoch
    groups = {
        "Loss": [c for c in numbers if str(c).endswith("/loss")],
        "Validation scores": [c for c in numbers if str(c).startswith("val/") and not str(c).endswith("/loss")],
        "Learning rate": [c for c in numbers if c == "lr"],
    }
    figures = []
    for caption, columns in groups.items():
        series = {str(c): numbers[c].to_list() for c in columns[:4] if numbers[c].notna().any()}
        if series:
            last = ", ".join(f"{name} ends at {pd.Series(v).dropna().iloc[-1]:.4g}" for name, v in series.items())
            figures.append((caption, Markup(plots.lines(numbers["epoch"].to_list(), series, f"{caption}: {last}"))))
    return figures


def best_epoch(metrics: pd.DataFrame, recorded: dict[str, Any] | None = None) -> str | None:
    """The best epoch on the validation split: as the run recorded it, else by AUROC (ties by loss), or by loss."""
    if recorded and recorded.get("score") is not None:
        loss = "" if recorded["monitor"] == "val/loss" else f" (val/loss {wording.number(recorded.get('val/loss'))})"
        return (
            f"Best {recorded['monitor']} {recorded['score']:.4f} in epoch {recorded['epoch']}{loss}. "
            "Epochs are counted from 0; of equal ones the lowest val/loss counts."
        )
    numbers = metrics.apply(pd.to_numeric, errors="coerce")
    for column, ascending in (("val/auroc", False), ("val/loss", True)):
        if "epoch" in numbers and column in numbers and numbers[column].notna().any():
            numbers["loss"] = numbers.get("val/loss", 0.0)
            best = numbers.sort_values([column, "loss"], ascending=[ascending, True], kind="stable").iloc[0]
            return f"Best {column} {best[column]:.4f} in epoch {best['epoch']:.0f}. Epochs are counted from 0."
    return None


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
