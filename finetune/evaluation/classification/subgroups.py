"""The scores of each group of a metadata column, and the gap between the best and the worst group.

Numbers are put into bands. Groups of few patients are merged into `other`, and marked if they are still small. The gap
of a column and score lies between the best and the worst group. Its interval comes from a bootstrap over the patients
of all groups at once, at a level corrected for the number of pairs of groups (Bonferroni), since the most distant of
several groups always differ somewhat. A macro mean is compared over the classes for which every group compared has
enough patients: a mean over other classes is another score.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import Scorer, Scores, mean_of_defined
from finetune.evaluation.classification.summary import described, joined, macro_interval
from finetune.evaluation.metrics import LOWER_IS_BETTER
from finetune.statistics import intervals
from finetune.statistics.intervals import MIN_PATIENTS, Interval

if TYPE_CHECKING:
    import pandas as pd

MAX_GROUPS = 12
MAX_RESAMPLES = 400  # of each column; the resampling of all groups costs as much as that of the whole table
AGES = (18, 40, 60, 80)
UNKNOWN, OTHER = "unknown", "other"
GAPS = ("auroc", "average_precision", "sensitivity", "specificity", "brier", "log_loss")


def subgroups(
    predictions: Predictions, columns: list[str] | str | None = "all", n_boot: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Column -> {groups: {group: {n, patients, macro, micro, classes, note, compared}}, worst, best, gaps}, or
    {left_out: why}; `compared` are macro means over the classes that all groups compared have.

    Args:
        columns: metadata columns, or all of them. A column that is named and absent is an error.
    """
    requested = wanted_columns(predictions.metadata, columns)
    result: dict[str, Any] = {}
    for column in requested:
        group, why = grouped(predictions.frame[column], predictions.patients.astype(str), column)
        result[column] = {"left_out": why} if why else _of_column(predictions, group, min(n_boot, MAX_RESAMPLES), seed)
    return result


def wanted_columns(metadata: list[str], columns: list[str] | str | None) -> list[str]:
    """The metadata columns to group by.

    Raises:
        FinetuneError: one that was named is not there.
    """
    requested = list(metadata) if columns == "all" else list(columns or [])
    if unknown := [column for column in requested if column not in metadata]:
        raise FinetuneError(f"evaluation.subgroups={unknown}: no such metadata column. There are {metadata or 'none'}.")
    return requested


def grouped(values: pd.Series, patients: np.ndarray, column: str = "") -> tuple[np.ndarray, str]:
    """The group of each sample; or the reason why the column gives no groups."""
    import pandas as pd

    missing = (values.isna() | (values.astype(str).str.strip() == "")).to_numpy()
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
    if not missing.all() and not np.isnan(numbers[~missing]).any() and len(np.unique(numbers[~missing])) > 6:
        group = banded(numbers, column)
    else:
        group = values.astype(str).str.strip().to_numpy(object)
    group = np.where(missing, UNKNOWN, group)

    def people() -> dict[str, int]:
        return {str(name): len(np.unique(patients[group == name])) for name in np.unique(group.astype(str))}

    counts = people()
    if len(counts) > max(MAX_GROUPS, len(np.unique(patients)) / 2):
        return group, f"{len(counts)} different values: a name, not a group."
    small = {name for name, n in counts.items() if n < MIN_PATIENTS and name != UNKNOWN}
    largest = sorted((n for n in counts if n not in small), key=lambda name: -counts[name])
    small |= {name for name in largest[MAX_GROUPS - 1 :] if name != UNKNOWN} if len(largest) > MAX_GROUPS else set()
    if len(small) > 1:
        group = np.where(np.isin(group.astype(str), list(small)), OTHER, group)
    if sum(n >= MIN_PATIENTS for n in people().values()) < 2:
        return group, f"fewer than two groups of {MIN_PATIENTS} patients or more."
    return group.astype(str), ""


