"""The scores of each group of a metadata column, and the gap between the group of the highest and of the lowest Dice.

Groups are those of classification/subgroups.py. A gap has a level corrected for the number of pairs of groups
(Bonferroni): the most distant of several groups always differ somewhat. Patients may be in several groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.classification.subgroups import UNKNOWN, grouped, ordered, wanted_columns
from finetune.evaluation.segmentation.summary import Scorer, described
from finetune.evaluation.segmentation.table import CaseTable
from finetune.statistics.intervals import MIN_PATIENTS

GAPS = ("dice", "hd95")
LESS_IS_BETTER = ("assd", "hd95")


def subgroups(cases: CaseTable, columns: list[str] | str | None = "all") -> dict[str, Any]:
    """Column -> {groups: {group: {n, patients, macro, classes, note}}, worst, best, gaps: {macro: {score: gap},
    classes: {region: {score: gap}}}}, or {left_out: why}. A gap is {worst, best, value, low, high, pairs}.

    Args:
        columns: metadata columns, or all of them. A column that is named and absent is an error.
    """
    result: dict[str, Any] = {}
    for column in wanted_columns(cases.metadata, columns):
        group, why = grouped(cases.frame[column], cases.patients.astype(str), column)
        result[column] = {"left_out": why} if why else _of_column(Scorer(cases), group)
    return result


def _of_column(scorer: Scorer, group: np.ndarray) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    rows_of = {name: group == name for name in ordered(group)}
    for name, rows in rows_of.items():
        about: dict[str, Any] = {"n": int(rows.sum()), "patients": len(np.unique(scorer.patient[rows]))}
        if about["patients"] < MIN_PATIENTS:
            about["note"] = f"fewer than {MIN_PATIENTS} patients"
        groups[name] = {**about, **described(scorer, rows)}
    compared = {n: rows for n, rows in rows_of.items() if groups[n]["patients"] >= MIN_PATIENTS and n != UNKNOWN}
    gaps: dict[str, dict[str, Any]] = {"macro": {}, "classes": {name: {} for name in scorer.cases.regions}}
    for score in GAPS:
        for k, region in enumerate(scorer.cases.regions):
            if gap := _gap(scorer, score, compared, k):
                gaps["classes"][region][score] = gap
        if gap := _gap(scorer, score, compared, None):
            gaps["macro"][score] = gap
    head = gaps["macro"].get("dice")
    return {"groups": groups, **({"worst": head["worst"], "best": head["best"]} if head else {}), "gaps": gaps}


def _gap(scorer: Scorer, score: str, groups: dict[str, np.ndarray], k: int | None) -> dict[str, Any] | None:
    """The most distant two of the groups that have the score in enough patients; of all regions together, only groups
    in which each region has it: a mean over other regions is another score."""
    numbers = range(len(scorer.cases.regions)) if k is None else [k]
    enough = {
        name: scorer.mean(score, k, rows)
        for name, rows in groups.items()
        if all(scorer.mean(score, number, rows).patients >= MIN_PATIENTS for number in numbers)
    }
    if len(enough) < 2:
        return None
    names = sorted(enough, key=lambda name: enough[name].value, reverse=score in LESS_IS_BETTER)
    worst, best = names[0], names[-1]
    low, high = (best, worst) if score in LESS_IS_BETTER else (worst, best)
    pairs = len(enough) * (len(enough) - 1) // 2
    interval = (enough[high] - enough[low]).signed(pairs)
    return {"worst": worst, "best": best, **interval.as_dict(), "pairs": pairs}


def gap_warnings(groups: dict[str, Any]) -> list[str]:
    """Sentences on the gaps in Dice that are beyond chance."""
    warnings = []
    for column, of_column in groups.items():
        gaps = of_column.get("gaps", {})
        of_class = {name: gap.get("dice") for name, gap in gaps.get("classes", {}).items()}
        where = {"": gaps.get("macro", {}).get("dice"), **(of_class if len(of_class) > 1 else {})}
        for name, gap in where.items():
            if gap and gap.get("low") is not None and gap["low"] > 0:
                which = f" of {name}" if name else ""
                warnings.append(
                    f"Dice{which} is lower for {column} = {gap['worst']} than for {gap['best']}: "
                    f"by {gap['value']:.3f} ({gap['low']:.3f} to {gap['high']:.3f})."
                )
    return warnings
