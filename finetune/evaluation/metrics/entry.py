"""What the catalogue of scores says of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

RANKING, DECISIONS, PROBABILITIES = "ranking", "decisions", "probabilities"
OVERLAP, DISTANCES = "overlap", "distances"
MACRO = "macro"


@dataclass(frozen=True)
class Metric:
    """A score, and what a reader needs to know beside its number."""

    name: str
    """In scores.json."""
    title: str
    """In a sentence: `AUROC`, `sensitivity`."""
    about: str = ""
    """One or two sentences for a glossary."""
    synonym: str = ""
    """Another usual name, which a table's head gives in brackets."""
    group: str = ""
    """What the score judges; each group has a table of its own."""
    lower: float | None = 0.0
    upper: float | None = 1.0
    """Bounds of the value, both included; None where there is none."""
    higher_is_better: bool | None = True
    """None where it is not known."""
    chance: float | None = None
    """The value that guessing has, whatever the frequencies of the classes."""
    digits: int = 3
    """Decimals."""
    unit: str = ""
    share_of: str = ""
    """What the score is a share of; empty where it is no share."""
    right: tuple[str, ...] = ()
    """Of a share that follows from the counts tp, fp, fn and tn of a class: those in its numerator."""
    whole: tuple[str, ...] = ()
    """Those in its denominator."""
    needs: tuple[str, ...] = ()
    """Without these labels of a class, `positives` or `negatives`, the score is undefined."""
    undefined: str = ""
    """Why the score is undefined where the labels are there."""
    main: tuple[str, ...] = ()
    """Kinds of labels, or the task, whose main table per class has it; a table of further scores has the others."""
    of_class: bool = True
    """Whether the tables per class have it."""
    headline: str = ""
    """Group of scores.json, `macro` or `overall`, whose value the console says; empty where it says none."""
    brief: bool = False
    """Whether the headline is also that of a run in a list of runs."""
    at_threshold: bool = False
    """Whether it is shown for each operating point and at the threshold slider."""

    @property
    def heading(self) -> str:
        """Head of a column: `sensitivity (recall)`, `HD95, pixels`."""
        named = f"{self.title} ({self.synonym})" if self.synonym else self.title
        return f"{named}, {self.unit}" if self.unit else named

    @property
    def anchor(self) -> str:
        """Id of its glossary entry."""
        return f"metric-{re.sub(r'[^a-z0-9]+', '-', self.name.lower())}"

    def column(self, unit: str | None = None) -> str:
        """The heading where the scores have another unit, such as mm."""
        return replace(self, unit=unit).heading if self.unit and unit else self.heading

    def in_group(self, group: str) -> str:
        """Title of its value in a group of scores.json: `macro AUROC`."""
        return f"{MACRO} {self.title}" if group == MACRO else self.title


def entries(*metrics: Metric) -> dict[str, Metric]:
    """By their names."""
    return {metric.name: metric for metric in metrics}
