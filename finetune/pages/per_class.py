"""Scores per region or class, and their means: what the reports of masks and boxes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation import metrics, wording
from finetune.evaluation.metrics import MACRO
from finetune.pages import conditions, overview, run_parts, sections
from finetune.pages.cases import Cases, shown
from finetune.pages.overview import Comparison
from finetune.runs.folder import RunFolder
from finetune.runs.read import Run

COUNTS = {
    ("n",): "images",
    ("images",): "images",
    ("images_with", "patients_with"): "images, patients with it",
    ("truths", "detections"): "boxes: true, predicted",
    ("n_undefined",): "in neither mask",
    ("failures",): "in one mask only",
}
"""Counts of a class in scores.json -> head of the column that has them, shown where a class has all of them."""


@dataclass(frozen=True)
class Words:
    """How a report speaks of its task."""

    task: str
    noun: str
    """What a score is of: region, class."""
    nouns: str
    heads: tuple[str, ...]
    """Names of the scores that decide, the first of which ranks the regions or classes."""
    trivial: str
    """The prediction that looks at no image, whose scores are `baseline` in scores.json."""

    def entry(self, name: str) -> metrics.Metric:
        return metrics.metric(name, self.task)


def context(run: Run, folder: Path, words: Words) -> dict[str, Any]:
    """The variables that both templates have in common."""
    split = run_parts.split_shown(run)
    scores = run.scores.get(split, {}) if split else {}
    val = run.scores.get("val", {}) if split == "test" else {}
    has_patients = run_parts.has_patients(run, scores)
    checks = conditions.shared(scores, val, run.audit, run.openings, has_patients) if scores else []
    cases = read_cases(run, folder)
    images = shown(cases, words.task)
    worst = [image for image in images if image["rank"] == "Worst"]
    rows = table(scores, val, words)
    shared = run_parts.of_run(run, checks)
    counts = [split_counts.get("classes") or {} for split_counts in shared["splits"]]
    beside = tuple(name for name in metrics.in_main_table(words.task, words.task) if name != words.heads[0])
    return {
        **shared,
        "noun": words.noun,
        "class_names": [name for name in shared["class_names"] if any(part.get(name) for part in counts)],
        "verdict": verdict(scores, split or "", has_patients, words) if scores else [],
        "comparisons": comparisons(scores, words),
        "failures": failures(scores, words),
        "thumbnails": run_parts.thumbnails("Worst images, truth and prediction outlined", worst),
        "findings": run_parts.findings(run),
        "has_val": any(row["val"] is not None for row in rows["rows"]),
        "table": rows,
        "subgroups": sections.subgroups(scores, words.heads[0], beside[:3], words.task),
        "task": words.task,
        "cases": images,
        "case_metric": cases.metric if cases else None,
        "case_values": cases,
        "glossary": glossary(rows, words),
    }


def read_cases(run: Run, folder: Path) -> Cases | None:
    """What cases.json says; a damaged file is named among the run's problems."""
    path = RunFolder(folder).cases
    if not path.is_file():
        return None
    try:
        return Cases.read(path)
    except FinetuneError as error:
        run.problems.append(str(error))
        return None


def verdict(scores: Mapping[str, Any], split: str, has_patients: bool, words: Words) -> list[str]:
    """The result in a few sentences: what speaks against the run, its means, and the best and the worst of them."""
    classes, macro = scores.get("classes") or {}, scores.get(MACRO) or {}
    on = wording.evaluated_on(scores, split, has_patients)
    harms = [harm["short"] for harm in scores.get("harms") or []]
    sentences = [f"Before use: {'; '.join(harms)}."] if harms else []
    head = words.heads[0]
    score, entry = macro.get(head) or {}, words.entry(head)
    if score.get("value") is None:
        return [*sentences, f"{on} no {words.noun} has a defined {entry.title}."]
    defined = values(classes, head)
    over = f", the mean over {len(defined)} of {len(classes)} {words.nouns}" if len(classes) > 1 else ""
    trivial = trivial_value(scores, head)
    beside = f"; {words.trivial} gives {wording.number(trivial, entry.digits)}" if trivial is not None else ""
    name = entry.in_group(MACRO if len(classes) > 1 else "")
    sentences.append(f"{on} the {name} is {wording.in_words(score)}{over}{beside}.")
    for further in words.heads[1:]:
        if (macro.get(further) or {}).get("value") is not None:
            sentences.append(f"The {words.entry(further).title} is {wording.in_words(macro[further])}.")
    certain = {name: value for name, value in defined.items() if "note" not in classes[name]}
    if len(certain) > 1:
        best, worst = max(certain, key=lambda c: certain[c]), min(certain, key=lambda c: certain[c])
        sentences.append(
            f"The highest {entry.title} is that of {best}, {wording.interval(classes[best][head])}, the lowest that of "
            f"{worst}, {wording.interval(classes[worst][head])}."
        )
    return sentences


