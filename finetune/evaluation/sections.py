"""What the report says of calibration, operating points, subgroups and openings of the test split, from scores.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.evaluation import plots, wording
from finetune.evaluation.reliability import LOSSES, Bins

MOST_FIGURES = 14  # reliability diagrams; the table has all classes
MACRO = ("average_precision", "sensitivity", "specificity")
METHODS = {
    "temperature": "one temperature for all classes",
    "platt": "a slope and an offset for each class (Platt)",
    "isotonic": "a rising curve for each class (isotonic regression)",
}


def calibration(scores: dict[str, Any]) -> dict[str, Any] | None:
    """Rows of before and after, with their reliability diagrams."""
    found = scores.get("calibration")
    if not found:
        return None
    named = {**({"All classes, the most probable": found["overall"]} if "overall" in found else {}), **found["classes"]}
    rows = [
        {
            "name": name,
            "cells": [wording.interval(each[when].get(m)) for m in LOSSES for when in ("before", "after")],
            "change": wording.difference(each["difference"]["log_loss"]),
        }
        for name, each in named.items()
    ]
    figures = []
    for name, each in list(named.items())[:MOST_FIGURES]:
        before, after = (
            Bins(**{k: np.array(v) for k, v in each[when]["bins"].items()}) for when in ("before", "after")
        )
        errors = [wording.number(each[when]["ece"]["value"]) for when in ("before", "after")]
        caption = f"{name}: calibration error {errors[0]}, calibrated {errors[1]}"
        figures.append((caption, Markup(plots.reliability(before, f"Reliability of {caption}", after))))
    about = found.get("fitted_on") or {}
    return {"method": METHODS.get(found["method"], found["method"]), "about": about, "rows": rows, "figures": figures}


def operating_points(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """One table per point: class, threshold and what it gives."""
    metrics = ("sensitivity", "specificity", "ppv", "npv", "f1")
    points = []
    for name, found in (scores.get("operating_points") or {}).items():
        rows = [
            {
                "name": c,
                "threshold": f"{each['threshold']:.4g}",
                "cells": [wording.interval(each[m]) for m in metrics],
                "counts": [each[count] for count in ("tp", "fp", "fn", "tn")],
            }
            for c, each in found["classes"].items()
        ]
        points.append({"name": name, "wish": found["wish"], "rows": rows})
    return points


def subgroups(scores: dict[str, Any]) -> dict[str, Any] | None:
    """Per column a forest plot, a table and the gap; and the columns that were left out, with the reason."""
    found = scores.get("subgroups")
    if not found:
        return None
    columns = []
    for column, of_column in found.items():
        if "groups" not in of_column:
            continue
        groups, gaps = of_column["groups"], of_column["gaps"]
        several = len(next(iter(groups.values()))["classes"]) > 1
        accuracy = all("accuracy" in (of.get("overall") or {}) for of in groups.values())
        where, metric = ("overall", "accuracy") if accuracy else ("macro", "auroc")
        title = "accuracy" if accuracy else "macro AUROC" if several else "AUROC"
        head = {
            name: of[where][metric] if accuracy else (of.get("compared") or {}).get(metric)
            for name, of in groups.items()
        }
        drawn = [(f"{name} ({of['n']:,})", head[name] or {}) for name, of in groups.items()]
        rows = [
            {
                "name": name,
                "n": of["n"],
                "patients": of["patients"],
                "note": of.get("note"),
                "cells": [
                    wording.interval(head[name]) if head[name] else "too few",
                    *(wording.interval(of["macro"][m]) for m in MACRO),
                ],
            }
            for name, of in groups.items()
        ]
        gap = gaps["overall"].get("accuracy") if accuracy else gaps["macro"].get("auroc")
        label = f"{title} by {column}: " + "; ".join(f"{name} {wording.interval(score)}" for name, score in drawn)
        columns.append(
            {
                "name": column,
                "title": title,
                "figure": Markup(plots.forest(drawn, label, title)),
                "heads": ["accuracy" if accuracy else title, "average precision", "sensitivity", "specificity"],
                "rows": rows,
                "gap": wording.gap(gap, title) if gap else None,
                "over": (gap or {}).get("classes") if several else None,
            }
        )
    left_out = {column: of["left_out"] for column, of in found.items() if "left_out" in of}
    return {"columns": columns, "left_out": left_out}


def openings(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How often the scores of the test split were seen, when, and by which command."""
    if not found:
        return None
    times = [(str(each.get("when")), wording.shortened_command(str(each.get("command") or ""))) for each in found]
    count = {1: "once, by the fit itself", 2: "twice"}.get(len(times), f"{len(times)} times")
    return {"count": count, "times": times, "often": len(times) > 1}


def errors(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The surest wrong answers, each in a sentence beside its pictures."""
    return [{**each, "said": wording.error(each), "alt": f"{each['sample']}: {wording.error(each)}"} for each in found]
