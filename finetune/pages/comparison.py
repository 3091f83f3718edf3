"""A comparison in words: the table in the terminal and compare.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.evaluation import metrics, wording
from finetune.evaluation.answers import comparable
from finetune.files import plain, write_text_atomic
from finetune.pages import plots
from finetune.pages.environment import render
from finetune.runs.group import Folds

HEADS = tuple(f"{group}_{name}" if group == metrics.MACRO else name for group, name in metrics.BRIEF)
TERMINAL = (
    "macro_auroc",
    "macro_average_precision",
    "accuracy",
    "balanced_accuracy",
    "macro_brier",
    "macro_ap50",
    "macro_froc",
    "macro_dice",
    "macro_hd95",
)
"""The scores that a terminal has room for."""
OF_FOLDS = ("auroc", "average_precision", "brier", "ap50", "froc", "dice")
"""Scores that the page shows of each fold, the first that there is in the terminal too."""
FOLD_RESAMPLES = 400


def fold_scores(folds: Folds, n_boot: int = 1000, seed: int = 0) -> dict[str, Any]:
    """{label, seed, pooled: as in scores.json, folds: {fold: the same}, mean: {metric: {value, sd, folds}}}.

    The pooled scores rank the predictions of all networks together, so their AUROC is slightly lower where the networks
    are not equally confident; the mean over the folds ranks each network's predictions separately.
    """
    answers = comparable(folds.task)
    scores_by_fold = {
        str(fold): answers.summarise(predictions, min(n_boot, FOLD_RESAMPLES), seed)
        for fold, predictions in folds.folds.items()
    }
    mean = {}
    for metric in answers.fold_scores:
        scores = [
            scores_of_fold.get("overall", {}).get(metric) or scores_of_fold["macro"][metric]
            for scores_of_fold in scores_by_fold.values()
        ]
        values = [score["value"] for score in scores if score["value"] is not None]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        mean[metric] = {"value": float(np.mean(values)) if values else None, "sd": sd, "folds": len(values)}
    pooled = answers.summarise(folds.pooled, n_boot, seed)
    return plain({"label": folds.label, "seed": folds.seed, "pooled": pooled, "folds": scores_by_fold, "mean": mean})


def verdicts(result: dict[str, Any]) -> list[str]:
    """One sentence per pair, by the head score; and the spread between seeds."""
    head = head_of(result)
    title = metrics.metric(head).title
    sentences = []
    for pair in result["pairs"]:
        score = pair["scores"][head]
        if score["value"] is None:
            sentences.append(f"{pair['a']} and {pair['b']}: {title} is not defined.")
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
        sentences.append(f"{better} is above {worse} in {title} by {width}: {end}")
    if noise := result["seed_noise"].get(head):
        sentences.append(
            f"Differences in {title} under {noise['single']:.3f} between two single runs are seed noise "
            f"(sd over seeds {noise['sd']:.4f}, {noise['df'] + 1 if len(result['candidates']) == 1 else noise['df']} "
            f"{'seeds' if len(result['candidates']) == 1 else 'degrees of freedom'})."
        )
    elif len(result["candidates"]) > 1:
        sentences.append("No setting was run with several seeds, so seed noise is not known: add -m seed=0,1,2.")
    return sentences


def p_value(p: float) -> str:
    """= 0.03, or < 0.001"""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def head_of(result: dict[str, Any]) -> str:
    """The score that decides the verdict: macro AUROC, or accuracy where that is not defined; of boxes macro AP50."""
    scores = result["candidates"][0]["scores"]
    names = [name for name in HEADS if name in scores] or list(scores)
    return next((name for name in names if scores[name]["value"] is not None), names[0])


def of_classes(pair: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What the differences of classes are of, and the differences: of labels AUROCs, else several scores of a class."""
    rows = []
    for name, of_class in pair["classes"].items():
        if "value" in of_class:
            rows.append((f"{metrics.metric('auroc').title} of {name} (DeLong)", of_class))
        else:
            rows += [(f"{metrics.metric(key).title} of {name}", score) for key, score in of_class.items()]
    return rows


def of_folds(folds: dict[str, Any]) -> list[str]:
    """The scores of folds that are shown."""
    return [name for name in OF_FOLDS if name in folds["mean"]]


def text(result: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    columns = [name for name in TERMINAL if name in shown_metrics(result)]
    rows = [["", *(metrics.metric(name).title for name in columns), "seeds"]]
    for candidate in result["candidates"]:
        cells = [wording.interval(candidate["scores"][name]) for name in columns]
        rows.append([candidate["label"], *cells, str(len(candidate["seeds"]))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [f"{result['split']}: {result['n']:,} images of {result['patients']:,} patients, 95 % intervals", *lines]
    for folds in result["out_of_fold"]:
        name = of_folds(folds)[0]
        mean = folds["mean"][name]
        spread = f" (sd {mean['sd']:.3f})" if mean["sd"] is not None else ""
        title = metrics.metric(f"{metrics.MACRO}_{name}").title
        pooled = f"{title} pooled {wording.interval(folds['pooled'][metrics.MACRO][name])}"
        lines.append(
            f"out of fold, {folds['label']}, seed {folds['seed']}: {pooled}; "
            f"mean of {mean['folds']} folds {wording.number(mean['value'])}{spread}"
        )
    return "\n".join([*lines, *verdicts(result), *result["warnings"]])


def shown_metrics(result: dict[str, Any]) -> list[str]:
    """Means over the classes first, each in the order of the catalogue."""
    return sorted(result["candidates"][0]["scores"], key=metrics.position)


def is_of_probabilities(name: str) -> bool:
    return metrics.metric(name).group == metrics.PROBABILITIES


def write(path: Path, result: dict[str, Any], command: str = "") -> Path:
    """compare.html: one file, nothing loaded from elsewhere."""
    head, shown = head_of(result), shown_metrics(result)
    title, probabilities = metrics.metric(head).title, [n for n in shown if is_of_probabilities(n)]
    level = [(c["label"], c["scores"][head]) for c in result["candidates"]]
    changes = [(f"{pair['a']} − {pair['b']}", pair["scores"][head]) for pair in result["pairs"]]
    figures = [(title, Markup(plots.forest(level, f"{title} of each", title)))]
    if changes:
        label = f"difference in {title}"
        figures.append((f"Difference in {title}", Markup(plots.forest(changes, label, label, chance=0))))
    losses = [metrics.metric(name).title for name in metrics.LOWER_IS_BETTER if {name, f"macro_{name}"} & set(shown)]
    page = render(
        "compare.html.j2",
        result=result,
        metrics=shown,
        losses=" and ".join(losses),
        of_folds=of_folds,
        of_classes=of_classes,
        tables=[
            ("ranking and decisions", [name for name in shown if name not in probabilities]),
            ("probabilities", probabilities),
        ],
        several_seeds=any(len(c["seeds"]) > 1 for c in result["candidates"]),
        head=head,
        figures=figures,
        verdicts=verdicts(result),
        command=wording.shortened_command(command),
        last_name=wording.last_name,
    )
    return write_text_atomic(path, page)
