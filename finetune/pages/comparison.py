"""A comparison in words: the table in the terminal and compare.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from finetune.evaluation import wording
from finetune.evaluation.classification.summary import summarise
from finetune.files import plain, write_text_atomic
from finetune.pages import plots
from finetune.runs.group import Folds

TITLES = {
    "macro_auroc": "macro AUROC",
    "macro_average_precision": "macro average precision",
    "macro_accuracy": "macro accuracy",
    "macro_f1": "macro F1",
    "macro_brier": "macro Brier score",
    "macro_log_loss": "macro log loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "kappa": "Cohen's kappa",
    "brier": "Brier score",
    "log_loss": "log loss",
}
LOSSES = ("brier", "log_loss")
HEADS = ("macro_auroc", "accuracy")
FOLD_RESAMPLES = 400


def fold_scores(folds: Folds, n_boot: int = 1000, seed: int = 0) -> dict[str, Any]:
    """{label, seed, pooled: as in scores.json, folds: {fold: the same}, mean: {metric: {value, sd, folds}}}.

    The pooled scores rank the predictions of all networks together, so their AUROC is slightly lower where the networks
    are not equally confident; the mean over the folds ranks each network's predictions separately.
    """
    scores_by_fold = {
        str(fold): summarise(predictions, min(n_boot, FOLD_RESAMPLES), seed)
        for fold, predictions in folds.folds.items()
    }
    mean = {}
    for metric in ("auroc", "average_precision", "brier", "log_loss"):
        scores = [
            scores_of_fold.get("overall", {}).get(metric) or scores_of_fold["macro"][metric]
            for scores_of_fold in scores_by_fold.values()
        ]
        values = [score["value"] for score in scores if score["value"] is not None]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        mean[metric] = {"value": float(np.mean(values)) if values else None, "sd": sd, "folds": len(values)}
    pooled = summarise(folds.pooled, n_boot, seed)
    return plain({"label": folds.label, "seed": folds.seed, "pooled": pooled, "folds": scores_by_fold, "mean": mean})


def verdicts(result: dict[str, Any]) -> list[str]:
    """One sentence per pair, by the head score; and the spread between seeds."""
    head = head_of(result)
    sentences = []
    for pair in result["pairs"]:
        score = pair["scores"][head]
        if score["value"] is None:
            sentences.append(f"{pair['a']} and {pair['b']}: {TITLES[head]} is not defined.")
            continue
        better, worse = (pair["a"], pair["b"]) if score["value"] >= 0 else (pair["b"], pair["a"])
        width = f"{abs(score['value']):.3f}"
        if score["low"] is not None:
            low, high = sorted(
                (score["low"], score["high"]), key=lambda edge: edge * (1 if score["value"] >= 0 else -1)
            )
            sign = 1 if score["value"] >= 0 else -1
            width += f" ({sign * low:.3f} to {sign * high:.3f}, p {p_value(score['p_holm'])})"
        chance = score["p_holm"] is None or score["p_holm"] >= 0.05
        noise = score.get("seed_noise")
        if chance:
            end = "within chance: other patients could reverse it."
        elif noise is None:
            end = "beyond chance of the patients drawn; what another seed would change is not known."
        elif abs(score["value"]) <= noise:
            end = f"no more than seed noise, which reaches to {noise:.3f}."
        else:
            end = f"beyond chance of the patients drawn, and beyond seed noise (up to {noise:.3f})."
        sentences.append(f"{better} is above {worse} in {TITLES[head]} by {width}: {end}")
    if noise := result["seed_noise"].get(head):
        sentences.append(
            f"Differences in {TITLES[head]} under {noise['single']:.3f} between two single runs are seed noise "
            f"(sd over seeds {noise['sd']:.4f}, {noise['df'] + 1 if len(result['candidates']) == 1 else noise['df']} "
            f"{'seeds' if len(result['candidates']) == 1 else 'degrees of freedom'})."
        )
    elif len(result["candidates"]) > 1:
        sentences.append("No setting was run with several seeds, so seed noise is not known: add -m seed=0,1,2.")
    return sentences


def p_value(p: float) -> str:
    """= 0.03, or < 0.001"""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def mean_count(n: float) -> str:
    """1,204, or 28.5 where it is a mean over seeds"""
    return f"{n:,.1f}".removesuffix(".0")


def head_of(result: dict[str, Any]) -> str:
    """The score that decides the verdict: macro AUROC, or accuracy where that is not defined."""
    scores = result["candidates"][0]["scores"]
    return next((name for name in HEADS if name in scores and scores[name]["value"] is not None), "macro_auroc")


def text(result: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    columns = [
        name
        for name in ("macro_auroc", "macro_average_precision", "accuracy", "balanced_accuracy", "macro_brier")
        if name in shown_metrics(result)
    ]
    rows = [["", *(TITLES[name] for name in columns), "seeds"]]
    for candidate in result["candidates"]:
        cells = [wording.interval(candidate["scores"][name]) for name in columns]
        rows.append([candidate["label"], *cells, str(len(candidate["seeds"]))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [f"{result['split']}: {result['n']:,} images of {result['patients']:,} patients, 95 % intervals", *lines]
    for folds in result["out_of_fold"]:
        mean = folds["mean"]["auroc"]
        spread = f" (sd {mean['sd']:.3f})" if mean["sd"] is not None else ""
        pooled = wording.interval(folds["pooled"]["macro"]["auroc"])
        lines.append(
            f"out of fold, {folds['label']}, seed {folds['seed']}: macro AUROC pooled {pooled}; "
            f"mean of {mean['folds']} folds {wording.number(mean['value'])}{spread}"
        )
    return "\n".join([*lines, *verdicts(result), *result["warnings"]])


def shown_metrics(result: dict[str, Any]) -> list[str]:
    return [name for name in TITLES if name in result["candidates"][0]["scores"]]


def write(path: Path, result: dict[str, Any], command: str = "") -> Path:
    """compare.html: one file, nothing loaded from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": wording.number,
        "interval": wording.interval,
        "difference": wording.difference,
        "counted": wording.counted,
        "mean_count": mean_count,
    }
    head = head_of(result)
    level = [(c["label"], c["scores"][head]) for c in result["candidates"]]
    changes = [(f"{pair['a']} − {pair['b']}", pair["scores"][head]) for pair in result["pairs"]]
    figures = [(TITLES[head], Markup(plots.forest(level, f"{TITLES[head]} of each", TITLES[head])))]
    if changes:
        title = f"difference in {TITLES[head]}"
        figures.append((f"Difference in {TITLES[head]}", Markup(plots.forest(changes, title, title, chance=0))))
    page = environment.get_template("compare.html.j2").render(
        result=result,
        titles=TITLES,
        metrics=shown_metrics(result),
        tables=[
            ("ranking and decisions", [name for name in shown_metrics(result) if not name.endswith(LOSSES)]),
            ("probabilities", [name for name in shown_metrics(result) if name.endswith(LOSSES)]),
        ],
        several_seeds=any(len(c["seeds"]) > 1 for c in result["candidates"]),
        head=head,
        figures=figures,
        verdicts=verdicts(result),
        command=wording.shortened_command(command),
        last_name=wording.last_name,
    )
    return write_text_atomic(path, page)
