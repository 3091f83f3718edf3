"""cases.json of a run: what a report shows of single images, the best, middle and worst of them with overlays.

A task writes it beside scores.json, and `drawing` draws the overlays:

    {"split": "test", "metric": "dice", "size_unit": "pixels",
     "cases": [{"sample", "patient", "rank": "best" | "median" | "worst", "value", "classes": {region: value},
                "image", "overlay"}, ...],
     "values": {region: [value of each image]}, "sizes": {region: [size in each image]},
     "false_positives": [number in each image]}

`image` and `overlay` are JPEGs in base64, `value` is the score of `metric` by which the cases are ranked, None where it
is undefined. `values` and `sizes` have one entry per image, all images in one order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation import metrics, wording
from finetune.files import write_json_atomic

RANKS = {"worst": "Worst", "median": "Median", "best": "Best"}
"""Rank -> title, in the order of the page."""
BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


@dataclass(frozen=True)
class Case:
    """One image, its score, and it as JPEG without and with outlines."""

    sample: str
    patient: str
    rank: str
    """best, median or worst."""
    value: float | None
    image: str
    """JPEG in base64."""
    overlay: str
    """The same with the outlines of truth and prediction."""
    classes: dict[str, float | None] = field(default_factory=dict)
    """Score of each region or class."""

    def __post_init__(self) -> None:
        if self.rank not in RANKS:
            raise FinetuneError(f"rank={self.rank} of {self.sample} is not known. Choose from {', '.join(RANKS)}.")
        for name in ("image", "overlay"):
            if not set(getattr(self, name)) <= BASE64:
                raise FinetuneError(f"{name} of {self.sample} is not base64; finetune.drawing.jpeg makes it.")


@dataclass(frozen=True)
class Cases:
    """What cases.json holds."""

    metric: str
    """Name of the score of `value` and `values`."""
    cases: list[Case] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=dict)
    """Region or class -> its score in each image."""
    sizes: dict[str, list[float | None]] = field(default_factory=dict)
    """Region or class -> its true size in each image."""
    size_unit: str = "pixels"
    false_positives: list[int] = field(default_factory=list)
    """Of each image, at the first operating point."""
    split: str = "test"

    def __post_init__(self) -> None:
        for name, sizes in self.sizes.items():
            if len(sizes) != len(self.values.get(name, [])):
                raise FinetuneError(
                    f"sizes of {name} are of {len(sizes)} images, values of {len(self.values.get(name, []))}; give one "
                    "of each per image, None where it is undefined."
                )

    def write(self, path: Path) -> Path:
        """Write the file in one step."""
        return write_json_atomic(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Cases:
        """Read what `write` wrote.

        Raises:
            FinetuneError: the file is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "cases": [Case(**case) for case in content.get("cases", [])]})
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise FinetuneError(f"{path.name} cannot be read: {wording.shortened(str(error))}") from None


def ranked(values: Sequence[float | None], each: int = 3, higher_is_better: bool = True) -> list[tuple[int, str]]:
    """Numbers and ranks of the `each` worst, median and best images by their values, no image twice.

    Images without a value are left out. Of few images the worst come first.

    Example:
        >>> ranked([0.9, 0.1, 0.5, None], each=1)
        [(1, 'worst'), (2, 'median'), (0, 'best')]
    """
    numbers = [number for number, value in enumerate(values) if value is not None and not np.isnan(value)]
    order = sorted(numbers, key=lambda number: values[number] or 0.0, reverse=not higher_is_better)
    worst, rest = order[:each], order[each:]
    best = rest[::-1][:each]
    between = rest[: len(rest) - len(best)]
    start = max((len(between) - each) // 2, 0)
    by_rank = {"worst": worst, "median": between[start : start + each], "best": best}
    return [(number, rank) for rank, members in by_rank.items() for number in members]


def shown(cases: Cases | None, task: str) -> list[dict[str, Any]]:
    """The cases of the page, the worst first, each with its texts and its id."""
    if cases is None:
        return []
    entry = metrics.metric(cases.metric, task)
    order = sorted(cases.cases, key=lambda case: list(RANKS).index(case.rank))
    return [
        {
            "id": f"case-{number}",
            "rank": RANKS[case.rank],
            "image": case.overlay,
            "plain": case.image,
            "text": text_of(case, entry),
            "classes": ", ".join(f"{name} {_number(value, entry)}" for name, value in case.classes.items()),
            "sample": case.sample,
            "alt": f"{case.sample}, truth and prediction outlined: {text_of(case, entry)}",
        }
        for number, case in enumerate(order, 1)
    ]


def text_of(case: Case, entry: metrics.Metric) -> str:
    """Worst: Dice 0.112"""
    return f"{RANKS[case.rank]}: {entry.title} {_number(case.value, entry)}"


def _number(value: float | None, entry: metrics.Metric) -> str:
    return "undefined" if value is None else wording.number(value, entry.digits)
