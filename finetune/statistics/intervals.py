"""95 % intervals with patients, not images, as the sampling unit.

The method for each score was chosen by measured coverage, see benchmarks/INTERVALS.md:

- AUROC of a class, micro AUROC: standard error by DeLong (1988) in the form for clustered data of Obuchowski (1997),
  on the logit scale, with Student's t for few patients.
- Shares of images (accuracy, sensitivity, PPV ...): the score interval of Wilson (1927) for the effective number of
  independent images; where all or none are correct, Clopper and Pearson (1934), counting patients.
- Means of shares of different images (balanced accuracy): from the limits of the shares (Zou and Donner, 2008).
- Other scores between 0 and 1, and macro means: standard error by resampling patients, on the logit scale.
- Log loss: the same on the scale of its logarithm. Kappa: 2.5 % and 97.5 % of the resamples.

No interval has zero width. If patients show no spread, or fewer than `MIN_PATIENTS` can be resampled, there is no
interval, and `reason` says why.

Patients are resampled without strata: strata by finding would fix the prevalence, and the measured coverage of average
precision and accuracy would fall to 82 to 92 %. A resample in which a class has no positives (or negatives) is left out
for that class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

LEVEL = 0.95
RESAMPLES_AT_ONCE = 32  # keeps a class's steps in the processor's cache; part of what a seed means
MIN_PATIENTS = (
    10  # patients with (and without) a finding below which its scores are marked as uncertain; too few to resample
)
SAME = 1e-9  # a spread or width up to this is rounding
ONE_PATIENT = "one patient, so the spread between patients is unknown"
ONE_SIDE = "fewer than 2 positive or negative patients"
FEW_PATIENTS = f"fewer than {MIN_PATIENTS} patients"
NO_SPREAD = "the patients show no spread"
NO_RESAMPLES = "no resamples"


@dataclass(frozen=True)
class Interval:
    """A score with its interval; NaN where not defined."""

    value: float
    low: float = np.nan
    high: float = np.nan
    reason: str = ""
    """Why there is no interval, or no value; empty where there are both."""

    def as_dict(self) -> dict[str, Any]:
        """{value, low, high}, and `reason` where one of them is missing."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        if not np.isnan([*numbers.values()]).any():
            return numbers
        return {**numbers, "reason": self.reason or ("undefined" if np.isnan(self.value) else NO_SPREAD)}


@dataclass(frozen=True)
class DeLong:
    """AUROC, its variance over patients, and how many patients have a positive and a negative sample."""

    auroc: float
    variance: float
    positive_patients: int
    negative_patients: int

    def interval(self) -> Interval:
        """On the logit scale; t with the smaller number of patients less one as degrees of freedom.

        If every positive ranks above every negative (or below), the variance is 0 and says nothing. The open side is
        then the exact limit for as many correct pairs as there are disjoint pairs of patients: wide, never too narrow.
        """
        fewer = min(self.positive_patients, self.negative_patients)
        if np.isnan(self.auroc):
            return Interval(self.auroc, reason="no negatives" if self.positive_patients else "no positives")
        if self.auroc in (0.0, 1.0):
            return exact(self.auroc, fewer)
        if fewer < 2:
            return Interval(self.auroc, reason=ONE_SIDE)
        return on_logit_scale(self.auroc, np.sqrt(self.variance), df=fewer - 1)


@dataclass(frozen=True)
class Placements:
    """An AUROC and what each patient adds to its spread; of two networks on the same samples it can be subtracted."""

    auroc: float
    d10: np.ndarray
    """(P,) sums over a patient's positives of how far each lies from the mean, divided by all positives."""
    d01: np.ndarray
    """(P,) the same of the negatives."""
    positive_patients: int
    negative_patients: int

    def __sub__(self, other: Placements) -> Placements:
        d10, d01 = self.d10 - other.d10, self.d01 - other.d01
        return Placements(self.auroc - other.auroc, d10, d01, self.positive_patients, self.negative_patients)

    @property
    def variance(self) -> float:
        i10, i01, patients, d10, d01 = self.positive_patients, self.negative_patients, len(self.d10), self.d10, self.d01
        if min(i10, i01) < 2:
            return np.nan
        variance = i10 / (i10 - 1) * d10 @ d10 + i01 / (i01 - 1) * d01 @ d01 + 2 * patients / (patients - 1) * d10 @ d01
        return max(float(variance), 0.0)

    @classmethod
    def mean(cls, several: Sequence[Placements]) -> Placements:
        """That of the mean AUROC of several networks on the same samples."""
        d10, d01 = (
            np.mean([getattr(seed_placements, name) for seed_placements in several], axis=0) for name in ("d10", "d01")
        )
        first = several[0]
        auroc = float(np.mean([seed_placements.auroc for seed_placements in several]))
        return cls(auroc, d10, d01, first.positive_patients, first.negative_patients)


