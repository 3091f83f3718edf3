"""Heat maps compared with the boxes of readers, per finding and over all findings.

- Pointing game (Zhang et al., 2018): the share of maps whose maximum lies in a box of that finding, without the 15
  pixels of tolerance of the paper. A constant map counts as a miss.
- IoU: the hottest pixels, as many as the boxes cover, against the boxes. Matching the area needs no threshold and
  does not depend on the map's scale; it uses the size of the finding, so it is optimistic. Pixels without heat are
  never taken.

Each score is compared with two chance levels. `chance` places the maximum, or the region, at random. `elsewhere`
compares the same boxes with the maps of other patients' images with that finding: a method that always points to the
middle of the lungs scores as well there, so only a score above it supports the maps.

A verdict needs MIN_MAPS maps that vary: with fewer the interval of a share is 0.4 wide or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.explanations.geometry import Corners, mask
from finetune.files import plain
from finetune.statistics import intervals
from finetune.statistics.intervals import MIN_PATIENTS, Interval

MIN_MAPS = 20  # that vary, for a verdict
MAX_OTHERS = 20  # maps of other patients that the boxes of an image are compared with


@dataclass(frozen=True)
class BoxedFinding:
    """A finding in an image: its boxes and its heat map, both in pixels of the network's input."""

    finding: str
    patient: str
    boxes: Sequence[Corners]
    heat: np.ndarray
    """(S, S), 0 or more."""


def maximum(heat: np.ndarray) -> tuple[int, int] | None:
    """x and y of the hottest pixel; None for a constant map.

    A coarse map enlarged bilinearly is flat towards the border: of several hottest pixels it is the one nearest
    to their middle.
    """
    highest = heat.max()
    if highest == heat.min():
        return None
    rows, columns = np.nonzero(heat == highest)
    nearest = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
    return int(columns[nearest]), int(rows[nearest])


def peak_in_boxes(heat: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the maximum lies in the boxes."""
    position = maximum(heat)
    return position is not None and bool(inside[position[1], position[0]])


def heat_ranks(heat: np.ndarray) -> np.ndarray:  # (S, S) -> int (S, S)
    """The rank of each pixel by heat, from 0 for the hottest; ties in reading order, pixels without heat last."""
    rank = np.empty(heat.size, np.int64)
    rank[np.argsort(-heat, axis=None, kind="stable")] = np.arange(heat.size)
    return np.where(heat > 0, rank.reshape(heat.shape), heat.size)


def iou(ranks: np.ndarray, inside: np.ndarray) -> float:
    """Intersection over union of the boxes and as many of the hottest pixels, by their `heat_ranks`."""
    region = ranks < int(inside.sum())
    return float((region & inside).sum() / (region | inside).sum())


def localise(findings: Sequence[BoxedFinding], *, n_boot: int = 1000, seed: int = 0) -> dict[str, Any]:
    """{all: scores, findings: {finding: scores}, sentence}; scores are {n, patients, constant, pointing: {value, low,
    high, chance, elsewhere}, iou: {...}, note}. 95 % intervals over patients; `elsewhere` is None for a single patient.
    """
    names = list(dict.fromkeys(finding.finding for finding in findings))
    ranked = [heat_ranks(finding.heat) for finding in findings]
    rows = [_row(number, findings, ranked) for number in range(len(findings))]
    result = {
        "all": _scores(rows, n_boot, seed),
        "findings": {name: _scores([r for r in rows if r["finding"] == name], n_boot, seed) for name in names},
    }
    return plain({**result, "sentence": in_a_sentence(result["all"])})


def in_a_sentence(scores: dict[str, Any]) -> str:
    """The result in a sentence, compared with the higher of the two chance levels."""
    pointing = scores["pointing"]
    if scores["n"] == 0:
        return "There are no boxes to compare the maps with."
    if (varying := scores["n"] - scores["constant"]) < MIN_MAPS:
        return (
            f"Whether the maps lie in the boxes is unknown: {varying:,} of {scores['n']:,} maps vary, "
            f"{MIN_MAPS} are needed."
        )
    control = max(value for value in (pointing["chance"], pointing["elsewhere"]) if not _nan(value))
    sentence = f"The maximum lies in a box in {100 * pointing['value']:.0f} % of {scores['n']:,} findings"
    if not _nan(pointing["low"]):
        sentence += f" ({100 * pointing['low']:.0f} to {100 * pointing['high']:.0f} %)"
    if _nan(pointing["low"]) or pointing["low"] <= control:
        return f"{sentence}: not shown to be more than chance, which gives {100 * control:.0f} %."
    return f"{sentence}; chance gives {100 * control:.0f} %."


def _row(number: int, findings: Sequence[BoxedFinding], heat_ranks: Sequence[np.ndarray]) -> dict[str, Any]:
    """The scores of one finding in an image, and those of other patients' maps for the same boxes."""
    finding = findings[number]
    inside = mask(finding.boxes, len(finding.heat))
    others = [
        i
        for i, candidate in enumerate(findings)
        if candidate.finding == finding.finding and candidate.patient != finding.patient
    ]
    others = [others[i] for i in np.linspace(0, len(others) - 1, min(len(others), MAX_OTHERS)).astype(int)]
    share = float(inside.mean())
    return {
        "finding": finding.finding,
        "patient": finding.patient,
        "constant": maximum(finding.heat) is None,
        "pointing": float(peak_in_boxes(finding.heat, inside)),
        "iou": iou(heat_ranks[number], inside),
        "chance": {"pointing": share, "iou": share / (2 - share)},  # of two random regions of that share
        "elsewhere": {
            "pointing": float(np.mean([peak_in_boxes(findings[i].heat, inside) for i in others])) if others else np.nan,
            "iou": float(np.mean([iou(heat_ranks[i], inside) for i in others])) if others else np.nan,
        },
    }


def _scores(rows: Sequence[dict[str, Any]], n_boot: int, seed: int) -> dict[str, Any]:
    people, patient = np.unique([row["patient"] for row in rows], return_inverse=True)
    scores: dict[str, Any] = {
        "n": len(rows),
        "patients": len(people),
        "constant": sum(row["constant"] for row in rows),
    }
    for metric in ("pointing", "iou"):
        values = np.array([row[metric] for row in rows], np.float64)
        elsewhere = np.array([row["elsewhere"][metric] for row in rows], np.float64)
        scores[metric] = {
            **share(values, patient, n_boot, seed).as_dict(),
            "chance": _mean(np.array([row["chance"][metric] for row in rows])),
            "elsewhere": _mean(elsewhere[~np.isnan(elsewhere)]),
        }
    if rows and len(people) < MIN_PATIENTS:
        scores["note"] = f"fewer than {MIN_PATIENTS} patients"
    return scores


def share(values: np.ndarray, patient: np.ndarray, n_boot: int, seed: int) -> Interval:
    """The mean of values from 0 to 1 with its interval over patients (numbered from 0): Clopper and Pearson's where all
    are 0 or all 1, else by resampling patients, on the logit scale."""
    if not len(values):
        return Interval(np.nan)
    value, people = float(values.mean()), int(patient.max()) + 1
    if value in (0.0, 1.0):
        return intervals.exact(value, people)
    if people < 2 or not n_boot:
        return Interval(value)
    total, count = np.bincount(patient, values), np.bincount(patient)
    resampled = [(total @ weight) / (count @ weight) for weight in intervals.resamples(people, n_boot, seed)]
    return intervals.on_logit_scale(value, intervals.spread(np.concatenate(resampled)), df=people - 1)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _nan(value: float | None) -> bool:
    return value is None or bool(np.isnan(value))
