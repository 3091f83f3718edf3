"""Conformal sets: not one answer but all that cannot be ruled out, so that the truth is among them as often as asked.

Split conformal prediction (Vovk et al., 2005; Angelopoulos and Bates, 2021), fitted on val:

- multiclass: every class whose probability reaches a cut, the same for all classes.
- multilabel: for each finding yes, no, both (not sure) or neither (unlike what val had); yes and no have a cut each, so
  that of those who have the finding as many keep their yes as of those who have not keep their no.

The promise holds for images drawn like those of val. Images of one patient are alike, so patients are counted where
the rule counts what it was fitted on; and val also chose the epoch, so what test says is what counts.
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
    """Cuts on `prob_<class>`; plain values, so that they travel in the model file."""

    kind: str
    classes: list[str]
    error: float
    """How often the truth may be missing."""
    cuts: dict[str, dict[str, float]]
    """Multilabel: {class: {yes: least probability, no: greatest}}; multiclass: {"": {least}}."""
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
        found = {}
        for k, name in enumerate(self.classes):
            if name in self.cuts:
                cut = self.cuts[name]
                found[name] = np.stack([probs[:, k] >= cut["yes"], probs[:, k] <= cut["no"]], axis=1)
        return found

    def columns(self, probs: np.ndarray) -> dict[str, list[str]]:
        """The sets as text, `a|b`, for a table: `set` (multiclass) or `set_<class>` with yes and no; an empty set is
        `neither`, so that it is not taken for a missing one."""
        if self.kind == "multiclass":
            within = np.stack(list(self.sets(probs).values()), axis=1)
            return {"set": ["|".join(np.array(self.classes, object)[row]) or NEITHER for row in within]}
        return {
            f"set_{name}": [
                "|".join(side for side, there in zip(SIDES, row, strict=True) if there) or NEITHER for row in within
            ]
            for name, within in self.sets(probs).items()
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conformal:
        made = cls(**{key: values[key] for key in cls.__dataclass_fields__})
        made.check()
        return made


def check_error(given: Any) -> float | None:
    """What `evaluation.conformal=` says: how often the truth may be missing, None for no sets.

    Raises:
        FinetuneError: no share between 0 and 0.5.
    """
    if given is None or given is False or given == 0:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 0.5:
        raise FinetuneError(f"evaluation.conformal={given} must lie between 0 and 0.5, such as 0.1, or be null.")
    return float(given)


def fit(val: Predictions, error: float, split: str = "val") -> tuple[Conformal | None, list[str]]:
    """The cuts, None where val is too small for any; and what must be said, in sentences.

    To leave out the share `error` takes at least 1 / error - 1 patients: below, nothing can be ruled out.
    """
    truth, probs, people = val.truth, val.probs, val.patients.astype(str)
    cuts: dict[str, dict[str, float]] = {}
    few = []
    if val.kind == "multiclass":
        known = ~np.isnan(truth).any(axis=1)
        true = (probs * np.nan_to_num(truth)).sum(axis=1)[known]
        least = cut(true, people[known], error)
        cuts = {"": {"least": least}} if least is not None else {}
    else:
        for k, name in enumerate(val.classes):
            one, zero = (truth[:, k] == side for side in (1, 0))
            yes = cut(probs[one, k], people[one], error)
            no = cut(-probs[zero, k], people[zero], error)
            if yes is None or no is None:
                few.append(name)
            else:
                cuts[name] = {"yes": yes, "no": -no}
    said = []
    if few or not cuts:
        needed = int(np.ceil(1 / error)) - 1
        of = f" with and without {', '.join(few)}" if few else ""
        said.append(f"{split} has fewer than {needed} patients{of}: no sets that miss the truth in {100 * error:g} %.")
    about = {"split": split, "n": len(val), "patients": len(np.unique(people))}
    return (Conformal(val.kind, val.classes, error, cuts, about) if cuts else None), said


def cut(scores: np.ndarray, people: np.ndarray, error: float) -> float | None:
    """The score that at most the share `error` of new ones will stay below, from those (n,) of the truth in val.

    The share error - (1 - error) / P of the scores lies below it: what is right for P independent scores, so that the
    images of few patients promise no more than they can. None for fewer than 1 / error - 1 patients.
    """
    patients = len(np.unique(people))
    if patients + 1 < 1 / error - 1e-9:
        return None
    below = len(scores) * max(error - (1 - error) / patients, 0)
    return float(np.sort(scores)[int(below + 1e-9)])


def applied(predictions: Predictions, conformal: Conformal, *, n_boot: int = 2000, seed: int = 0) -> dict[str, Any]:
    """What the sets hold on images they were not fitted on: {error, fitted_on, classes: {class: ...}}, each a share
    with its interval.

    Multilabel: `yes` (positives whose set has yes), `no` (negatives whose set has no), `one`, `both` and `neither`.
    Multiclass: per class the `coverage` of its images; over all (`overall`) coverage, `size`, `one`, `neither`.
    """
    truth, within = predictions.truth, conformal.sets(predictions.probs)
    asked: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    if conformal.kind == "multiclass":
        known = ~np.isnan(truth).any(axis=1)
        members = np.stack([within[name] for name in predictions.classes], axis=1)
        held, size, every = (members & (truth == 1)).any(axis=1), members.sum(axis=1), np.ones(len(predictions), bool)
        for k, name in enumerate(predictions.classes):
            asked[name, "coverage"] = (held, truth[:, k] == 1)
        asked["", "coverage"] = (held, known)
        asked["", "size"] = (size.astype(np.float64), every)
        asked["", "one"], asked["", "neither"] = (size == 1, every), (size == 0, every)
    else:
        for name, sides in within.items():
            k, known = predictions.classes.index(name), ~np.isnan(truth[:, predictions.classes.index(name)])
            asked[name, "yes"], asked[name, "no"] = (
                (sides[:, i], truth[:, k] == side) for i, side in enumerate((1, 0))
            )
            count = sides.sum(axis=1)
            for what, number in (("one", 1), ("both", 2), ("neither", 0)):
                asked[name, what] = (count == number, known)
    told: dict[str, Any] = {"error": conformal.error, "fitted_on": conformal.fitted_on, "classes": {}}
    for (name, what), share in shares(predictions.patients, asked, n_boot=n_boot, seed=seed).items():
        where = told["classes"].setdefault(name, {}) if name else told.setdefault("overall", {})
        where[what] = share.as_dict()
    return told