def delong(target: np.ndarray, score: np.ndarray, patient: np.ndarray | None = None) -> DeLong:
    """AUROC and variance from midranks (Sun and Xu, 2014), placements summed per patient (Obuchowski, 1997).

    With one sample per patient (or `patient` None) this is DeLong's variance. Unknown targets are left out.
    """
    result = placements(target, score, patient)
    return DeLong(result.auroc, result.variance, result.positive_patients, result.negative_patients)


def placements(target: np.ndarray, score: np.ndarray, patient: np.ndarray | None = None) -> Placements:
    """What DeLong's variance is made of."""
    labelled = ~np.isnan(target)
    target, score = target[labelled], score[labelled]
    patient = np.arange(len(target)) if patient is None else np.unique(patient[labelled], return_inverse=True)[1]
    positive = target == 1
    m, n = int(positive.sum()), int((~positive).sum())
    i10, i01 = len(np.unique(patient[positive])), len(np.unique(patient[~positive]))
    if not m or not n:
        return Placements(np.nan, np.zeros(0), np.zeros(0), i10, i01)
    rank = scipy.stats.rankdata(score)
    v10 = (rank[positive] - scipy.stats.rankdata(score[positive])) / n  # share of negatives below each positive
    v01 = 1 - (rank[~positive] - scipy.stats.rankdata(score[~positive])) / m  # share of positives above each negative
    auroc = (rank[positive].sum() - m * (m + 1) / 2) / (m * n)
    patients = int(patient.max()) + 1
    d10 = np.bincount(patient[positive], v10 - auroc, patients) / m
    d01 = np.bincount(patient[~positive], v01 - auroc, patients) / n
    return Placements(float(auroc), d10, d01, i10, i01)


def resamples(n_patients: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """`n` resamples of the patients with replacement: how often each was drawn, (P, up to 32) at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, n - start)
        drawn = rng.integers(n_patients, size=(size, n_patients)) * size + np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n_patients * size).reshape(n_patients, size).astype(np.float64)


def spread(samples: np.ndarray) -> float:
    """Standard deviation of the resamples in which the score is defined; NaN below two."""
    samples = samples[~np.isnan(samples)]
    return float(samples.std(ddof=1)) if len(samples) > 1 else np.nan


def too_few(patients: int) -> str:
    """Why this number of patients cannot be resampled; empty where it can."""
    return ONE_PATIENT if patients == 1 else FEW_PATIENTS if patients < MIN_PATIENTS else ""


def checked(interval: Interval) -> Interval:
    """`interval`, without limits where they enclose nothing."""
    return interval if interval.high - interval.low > SAME else Interval(interval.value, reason=NO_SPREAD)


def on_logit_scale(value: float, error: float, df: float = np.inf) -> Interval:
    """`value` strictly between 0 and 1 with its standard error -> an interval that stays between them."""
    if np.isfinite(value) and not np.isfinite(error):
        return Interval(value, reason=NO_RESAMPLES)
    if not 0 < value < 1 or not error > SAME:
        return Interval(value, reason=NO_SPREAD if np.isfinite(value) else "")
    low, high = scipy.special.expit(
        scipy.special.logit(value) + np.array([-1, 1]) * quantile(df) * error / (value * (1 - value))
    )
    return checked(Interval(value, float(low), float(high)))


def on_log_scale(value: float, error: float, df: float = np.inf) -> Interval:
    """The same for a `value` above 0 without an upper bound."""
    if np.isfinite(value) and not np.isfinite(error):
        return Interval(value, reason=NO_RESAMPLES)
    if not value > 0 or not error > SAME:
        return Interval(value, reason=NO_SPREAD if np.isfinite(value) else "")
    reach = np.exp(min(quantile(df) * error / value, 500.0))
    return checked(Interval(value, float(value / reach), float(value * reach)))


def quantile(df: float = np.inf) -> float:
    """Standard errors from the value to a limit: Student's t, or the normal distribution."""
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, df) if np.isfinite(df) else scipy.stats.norm.ppf((1 + LEVEL) / 2))


def percentile(value: float, samples: np.ndarray) -> Interval:
    """The middle 95 % of the resamples in which the score is defined, widened to hold the value."""
    samples = samples[~np.isnan(samples)]
    if np.isnan(value) or len(samples) < 2:
        return Interval(value, reason="" if np.isnan(value) else NO_RESAMPLES)
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if high - low <= SAME:
        return Interval(value, reason=NO_SPREAD)
    return Interval(value, min(float(low), value), max(float(high), value))


def resampled(metric: str, value: float, samples: np.ndarray, patients: int, fewer: int | None = None) -> Interval:
    """The interval of a score that is no share of images, by its resamples.

    Args:
        patients: those resampled.
        fewer: of an average precision: patients with, or without, the class, whichever are fewer.
    """
    if np.isnan(value):
        return Interval(value)
    if why := too_few(patients):
        return Interval(value, reason=why)
    if metric == "kappa":
        return percentile(value, samples)
    if metric == "log_loss" or (metric == "brier" and value >= 1):
        return on_log_scale(value, spread(samples), df=patients - 1)
    if metric == "average_precision" and fewer is not None:
        if fewer < 2:
            return Interval(value, reason=ONE_SIDE)
        return on_logit_scale(value, spread(samples), df=fewer - 1)
    return on_logit_scale(value, spread(samples), df=patients - 1 if metric == "brier" else np.inf)


