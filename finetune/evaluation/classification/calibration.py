"""Calibration of probabilities: fitted on the val predictions alone, stored in the model file, reported on test.

- temperature (Guo et al., 2017): the logits divided by one number, the same for all classes. It corrects over- or
  underconfidence, not a shift, as a weighted loss or a balancing sampler leaves.
- platt (Platt, 1999): a slope and an offset of each class's log odds, fitted to Platt's smoothed targets.
- isotonic (Zadrozny and Elkan, 2002): the increasing curve nearest to each class's labels; needs the most images.
- auto: temperature for multiclass, platt for multilabel. Simulated (a tenth positive, d' = 2), mean log loss above that
  of the true probabilities, of a network twice too confident / of one shifted by 2.2, as a weighted loss leaves it:

      positive patients    not calibrated      temperature         platt           isotonic
             10            0.058 / 0.173      0.006 / 0.177    0.011 / 0.008    0.037 / 0.036
             50            0.058 / 0.173      0.001 / 0.171    0.002 / 0.002    0.016 / 0.014

Below `NEEDED` patients with, and without, a class nothing is fitted for it. Multiclass: platt and isotonic are fitted
to each class against the rest, then scaled to sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy

from finetune.errors import FinetuneError, one_of
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import log_odds

METHODS = ("auto", "temperature", "platt", "isotonic", "none")
NEEDED = {"temperature": 10, "platt": 10, "isotonic": 50}
"""Patients with a class, and without it, that each method needs."""


@dataclass(frozen=True)
class Calibration:
    """Logits -> probabilities; plain values, so that it can be stored in the model file."""

    method: str
    kind: str
    classes: list[str]
    """All classes of the model, in its order."""
    curves: dict[str, dict[str, float | list[float]]]
    """Per calibrated class: {temperature}, {slope, offset}, or {log_odds, probability} of the points of a curve."""
    prevalence: dict[str, float]
    """Per calibrated class: the share of positives among the images it was fitted on, which its probabilities carry."""
    fitted_on: dict[str, Any]
    """Split, images and patients."""

    def check(self) -> None:
        """Raise a FinetuneError unless the values, as they come from a file, can be applied to any logits."""
        if self.method not in NEEDED:
            raise one_of("calibration.method", self.method, NEEDED)
        if unknown := sorted({*self.curves, *self.prevalence} - set(self.classes)):
            raise FinetuneError(f"calibration has curves of {unknown[:3]}, which are not among the classes.")
        if not self.curves or set(self.curves) != set(self.prevalence):
            raise FinetuneError("calibration must have a curve and a prevalence of the same classes.")
        if self.kind == "multiclass" and len(self.curves) != len(self.classes):
            raise FinetuneError("calibration of a multiclass model must have a curve of each class.")
        for name, share in self.prevalence.items():
            if not 0 <= share <= 1:
                raise FinetuneError(f"calibration.prevalence.{name}={share} must lie between 0 and 1.")
        for name, curve in self.curves.items():
            _check_curve(self.method, name, curve)

    @property
    def calibrated(self) -> list[str]:
        """Classes that have a calibration, in the model's order."""
        return [name for name in self.classes if name in self.curves]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits (N, K) -> calibrated probabilities (N, K) in float64; NaN for a class without a calibration."""
        logits = np.asarray(logits, np.float64).reshape(-1, len(self.classes))
        if self.kind == "multiclass" and self.method == "temperature":
            return scipy.special.softmax(logits / self.curves[self.classes[0]]["temperature"], axis=1)
        odds = log_odds(logits) if self.kind == "multiclass" else logits
        calibrated = np.full(logits.shape, np.nan)
        for k, name in enumerate(self.classes):
            if name in self.curves:
                calibrated[:, k] = _applied(self.curves[name], odds[:, k])
        return calibrated / calibrated.sum(axis=1, keepdims=True) if self.kind == "multiclass" else calibrated

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        calibration = cls(**{key: values[key] for key in cls.__dataclass_fields__})
        calibration.check()
        return calibration


def fit(predictions: Predictions, method: str = "auto", split: str = "val") -> tuple[Calibration | None, list[str]]:
    """The calibration of `predictions`, None if it cannot be fitted; and notes in sentences."""
    if method not in METHODS:
        raise one_of("evaluation.calibration", method, METHODS)
    if method == "none":
        return None, []
    kind = predictions.kind
    method = ("temperature" if kind == "multiclass" else "platt") if method == "auto" else method
    truth, logits, names = predictions.truth, predictions.logits, predictions.classes
    fittable = _classes_with(predictions, NEEDED[method])
    curves: dict[str, dict[str, Any]] = {}
    if method == "temperature":
        # one number for all classes: it needs the patients of all together, and one class with both sides
        used = np.isin(names, fittable) if kind == "multilabel" else np.ones(len(names), bool)
        if fittable:
            temperature = _temperature(truth[:, used], logits[:, used], kind)
            curves = {name: {"temperature": temperature} for name in names}
    elif kind == "multilabel" or len(fittable) == len(names):
        odds = log_odds(logits) if kind == "multiclass" else logits
        for k in [names.index(name) for name in fittable]:
            labelled = ~np.isnan(truth[:, k])
            curves[names[k]] = (_platt if method == "platt" else _isotonic)(truth[labelled, k], odds[labelled, k])
    lacking = [name for name in names if name not in fittable]
    notes = []
    if lacking and (not curves or method != "temperature"):
        notes.append(
            f"{split} has fewer than {NEEDED[method]} patients with or without {', '.join(lacking)}: "
            + (f"not calibrated ({method})." if curves else f"no calibration ({method}) was fitted, none is shipped.")
        )
    if flat := [name for name, curve in curves.items() if curve.get("slope") == 0]:
        notes.append(
            f"In {split} the predictions do not rise with {', '.join(flat)}: calibrated, they are its prevalence."
        )
    if not curves:
        return None, notes
    labelled = ~np.isnan(truth)
    shares = {name: float((truth[:, k] == 1).sum() / max(labelled[:, k].sum(), 1)) for k, name in enumerate(names)}
    fitted_on = {"split": split, "n": len(predictions), "patients": len(np.unique(predictions.patients.astype(str)))}
    return Calibration(
        method, kind, names, curves, {name: shares[name] for name in names if name in curves}, fitted_on
    ), notes


def with_prevalence(calibration: Calibration, probs: np.ndarray, prevalence: Mapping[str, float]) -> np.ndarray:
    """Calibrated probabilities (N, K), adjusted to the class frequencies in `prevalence`.

    Bayes' rule for a shift of the prior alone (Saerens et al., 2002, equation 4): the images of a class look the same,
    their number differs. A multilabel class that is not named stays as it is; multiclass shares that are
    not named keep their proportions and fill up to 1. NaN where val had all or none of a class: its prior is not known.
    """
    old = np.array([calibration.prevalence.get(name, np.nan) for name in calibration.classes])
    old[(old == 0) | (old == 1)] = np.nan  # a prior that was never seen to vary cannot be taken out again
    if calibration.kind == "multilabel":
        new = np.array([prevalence.get(name, o) for name, o in zip(calibration.classes, old, strict=True)])
        return scipy.special.expit(scipy.special.logit(probs) + scipy.special.logit(new) - scipy.special.logit(old))
    shares = multiclass_shares(calibration.prevalence, prevalence)
    weighted = probs * np.array([shares[name] for name in calibration.classes]) / old
    return weighted / weighted.sum(axis=1, keepdims=True)


def multiclass_shares(old: Mapping[str, float], requested: Mapping[str, float]) -> dict[str, float]:
    """Shares of all classes, summing to 1: those requested, and the others in their old proportions."""
    others = sum(share for name, share in old.items() if name not in requested)
    remaining = 1 - sum(requested.values())
    if remaining < -1e-9 or (abs(remaining) > 1e-9 and not others):
        raise FinetuneError(
            f"prevalence={dict(requested)} sums to {sum(requested.values()):g}; all classes together must sum to 1."
        )
    return {
        name: float(requested.get(name, remaining * share / others if others else 0.0)) for name, share in old.items()
    }


def _classes_with(predictions: Predictions, minimum: int) -> list[str]:
    """Classes with at least `minimum` positive and `minimum` negative patients."""
    people = predictions.patients.astype(str)
    names = []
    for name, truth in zip(predictions.classes, predictions.truth.T, strict=True):
        if min(len(np.unique(people[truth == side])) for side in (0, 1)) >= minimum:
            names.append(name)
    return names


def _check_curve(method: str, name: str, curve: Mapping[str, Any]) -> None:
    """Raise unless the curve has the numbers of the method, within their bounds."""
    keys = {"temperature": ["temperature"], "platt": ["slope", "offset"], "isotonic": ["log_odds", "probability"]}
    where = f"calibration.curves.{name}"
    if sorted(curve) != sorted(keys[method]):
        raise FinetuneError(f"{where} has {sorted(curve)}; {method} has {keys[method]}.")
    values = {key: np.asarray(value, np.float64) for key, value in curve.items()}
    if not all(np.isfinite(value).all() for value in values.values()):
        raise FinetuneError(f"{where} must hold finite numbers.")
    if any(value.ndim != (1 if method == "isotonic" else 0) for value in values.values()):
        raise FinetuneError(f"{where} must hold {'lists of numbers' if method == 'isotonic' else 'a number each'}.")
    if method == "temperature" and values["temperature"] <= 0:
        raise FinetuneError(f"{where}.temperature={curve['temperature']} must lie above 0.")
    if method == "platt" and values["slope"] < 0:
        raise FinetuneError(f"{where}.slope={curve['slope']} must be 0 or more.")
    if method == "isotonic":
        odds, level = values["log_odds"], values["probability"]
        rising = len(odds) == len(level) > 0 and (np.diff(odds) > 0).all() and (np.diff(level) >= -1e-9).all()
        if not rising or level[0] < 0 or level[-1] > 1:
            raise FinetuneError(f"{where} must be as many probabilities as log odds, both rising.")


def _applied(curve: Mapping[str, Any], log_odds_of_class: np.ndarray) -> np.ndarray:
    if "temperature" in curve:
        return scipy.special.expit(log_odds_of_class / curve["temperature"])
    if "slope" in curve:
        return scipy.special.expit(curve["slope"] * log_odds_of_class + curve["offset"])
    return np.interp(log_odds_of_class, curve["log_odds"], curve["probability"])


def _temperature(truth: np.ndarray, logits: np.ndarray, kind: str) -> float:
    """The most likely temperature, with a standard normal prior on its logarithm.

    The prior is not in the paper: predictions that are all correct would otherwise take the temperature to 0.
    """
    if kind == "multiclass":
        labelled = ~np.isnan(truth).any(axis=1)
        z, true = logits[labelled], truth[labelled].argmax(axis=1)
        z = z - np.take_along_axis(z, true[:, None], axis=1)  # log of sum exp of these is the loss

        def loss(u: float) -> float:
            scaled = z * np.exp(-u)
            top = scaled.max(axis=1)
            return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))).sum() + u * u / 2)
    else:
        labelled = ~np.isnan(truth)
        against = np.where(truth[labelled] == 1, -logits[labelled], logits[labelled])

        def loss(u: float) -> float:
            return float(np.logaddexp(0, against * np.exp(-u)).sum() + u * u / 2)

    return float(
        np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-8}).x)
    )


def _platt(truth: np.ndarray, odds: np.ndarray) -> dict[str, float]:
    """Slope, never below 0 (the order of the predictions stays the network's), and offset."""
    positives, negatives = (truth == 1).sum(), (truth == 0).sum()
    target = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, scale = odds.mean(), max(float(odds.std()), 1e-12)
    z = (odds - centre) / scale

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        q = w[0] * z + w[1]
        off = scipy.special.expit(q) - target
        return float((np.logaddexp(0, q) - target * q).sum()), np.array([off @ z, off.sum()])

    begin = np.array([1.0, scipy.special.logit(target.mean())])
    slope, offset = scipy.optimize.minimize(
        loss, begin, jac=True, bounds=[(0, None), (None, None)], method="L-BFGS-B"
    ).x
    return {"slope": float(slope / scale), "offset": float(offset - slope * centre / scale)}


def _isotonic(truth: np.ndarray, odds: np.ndarray) -> dict[str, list[float]]:
    """The ends of each level piece. Levels of 0 and 1 are smoothed as in Platt's targets: one error at a probability
    of 0 would cost an infinite log loss."""
    values, which, count = np.unique(odds, return_inverse=True, return_counts=True)
    level = scipy.optimize.isotonic_regression(np.bincount(which, truth) / count, weights=count).x
    level = np.clip(level, 1 / ((truth == 0).sum() + 2), 1 - 1 / ((truth == 1).sum() + 2))
    step = np.diff(level) != 0
    ends = np.r_[True, step] | np.r_[step, True]
    return {"log_odds": values[ends].tolist(), "probability": level[ends].tolist()}