def banded(numbers: np.ndarray, column: str = "") -> np.ndarray:
    """Ages in common bands; other numbers in quartiles of the samples. NaN has no band."""
    has_value = ~np.isnan(numbers)
    if re.search(r"(^|[^a-z])age([^a-z]|$)", column.lower()) and np.nanmin(numbers) >= 0 and np.nanmax(numbers) <= 130:
        edges = np.array(AGES, np.float64)
    else:
        edges = np.unique(np.quantile(numbers[has_value], [0.25, 0.5, 0.75]))
    edges = edges[(edges > np.nanmin(numbers)) & (edges <= np.nanmax(numbers))]
    if not len(edges):
        return np.full(len(numbers), "all", object)
    names = [f"below {edges[0]:g}"]
    names += [f"{low:g} to below {high:g}" for low, high in pairwise(edges)]
    names += [f"{edges[-1]:g} and above"]
    number = np.searchsorted(edges, np.where(has_value, numbers, edges[0]), side="right")
    return np.array(names, object)[number]


def _of_column(predictions: Predictions, group: np.ndarray, n_boot: int, seed: int) -> dict[str, Any]:
    everyone, patient = np.unique(predictions.patients.astype(str), return_inverse=True)
    names = ordered(group)
    scorers, owners = {}, {}
    for name in names:
        rows = np.flatnonzero(group == name)
        part = Predictions(predictions.frame.iloc[rows].reset_index(drop=True), predictions.classes, predictions.kind)
        scorers[name], owners[name] = Scorer(part), np.unique(patient[rows])
    chunks: dict[str, list[Scores]] = {name: [] for name in names}
    for weight in intervals.resamples(len(everyone), n_boot, seed):  # the same draw for all groups
        for name in names:
            chunks[name].append(scorers[name](weight[owners[name]]))
    resampled = {name: joined(chunks[name]) for name in names}
    groups = {}
    for name in names:
        about: dict[str, Any] = {"n": len(scorers[name].predictions), "patients": scorers[name].n_patients}
        if about["patients"] < MIN_PATIENTS:
            about["note"] = f"fewer than {MIN_PATIENTS} patients"
        groups[name] = {**about, **described(scorers[name], resampled[name])}
    compared = [name for name in names if groups[name]["patients"] >= MIN_PATIENTS and name != UNKNOWN]
    gaps = _gaps(predictions.classes, {name: (scorers[name].values(), resampled[name]) for name in compared}, groups)
    head = gaps["overall"].get("accuracy") or gaps["macro"].get("auroc")
    named = {"worst": head["worst"], "best": head["best"]} if head else {}
    return {"groups": groups, **named, "gaps": gaps}