def share(right: np.ndarray, total: np.ndarray) -> Interval:
    """The share of correct images, from the correct images (P,) and the `total` images (P,) of each patient.

    One image per patient gives Wilson's interval. Else the number of images is divided by how much larger the variance
    over patients is than that of independent images (the design effect, never taken below 1), and Student's t stands
    for the normal distribution, as in Korn and Graubard (1998), for as many patients as those of unequal size are worth
    (Kish, 1965).
    """
    right, total = right[total > 0], total[total > 0]
    images, patients = float(total.sum()), len(total)
    if not patients:
        return Interval(np.nan, reason="no such image")
    value = float(right.sum() / images)
    if value in (0.0, 1.0):
        return exact(value, patients)
    if patients == 1:
        return Interval(value, reason=ONE_PATIENT)
    n = images
    if images > patients:
        variance = patients / (patients - 1) * float(((right - value * total) ** 2).sum()) / images**2
        n /= max(1.0, variance * (images - 1) / (value * (1 - value)))
        n *= (quantile() / quantile(max(images**2 / float((total**2).sum()) - 1, 1))) ** 2
    square = quantile() ** 2 / n
    middle, reach = value + square / 2, np.sqrt(square * (value * (1 - value) + square / 4))
    return Interval(value, float((middle - reach) / (1 + square)), float((middle + reach) / (1 + square)))


def mean_of_shares(parts: Sequence[Interval]) -> Interval:
    """The mean of shares of different images, with limits from those of the parts (MOVER)."""
    value = float(np.mean([part.value for part in parts])) if parts else np.nan
    if np.isnan(value) or any(np.isnan(part.low) for part in parts):
        return Interval(value, reason=next((part.reason for part in parts if np.isnan(part.low)), ""))
    below = np.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = np.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, max(0.0, float(value - below)), min(1.0, float(value + above)))


def mean_difference(total: np.ndarray, images_of_patient: np.ndarray) -> Interval:
    """The mean over images of a difference between two predictions, from its sum (P,) and the images (P,) of each
    patient: a ratio's linearised variance (Cochran, 1977, section 6.4), with Student's t."""
    total, images_of_patient = total[images_of_patient > 0], images_of_patient[images_of_patient > 0]
    patients, n_images = len(images_of_patient), float(images_of_patient.sum())
    if not patients:
        return Interval(np.nan, reason="no such image")
    value = float(total.sum() / n_images)
    if why := too_few(patients):
        return Interval(value, reason=why)
    error = float(np.sqrt(patients / (patients - 1) * ((total - value * images_of_patient) ** 2).sum()) / n_images)
    if error <= SAME:
        return Interval(value, reason=NO_SPREAD)
    reach = quantile(patients - 1) * error
    return Interval(value, value - reach, value + reach)


def mirrored(value: float, samples: np.ndarray) -> Interval:
    """For an error that cannot be below 0 and that resampling increases: the resamples lie as far above the value as
    the value lies above the truth (the basic bootstrap), so both limits are mirrored at the value, which stays within
    them."""
    unmirrored = percentile(value, samples)
    low, high = min(value, max(0.0, 2 * value - unmirrored.high)), max(value, 2 * value - unmirrored.low)
    return unmirrored if np.isnan(unmirrored.low) else checked(Interval(value, low, high))


def difference(value: float, samples: np.ndarray, pairs: int = 1, patients: int | None = None) -> Interval:
    """The interval of a difference of two scores from the resamples of `patients`, at a level corrected for the
    `pairs` differences that were compared (Bonferroni)."""
    if patients is not None and not np.isnan(value) and (why := too_few(patients)):
        return Interval(value, reason=why)
    error = spread(samples)
    if np.isnan(value) or not error > SAME:
        return Interval(value, reason="" if np.isnan(value) else NO_RESAMPLES if np.isnan(error) else NO_SPREAD)
    reach = float(scipy.stats.norm.ppf(1 - (1 - LEVEL) / (2 * pairs))) * error
    return Interval(value, value - reach, value + reach)


def exact(value: float, n: int) -> Interval:
    """Clopper and Pearson's interval for `n` patients who are all correct (value 1) or all wrong (value 0)."""
    if not n or value not in (0.0, 1.0):
        return Interval(value, reason="" if np.isnan(value) else NO_SPREAD)
    edge = float(scipy.stats.beta.ppf((1 - LEVEL) / 2, n, 1))
    return Interval(value, edge, 1.0) if value else Interval(value, 0.0, 1 - edge)
