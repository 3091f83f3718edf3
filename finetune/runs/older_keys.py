"""Keys of scores.json and worst_errors.json as written by version 0.1.0 -> current names."""

from collections.abc import Mapping
from typing import Any

BINS = {"said": "mean_confidence", "happened": "observed_rate"}


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`values` with each key of `names` under its new name."""
    return {names.get(key, key): value for key, value in values.items()}


def current_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of all splits under current names; these may be present already.

    Raises:
        ValueError: these are not the contents of a scores.json.
    """
    try:
        return {split: _split(of_split) for split, of_split in scores.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("it holds something else than was written") from error


def current_errors(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of worst_errors.json under current names.

    Raises:
        ValueError: these are not the contents of a worst_errors.json.
    """
    try:
        return [renamed(entry, {"picture": "image"}) for entry in errors]
    except (AttributeError, TypeError) as error:
        raise ValueError("it holds something else than was written") from error


def _split(scores: Mapping[str, Any]) -> dict[str, Any]:
    current = dict(scores)
    if points := current.get("operating_points"):
        current["operating_points"] = _points(points)
    if prevalence := current.get("prevalence"):
        current["prevalence"] = {**prevalence, "operating_points": _points(prevalence.get("operating_points") or {})}
    if selective := current.get("selective"):
        current["selective"] = {
            name: {**of_class, "rows": [renamed(row, {"wished": "target"}) for row in of_class["rows"]]}
            for name, of_class in selective.items()
        }
    if calibration := current.get("calibration"):
        parts = {**calibration, "classes": {name: _part(part) for name, part in calibration["classes"].items()}}
        current["calibration"] = parts | ({"overall": _part(parts["overall"])} if "overall" in parts else {})
    return current


def _points(points: Mapping[str, Any]) -> dict[str, Any]:
    return {name: renamed(point, {"wish": "criterion"}) for name, point in points.items()}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Of a class: the bins before and after calibration."""
    bins = {
        when: {**part[when], "bins": renamed(part[when]["bins"], BINS)}
        for when in ("before", "after")
        if "bins" in part.get(when, {})
    }
    return {**part, **bins}
