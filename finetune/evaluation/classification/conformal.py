"""Conformal prediction sets: all classes that cannot be ruled out, so that a set holds the truth at a chosen rate.

Split conformal prediction (Vovk et al., 2005; Angelopoulos and Bates, 2021), fitted on val:

- multiclass: every class whose probability reaches a threshold, the same for all classes.
- multilabel: for each finding yes, no, both (uncertain) or neither (unlike the images of val). Yes and no have a
  threshold each, so that positives keep their yes as often as negatives keep their no.

The coverage holds for images drawn like those of val. Images of one patient are alike, so the correction for the size
of val counts patients; and val also chose the epoch, so the coverage measured on test is the one to rely on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions
from finetune.statistics.shares import shares

SIDES = {"yes": 1, "no": 0}
NEITHER = "neither"


@dataclass(frozen=True)
class Conformal:
    """Thresholds of `prob_<class>`; plain values, so that they can be stored in the model file."""

    kind: str
    classes: list[str]
    error: float
    """Share of sets that may miss the truth."""
    cuts: dict[str, dict[str, float]]
    """Multilabel: {class: {yes: minimum probability, no: maximum}}; multiclass: {"": {least}}."""
    fitted_on: dict[str, Any]

    def check(self) -> None:
        """Raise a FinetuneError unless the values, as they come from a file, can be applied to any probabilities."""
        if not 0 < self.error < 0.5:
            raise FinetuneError(f"conformal.error={self.error} must lie between 0 and 0.5.")
        names, sides = ([""], ["least"]) if self.kind == "multiclass" else (self.classes, ["no", "yes"])
        for name, cut in self.cuts.items():
            if name not in names or sorted(cut) != sides:
                raise FinetuneError(f"conformal.cuts.{name}={cut} is not a cut of a class of a {self.kind} model.")
            if not all(0 <= value <= 1 for value in cut.values()):
                raise FinetuneError(f"conformal.cuts.{name}={cut} must lie between 0 and 1.")
        if not self.cuts:
            raise FinetuneError("conformal.cuts must hold a cut.")

    def sets(self, probs: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities (N, K) -> multiclass: {class: whether it is in the set (N,)}; multilabel: {class: (N, 2),
        whether yes and no are}."""
        if self.kind == "multiclass":
            return {name: probs[:, k] >= self.cuts[""]["least"] for k, name in enumerate(self.classes)}
        sets = {}
        for k, name in enumerate(self.classes):
            if name in self.cuts:
                cut = self.cuts[name]
                sets[name] = np.stack([probs[:, k] >= cut["yes"], probs[:, k] <= cut["no"]], axis=1)
        return sets

    def columns(self, probs: np.ndarray) -> dict[str, list[str]]:
        """The sets as text, `a|b`, for a table: `set` (multiclass) or `set_<class>` with yes and no; an empty set is
        `neither`, so that it is not taken for a missing one."""
        if self.kind == "multiclass":
            within = np.stack(list(self.sets(probs).values()), axis=1)
            return {"set": ["|".join(np.array(self.classes, object)[row]) or NEITHER for row in within]}
        return {
            f"set_{name}": [
                "|".join(side for side, included in zip(SIDES, row, strict=True) if included) or NEITHER
                for row in within
            ]
            for name, within in self.sets(probs).items()
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conformal:
        conformal = cls(**{key: values[key] for key in cls.__dataclass_fields__})
        conformal.check()
        return conformal


def check_error(value: Any) -> float | None:
    """The value of `evaluation.conformal=`: the share of sets that may miss the truth, None for no sets.

    Raises:
        FinetuneError: no share between 0 and 0.5.
    """
    if value is None or value is False or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 0.5:
        raise FinetuneError(f"evaluation.conformal={value} must lie between 0 and 0.5, such as 0.1, or be null.")
    return float(value)


def fit(val: Predictions, error: float, split: str = "val") -> tuple[Conformal | None, list[str]]:
    """The thresholds, None if val is too small for any; and notes in sentences.

    At least 1 / error - 1 patients are needed: with fewer, nothing can be ruled out.
    """
    truth, probs, people = val.truth, val.probs, val.patients.astype(str)
    cuts: dict[str, dict[str, float]] = {}
    few = []
    if val.kind == "multiclass":
        labelled = ~np.isnan(truth).any(axis=1)
        true = (probs * np.nan_to_num(truth)).sum(axis=1)[labelled]
        threshold = conformal_threshold(true, people[labelled], error)
        cuts = {"": {"least": threshold}} if threshold is not None else {}
    else:
        for k, name in enumerate(val.classes):
            positive, negative = (truth[:, k] == side for side in (1, 0))
            yes = conformal_threshold(probs[positive, k], people[positive], error)
            no = conformal_threshold(-probs[negative, k], people[negative], error)
            if yes is None or no is None:
                few.append(name)
            else:
                cuts[name] = {"yes": yes, "no": -no}
    notes = []
    if few or not cuts:
        needed = int(np.ceil(1 / error)) - 1
        which = f" with and without {', '.join(few)}" if few else ""
        notes.append(
            f"{split} has fewer than {needed} patients{which}: no sets that miss the truth in {100 * error:g} %."
        )
    fitted_on = {"split": split, "n": len(val), "patients": len(np.unique(people))}
    return (Conformal(val.kind, val.classes, error, cuts, fitted_on) if cuts else None), notes


def conformal_threshold(scores: np.ndarray, people: np.ndarray, error: float) -> float | None:
    """The score below which at most the share `error` of new scores will lie, from the scores (n,) of the truth in val.

    The share error - (1 - error) / P of the scores lies below it, as is correct for P independent scores: with the
    images of few patients the threshold stays conservative. None for fewer than 1 / error - 1 patients.
    """
    patients = len(np.unique(people))
    if patients + 1 < 1 / error - 1e-9:
        return None
    below = len(scores) * max(error - (1 - error) / patients, 0)
    return float(np.sort(scores)[int(below + 1e-9)])


def evaluate(predictions: Predictions, conformal: Conformal, *, n_boot: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The coverage of the sets on images not used to fit them: {error, fitted_on, classes: {class: ...}}, each a share
    with its interval.

    Multilabel: `yes` (positives whose set has yes), `no` (negatives whose set has no), `one`, `both` and `neither`.
    Multiclass: per class the `coverage` of its images; over all (`overall`) coverage, `size`, `one`, `neither`.
    """
    truth, within = predictions.truth, conformal.sets(predictions.probs)
    quantities: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    if conformal.kind == "multiclass":
        labelled = ~np.isnan(truth).any(axis=1)
        members = np.stack([within[name] for name in predictions.classes], axis=1)
        covered, size, every = (
            (members & (truth == 1)).any(axis=1),
            members.sum(axis=1),
            np.ones(len(predictions), bool),
        )
        for k, name in enumerate(predictions.classes):
            quantities[name, "coverage"] = (covered, truth[:, k] == 1)
        quantities["", "coverage"] = (covered, labelled)
        quantities["", "size"] = (size.astype(np.float64), every)
        quantities["", "one"], quantities["", "neither"] = (size == 1, every), (size == 0, every)
    else:
        for name, sides in within.items():
            k, labelled = predictions.classes.index(name), ~np.isnan(truth[:, predictions.classes.index(name)])
            quantities[name, "yes"], quantities[name, "no"] = (
                (sides[:, i], truth[:, k] == side) for i, side in enumerate((1, 0))
            )
            count = sides.sum(axis=1)
            for what, number in (("one", 1), ("both", 2), ("neither", 0)):
                quantities[name, what] = (count == number, labelled)
    result: dict[str, Any] = {"error": conformal.error, "fitted_on": conformal.fitted_on, "classes": {}}
    for (name, what), share in shares(predictions.patients, quantities, n_boot=n_boot, seed=seed).items():
        where = result["classes"].setdefault(name, {}) if name else result.setdefault("overall", {})
        where[what] = share.as_dict()
    return result
