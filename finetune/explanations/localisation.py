"""Do the heat maps lie where people saw the finding? Held against boxes, per finding and over all of them.

- Pointing game (Zhang et al., 2018): the share of maps whose maximum lies in a box of that finding, without the 15
  pixels of tolerance of the paper. A map that is the same everywhere points nowhere: a miss, and counted.
- IoU: the hottest pixels, as many as the boxes cover, against the boxes. Matching the area leaves no threshold to
  choose and does not depend on the map's scale; it takes the size of the finding as given, so it is a kind number.
  Pixels without heat are never taken.

Beside each stands what chance gives, twice. `chance` is the maximum, or the region, put anywhere at random. `elsewhere`
is the same boxes held against the maps of the other patients' pictures with that finding: a method that always points
to the middle of the lungs scores as well there, so only what lies above it speaks for the maps.

There is a verdict from MIN_MAPS maps on that vary: of fewer the interval of a share is 0.4 wide or more, and hardly
anything lies above chance.
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
MAX_OTHERS = 20  # maps of other patients that a picture's boxes are held against


@dataclass(frozen=True)
class Located:
    """A finding of a picture: its boxes and its heat map, both in pixels of the network's input."""

    finding: str
    patient: str
    boxes: Sequence[Corners]
    heat: np.ndarray
    """(S, S), 0 or more."""


def maximum(heat: np.ndarray) -> tuple[int, int] | None:
    """x and y of the hottest pixel; None of a map that is the same everywhere.

    A coarse map enlarged bilinearly is flat towards the border: of several hottest pixels it is the one nearest
    to their middle.
    """
    top = heat.max()
    if top == heat.min():
        return None
    rows, columns = np.nonzero(heat == top)
    nearest = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
    return int(columns[nearest]), int(rows[nearest])


def points(heat: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the maximum lies in the boxes."""
    at = maximum(heat)
    return at is not None and bool(inside[at[1], at[0]])


def places(heat: np.ndarray) -> np.ndarray:  # (S, S) -> int (S, S)
    """The place of each pixel among the hottest, from 0, in reading order where several are equal; behind all of them
    for pixels without heat."""
    place = np.empty(heat.size, np.int64)
    place[np.argsort(-heat, axis=None, kind="stable")] = np.arange(heat.size)
    return np.where(heat > 0, place.reshape(heat.shape), heat.size)


def iou(place: np.ndarray, inside: np.ndarray) -> float:
    """Intersection over union of the boxes and as many of the hottest pixels, by their `places`."""
    region = place < int(inside.sum())
    return float((region & inside).sum() / (region | inside).sum())


def localise(found: Sequence[Located], *, n_boot: int = 1000, seed: int = 0) -> dict[str, Any]:
    """{all: scores, findings: {finding: scores}, sentence}; scores are {n, patients, constant, pointing: {value, low,
    high, chance, elsewhere}, iou: {...}, note}. 95 % intervals over patients; `elsewhere` is None for a single patient.
    """
    names = list(dict.fromkeys(one.finding for one in found))
    ranked = [places(one.heat) for one in found]
    rows = [_row(number, found, ranked) for number in range(len(found))]
    told = {
        "all": _scores(rows, n_boot, seed),
        "findings": {name: _scores([r for r in rows if r["finding"] == name], n_boot, seed) for name in names},
    }
    return plain({**told, "sentence": in_a_sentence(told["all"])})


def in_a_sentence(scores: dict[str, Any]) -> str:
    """What the boxes say of the maps, for a reader; against the harder of the two kinds of chance."""
    pointing = scores["pointing"]
    if scores["n"] == 0:
        return "There are no boxes to hold the maps against."
    if (varying := scores["n"] - scores["constant"]) < MIN_MAPS:
        return (
            f"Whether the maps lie where the boxes are cannot be told: {varying:,} of {scores['n']:,} maps vary, "
            f"{MIN_MAPS} are needed."
        )
    control = max(value for value in (pointing["chance"], pointing["elsewhere"]) if not _nan(value))
    said = f"The maximum lies in a box in {100 * pointing['value']:.0f} % of {scores['n']:,} findings"
    if not _nan(pointing["low"]):
        said += f" ({100 * pointing['low']:.0f} to {100 * pointing['high']:.0f} %)"
    if _nan(pointing["low"]) or pointing["low"] <= control:
        return f"{said}: not shown to be more than chance, which gives {100 * control:.0f} %."
    return f"{said}; chance gives {100 * control:.0f} %."


def _row(number: int, found: Sequence[Located], ranked: Sequence[np.ndarray]) -> dict[str, Any]:
    """The scores of one finding of a picture, and those of other patients' maps in its place."""
    one = found[number]
    inside = mask(one.boxes, len(one.heat))
    others = [i for i, o in enumerate(found) if o.finding == one.finding and o.patient != one.patient]
    others = [others[i] for i in np.linspace(0, len(others) - 1, min(len(others), MAX_OTHERS)).astype(int)]
    share = float(inside.mean())
    return {
        "finding": one.finding,
        "patient": one.patient,
        "constant": maximum(one.heat) is None,
        "pointing": float(points(one.heat, inside)),
        "iou": iou(ranked[number], inside),
        "chance": {"pointing": share, "iou": share / (2 - share)},  # of two random regions of that share
        "elsewhere": {
            "pointing": float(np.mean([points(found[i].heat, inside) for i in others])) if others else np.nan,
            "iou": float(np.mean([iou(ranked[i], inside) for i in others])) if others else np.nan,
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
    drawn = [(total @ weight) / (count @ weight) for weight in intervals.resamples(people, n_boot, seed)]
    return intervals.on_logit_scale(value, intervals.spread(np.concatenate(drawn)), df=people - 1)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _nan(value: float | None) -> bool:
    return value is None or bool(np.isnan(value))
