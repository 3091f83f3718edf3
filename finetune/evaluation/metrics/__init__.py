"""The catalogue of scores: their names in scores.json, titles, bounds, directions and formats, each written once.

Console, reports and comparisons read it. To add a score, compute it under a name and add its entry to the file of its
task. A score without an entry, such as one of the user's own, is shown under its name (`unlisted`).
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace

from finetune.evaluation.metrics.classify import CLASSIFY
from finetune.evaluation.metrics.detect import DETECT
from finetune.evaluation.metrics.entry import DECISIONS, DISTANCES, MACRO, OVERLAP, PROBABILITIES, RANKING, Metric
from finetune.evaluation.metrics.segment import SEGMENT

__all__ = [
    "BRIEF",
    "CATALOGUE",
    "DECISIONS",
    "DISTANCES",
    "HEADLINES",
    "LOWER_IS_BETTER",
    "MACRO",
    "OVERLAP",
    "PROBABILITIES",
    "RANKING",
    "SHARES",
    "Metric",
    "false_positives_of",
    "in_further_tables",
    "in_main_table",
    "metric",
    "names",
    "position",
    "unlisted",
]

CATALOGUE: Mapping[str, Mapping[str, Metric]] = {"classify": CLASSIFY, "segment": SEGMENT, "detect": DETECT}
"""Task -> name -> entry, in the order in which scores are shown."""

HEADLINES = tuple(
    (entry.headline, entry.name) for entries in CATALOGUE.values() for entry in entries.values() if entry.headline
)
"""(group of scores.json, name) of what the console says of a split, as far as the split has it."""

BRIEF = tuple((group, name) for group, name in HEADLINES if any(e[name].brief for e in CATALOGUE.values() if name in e))
"""Those of a run in a list of runs; the first that is defined decides a comparison."""

AT_FALSE_POSITIVES = re.compile(r"sensitivity_at_([\d.]+)_fp")


def metric(name: str, task: str | None = None) -> Metric:
    """The entry of a score; of `macro_NAME` that of NAME with the title of its mean; else `unlisted`.

    Args:
        task: whose scores are meant, where several tasks have a score of that name; else the first task that has it.

    Example:
        >>> metric("macro_auroc").title
        'macro AUROC'
        >>> metric("sensitivity_at_0.5_fp", "detect").title
        'sensitivity at 0.5 false positives per image'
    """
    entries: Mapping[str, Metric] = CATALOGUE.get(task, {}) if task else ChainMap(*map(dict, CATALOGUE.values()))
    if name in entries:
        return entries[name]
    if (match := AT_FALSE_POSITIVES.fullmatch(name)) and task in (None, "detect"):
        number, of_boxes = match[1], DETECT["sensitivity"]
        title = f"sensitivity at {number} false positive{'' if number == '1' else 's'} per image"
        about = f"The share of the true boxes that are found where {number} boxes per image are wrong on average."
        return replace(of_boxes, name=name, title=title, about=about, synonym="")
    of_mean = name.removeprefix(f"{MACRO}_")
    if of_mean != name and of_mean in entries:
        return replace(entries[of_mean], name=name, title=entries[of_mean].in_group(MACRO))
    return unlisted(name)


def false_positives_of(name: str) -> float | None:
    """2.0 of `sensitivity_at_2_fp`; None of other names."""
    match = AT_FALSE_POSITIVES.fullmatch(name)
    return float(match[1]) if match else None


def unlisted(name: str) -> Metric:
    """The entry of a score that the catalogue does not have: its name, no bounds and no direction."""
    return Metric(name, name, lower=None, upper=None, higher_is_better=None)


def names(task: str = "classify", **fields: object) -> tuple[str, ...]:
    """Names of a task's scores whose entries have these values: `names(at_threshold=True)`."""
    return tuple(
        entry.name
        for entry in CATALOGUE[task].values()
        if all(getattr(entry, field) == value for field, value in fields.items())
    )


def in_main_table(kind: str, task: str = "classify") -> tuple[str, ...]:
    """Names of the scores per class at the top of a report on this kind of labels."""
    return tuple(entry.name for entry in CATALOGUE[task].values() if kind in entry.main)


def in_further_tables(kind: str, groups: tuple[str, ...], task: str = "classify") -> tuple[str, ...]:
    """Names of the other scores per class, of these groups one after the other."""
    return tuple(
        entry.name
        for group in groups
        for entry in CATALOGUE[task].values()
        if entry.group == group and entry.of_class and kind not in entry.main
    )


def position(name: str) -> tuple[bool, int]:
    """Sort key: means over the classes first, each in the order of the catalogue; what it does not have comes last."""
    order = [entry for entries in CATALOGUE.values() for entry in entries]
    of_mean = name.removeprefix(f"{MACRO}_")
    return of_mean == name, order.index(of_mean) if of_mean in order else len(order)


LOWER_IS_BETTER = names(higher_is_better=False)
"""Of labels."""
SHARES = tuple(name for name, entry in CLASSIFY.items() if entry.share_of)
"""Scores of labels that are shares of images; their macro means allow for the few images of a rare class."""