def _gaps(
    classes: list[str], scores: dict[str, tuple[Scores, Scores | None]], groups: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """{macro: {metric: gap}, classes: {class: {metric: gap}}, overall: {metric: gap}}; a gap is {worst, best, value,
    low, high, pairs}, best minus worst where more is better. Of a class, groups with few positive or negative patients
    are not compared."""
    few = {
        (name, c): min(groups[name]["classes"][c][f"{side}_patients"] for side in ("positive", "negative"))
        < MIN_PATIENTS
        for name in scores
        for c in classes
    }
    alike, shared = _comparable(classes, scores, few)
    means: dict[str, dict[str, tuple[float, np.ndarray]]] = {}
    gaps: dict[str, dict[str, Any]] = {"macro": {}, "classes": {c: {} for c in classes}, "overall": {}}
    for metric in GAPS:
        for k, c in enumerate(classes):
            scores_of_groups = {
                name: (value.classes[metric][k, 0], resampled.classes[metric][k] if resampled else np.zeros(0))
                for name, (value, resampled) in scores.items()
                if not few[name, c]
            }
            if gap := widest_gap(metric, scores_of_groups):
                gaps["classes"][c][metric] = gap
        for name, (value, resampled) in alike.items():
            mean = float(mean_of_defined(value.classes[metric][shared, 0]))
            samples = mean_of_defined(resampled.classes[metric][shared]) if resampled else np.zeros(0)
            means.setdefault(metric, {})[name] = (mean, samples)
            own_classes = [Interval(**groups[name]["classes"][classes[k]][metric]) for k in shared]
            interval = macro_interval(metric, mean, own_classes, samples, groups[name]["patients"])
            groups[name].setdefault("compared", {})[metric] = interval.as_dict()
        if gap := widest_gap(metric, means.get(metric, {})):
            gaps["macro"][metric] = {**gap, "classes": [classes[k] for k in shared]}
    for metric in ("accuracy", "kappa", "log_loss"):
        scores_of_groups = {
            name: (value.overall[metric][0], resampled.overall[metric] if resampled else np.zeros(0))
            for name, (value, resampled) in scores.items()
            if metric in value.overall
        }
        if gap := widest_gap(metric, scores_of_groups):
            gaps["overall"][metric] = gap
    return gaps


def _comparable(
    classes: list[str], scores: dict[str, tuple[Scores, Scores | None]], few: dict[tuple[str, str], bool]
) -> tuple[dict[str, tuple[Scores, Scores | None]], list[int]]:
    """The groups that share enough classes for their macro means to be compared, and the numbers of these classes.

    A group with fewer than half of the classes of the largest group is left out: it would leave few shared classes.
    """
    comparable = {name: [k for k, c in enumerate(classes) if not few[name, c]] for name in scores}
    largest = max((len(class_numbers) for class_numbers in comparable.values()), default=0)
    alike = {
        name: scores[name]
        for name, class_numbers in comparable.items()
        if class_numbers and 2 * len(class_numbers) >= largest
    }
    shared = [k for k in range(len(classes)) if all(k in comparable[name] for name in alike)]
    return (alike, shared) if shared else ({}, [])


def widest_gap(metric: str, scores: dict[str, tuple[float, np.ndarray]]) -> dict[str, Any] | None:
    """The most distant two of the groups in which the score is defined."""
    defined = {name: pair for name, pair in scores.items() if not np.isnan(pair[0])}
    if len(defined) < 2:
        return None
    order = sorted(defined, key=lambda name: float(defined[name][0]), reverse=metric in LOWER_IS_BETTER)
    worst, best = order[0], order[-1]
    low, high = (worst, best) if metric not in LOWER_IS_BETTER else (best, worst)
    (below, draws_below), (above, draws_above) = defined[low], defined[high]
    pairs = len(defined) * (len(defined) - 1) // 2
    interval = intervals.difference(float(above - below), draws_above - draws_below, pairs)
    return {"worst": worst, "best": best, **interval.as_dict(), "pairs": pairs}


def ordered(group: np.ndarray) -> list[str]:
    """Bands by their numbers, other groups by name; `other` and `unknown` last."""

    def key(name: str) -> tuple[int, float, str]:
        first = re.match(r"(below )?(-?[\d.e+]+)", name)
        number = float(first[2]) - (0.5 if first[1] else 0) if first and _is_number(first[2]) else 0.0
        return ({OTHER: 2, UNKNOWN: 3}.get(name, 0 if first else 1), number, name)

    return sorted({str(name) for name in group}, key=key)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def gap_warnings(groups: dict[str, Any]) -> list[str]:
    """Sentences on the gaps that are beyond chance."""
    warnings = []
    for column, of_column in groups.items():
        gaps = of_column.get("gaps", {})
        of_class = {c: g.get("auroc") for c, g in gaps.get("classes", {}).items()}
        # for one class, and for two that exclude each other, the mean already covers them
        alone = len(of_class) <= (2 if gaps.get("overall") else 1)
        where = {"": gaps.get("macro", {}).get("auroc"), **({} if alone else of_class)}
        for name, gap in where.items():
            if gap and gap.get("low") is not None and gap["low"] > 0:
                which = f" of {name}" if name else ""
                warnings.append(
                    f"AUROC{which} is lower for {column} = {gap['worst']} than for {gap['best']}: "
                    f"by {gap['value']:.3f} ({gap['low']:.3f} to {gap['high']:.3f})."
                )
    return warnings
