"""What every report says of its run, whatever the task: its data, audit, training and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from finetune.evaluation import wording
from finetune.evaluation.metrics import BRIEF, MACRO
from finetune.pages import conditions, plots, sections
from finetune.runs.read import Run

MAX_CAUTIONS = 4  # shown at once; the others unfold
MAX_THUMBNAILS = 5
AVERAGES = {
    "ema": " The model holds the exponential moving average of the weights up to this epoch.",
    "swa": " The model holds the mean of the weights at the ends of the averaged epochs up to this one.",
}
"""What the best checkpoint holds, where it is an average -> a sentence."""


def split_shown(run: Run) -> str | None:
    """The split that the report is of: test, where there is one."""
    return next((split for split in ("test", "val") if split in run.scores), next(iter(run.scores), None))


def has_patients(run: Run, scores: dict[str, Any]) -> bool:
    """Whether patients are known; else every image counts as its own."""
    return bool(run.audit.get("has_patients", scores.get("patients") != scores.get("n")))


def thumbnails(title: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Small images of the first screen, which lead to those below by their ids."""
    return {"title": title, "images": images[:MAX_THUMBNAILS]} if images else None


def of_run(run: Run, checks: list[conditions.Check]) -> dict[str, Any]:
    """The variables of report.html.j2 that follow from the run; a task adds its verdict, comparisons and failures."""
    data, weights = run.environment.get("data") or {}, run.environment.get("weights") or {}
    split = split_shown(run)
    scores = run.scores.get(split, {}) if split else {}
    patients_known = has_patients(run, scores)
    name = data.get("name") or (run.config.get("data") or {}).get("name") or "unnamed data"
    evaluated = run.config.get("job") == "evaluate"
    model = run.environment.get("model") or {}
    backbone = model.get("backbone") if evaluated else (run.config.get("backbone") or {}).get("name")
    notes = [note for split_scores in run.scores.values() for note in split_scores.get("notes", [])]
    debug = bool(run.config.get("debug_run"))
    return {
        "title": ("DEBUG run: " if debug else "") + (f"{name}, {backbone}" if backbone else str(name)),
        "sentence": wording.what_was_evaluated(model, name, split or "", scores, patients_known)
        if evaluated
        else wording.what_was_run(backbone, name, splits(run), patients_known),
        "evaluated": evaluated,
        "synthetic": bool(data.get("synthetic")),
        "random_weights": bool(weights.get("random")),
        "split": split,
        "where": "all images" if evaluated and split == "all" else f"the {split or 'evaluated'} split",
        "scores": scores,
        "reference": None if data.get("synthetic") else (run.config.get("data") or {}).get("reference"),
        "checks": checks,
        "marks": conditions.MARKS,
        "most_cautions": MAX_CAUTIONS,
        "cautions": [
            *([wording.DEBUG] if debug else []),
            *(run.environment.get("teacher") or {}).get("warnings", []),
            *(run.environment.get("soup") or {}).get("warnings", []),
            *scores.get("warnings", []),
            *notes,
            *run.audit.get("warnings", []),
        ],
        "has_patients": patients_known,
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
        "averaged_weights": (run.environment.get("best") or {}).get("weights"),
        "best_epoch": best_epoch(run.metrics, run.environment.get("best")),
        "same_seed": wording.SAME_SEED if run.environment.get("seed") is not None else None,
        "openings": sections.openings(run.openings),
        "command": wording.shortened_command(run.environment.get("command") or ""),
        "environment": run.environment,
        "settings": wording.settings(wording.read_by_evaluation(run.config) if evaluated else run.config),
    }


def findings(run: Run) -> dict[str, str]:
    """The summary beside the title of each folded section."""
    images = [f"{split['name']} {wording.counted(split.get('images') or 0, 'image')}" for split in splits(run)]
    warnings = wording.counted(len(run.audit.get("warnings") or []), "warning")
    seed, commit = run.environment.get("seed"), str(run.environment.get("commit") or "")[:8]
    sources = [f"seed {seed}" if seed is not None else "", f"commit {commit}" if commit else ""]
    return {
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
                c: {singular_key: v[many] for many, singular_key in key_names.items() if many in v}
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
    """The best epoch on the validation split: as the run recorded it, else by its score (ties by loss), or by loss."""
    if recorded and recorded.get("score") is not None:
        loss = "" if recorded["monitor"] == "val/loss" else f" (val/loss {wording.number(recorded.get('val/loss'))})"
        return (
            f"Best {recorded['monitor']} {recorded['score']:.4f} in epoch {recorded['epoch']}{loss}. "
            "Epochs are counted from 0; of equal ones the lowest val/loss counts."
            f"{AVERAGES.get(recorded.get('weights', ''), '')}"
        )
    numbers = metrics.apply(pd.to_numeric, errors="coerce")
    columns = [(f"val/{name}", False) for group, name in BRIEF if group == MACRO]
    for column, ascending in [*columns, ("val/loss", True)]:
        if "epoch" in numbers and column in numbers and numbers[column].notna().any():
            numbers["loss"] = numbers.get("val/loss", 0.0)
            best = numbers.sort_values([column, "loss"], ascending=[ascending, True], kind="stable").iloc[0]
            return f"Best {column} {best[column]:.4f} in epoch {best['epoch']:.0f}. Epochs are counted from 0."
    return None