def values(classes: Mapping[str, Any], name: str) -> dict[str, float]:
    """Region or class -> its score, where it is defined."""
    scores = {c: (class_scores.get(name) or {}).get("value") for c, class_scores in classes.items()}
    return {c: float(value) for c, value in scores.items() if value is not None}


def trivial_value(scores: Mapping[str, Any], name: str) -> float | None:
    """The mean of the trivial prediction; None where scores.json has none."""
    value = ((scores.get("baseline") or {}).get(MACRO) or {}).get(name)
    return None if value is None else float(value)


def comparisons(scores: Mapping[str, Any], words: Words) -> list[Comparison]:
    """The scores that decide, beside those of the trivial prediction; without one, beside those of no prediction."""
    rows = []
    several = len(scores.get("classes") or {}) > 1
    for name in words.heads:
        score, entry = (scores.get(MACRO) or {}).get(name) or {}, words.entry(name)
        if score.get("value") is None or not entry.higher_is_better:
            continue
        known = trivial_value(scores, name)
        value = known if known is not None else 0.0
        text = f"{wording.number(value, entry.digits)}, {words.trivial if known is not None else 'predicting nothing'}"
        title = entry.in_group(MACRO if several else "")
        gain = ((scores.get("baseline") or {}).get("gain") or {}).get(name) or {}  # on the same images, so sharper
        state = overview.compare_with(gain, 0) if gain.get("low") is not None else overview.compare_with(score, value)
        rows.append(Comparison(title, wording.interval(score, entry.digits), text, state))
    return rows


def failures(scores: Mapping[str, Any], words: Words) -> list[str]:
    """The worst regions or classes, confusions and groups, one line each."""
    classes, head = scores.get("classes") or {}, words.heads[0]
    entry, lines = words.entry(head), []
    defined = values(classes, head)
    if nothing := [name for name, value in defined.items() if value == 0]:
        lines.append(f"{entry.title} 0: {overview.named(nothing)}.")
    if len(defined) > 1:
        worst = min(defined, key=lambda c: defined[c])
        lines.append(f"Lowest {entry.title}: {worst}, {wording.interval(classes[worst][head])}.")
    if undefined := [name for name in classes if name not in defined]:
        lines.append(f"{entry.title} undefined: {overview.named(undefined)}.")
    matrix = scores.get("confusion")
    if matrix and (pairs := wording.most_confused(np.array(matrix["counts"]), matrix["classes"], 1)):
        lines.append(f"Most frequent confusion, in pixels: {pairs[0]}.")
    for column, gap, title in overview.headline_gaps(scores):
        chance = "beyond chance" if overview.beyond_chance(gap) else "within chance"
        lines.append(
            f"Weakest group by {column}: {gap['worst']} is {gap['value']:.3f} below {gap['best']} in {title}, {chance}."
        )
    return lines


def table(scores: Mapping[str, Any], val: Mapping[str, Any], words: Words) -> dict[str, Any]:
    """{names, heads, counts, rows, macro}: the scores of each region or class as text, as far as any has them."""
    classes, macro = scores.get("classes") or {}, scores.get(MACRO) or {}
    every = [*classes.values(), macro]
    names = [name for name in metrics.in_main_table(words.task, words.task) if any(name in part for part in every)]
    at_false_positives = {name: metrics.false_positives_of(name) or 0.0 for part in every for name in part}
    names += sorted(filter(metrics.false_positives_of, at_false_positives), key=lambda name: at_false_positives[name])
    counts = {keys: title for keys, title in COUNTS.items() if any(set(keys) <= set(part) for part in classes.values())}

    def cells(part: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [cell(part.get(name), words.entry(name)) for name in names]

    head = words.heads[0]
    of_val = {c: ((val.get("classes") or {}).get(c, {}).get(head) or {}).get("value") for c in classes}
    return {
        "names": names,
        "heads": [words.entry(name).column(scores.get("unit")) for name in names],
        "head": words.entry(head).title,
        "counts": list(counts.values()),
        "rows": [
            {
                "name": c,
                "note": part.get("note"),
                "cells": cells(part),
                "counts": [counted(part, keys) for keys in counts],
                "val": of_val[c],
            }
            for c, part in classes.items()
        ],
        "macro": cells(macro) if macro and len(classes) > 1 else [],
    }


def counted(part: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """1,200, 300"""
    return ", ".join("–" if part.get(key) is None else f"{part[key]:,}" for key in keys)


def cell(score: Mapping[str, Any] | None, entry: metrics.Metric) -> dict[str, Any]:
    """A score as text, and whether it is defined; undefined with the reason that scores.json or the catalogue has."""
    if not score:
        return {"text": wording.number(None), "defined": False}
    if score.get("value") is None:
        why = score.get("reason") or entry.undefined
        return {"text": f"undefined ({why})" if why else "undefined", "defined": False}
    return {"text": wording.interval(score, entry.digits), "defined": True}


def glossary(rows: Mapping[str, Any], words: Words) -> list[metrics.Metric]:
    """The entries of the scores that the page shows."""
    return [words.entry(name) for name in rows["names"]]
