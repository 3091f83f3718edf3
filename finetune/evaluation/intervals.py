"""95 % intervals when patients, not images, are what was drawn from the world.

Which method serves which score was decided by measured coverage, see benchmarks/INTERVALS.md:

- AUROC of a class, micro AUROC: standard error by DeLong (1988) in the form for clustered data of Obuchowski (1997),
  on the logit scale, with Student's t for few patients.
- Other scores between 0 and 1, and their macro means: standard error by resampling patients, on the logit scale.
- Scores without such bounds (log loss, kappa): 2.5 % and 97.5 % of the resamples.
- A score of exactly 0 or 1 shows no spread: where it is a share of patients' images the open side is that of Clopper
  and Pearson (1934), counting patients; elsewhere there is no interval.

Patients are drawn freely, not within those who have and have not the finding: strata would hold the prevalence fixed,
and the measured coverage of average precision and accuracy falls to 82 to 92 %. A resample in which a class lost all
its positives (or negatives) says nothing about that class and is left out for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta, norm, rankdata, t

LEVEL = 0.95
RESAMPLES_AT_ONCE = 32  # keeps a class's steps in the processor's cache; part of what a seed means
FEWEST = 10  # patients with (and without) a finding below which its scores are marked as uncertain


@dataclass(frozen=True)
class Interval:
    """A score with its interval; NaN where not defined."""

    value: float
    low: float = np.nan
    high: float = np.nan


@dataclass(frozen=True)
class DeLong:
    """AUROC, its variance over patients, and how many patients have a positive and a negative sample."""

    auroc: float
    variance: float
    positive_patients: int
    negative_patients: int

    def interval(self) -> Interval:
        """On the logit scale; t with the smaller number of patients less one as degrees of freedom.

        Where every positive stands above every negative (or below) the variance is 0 and says nothing. The open side
        is then the exact limit for as many right pairs as there are disjoint pairs of patients: wide, never too narrow.
        """
        fewer = min(self.positive_patients, self.negative_patients)
        if self.auroc in (0.0, 1.0):
            return exact(self.auroc, fewer)
        if fewer < 2:
            return Interval(self.auroc)
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
        found = i10 / (i10 - 1) * d10 @ d10 + i01 / (i01 - 1) * d01 @ d01 + 2 * patients / (patients - 1) * d10 @ d01
        return max(float(found), 0.0)

    @classmethod
    def mean(cls, several: Sequence[Placements]) -> Placements:
        """That of the mean AUROC of several networks on the same samples."""
        d10, d01 = (np.mean([getattr(each, name) for each in several], axis=0) for name in ("d10", "d01"))
        first = several[0]
        auroc = float(np.mean([each.auroc for each in several]))
        return cls(auroc, d10, d01, first.positive_patients, first.negative_patients)


def delong(target: np.ndarray, score: np.ndarray, patient: np.ndarray | None = None) -> DeLong:
    """AUROC and variance from midranks (Sun and Xu, 2014), placements summed per patient (Obuchowski, 1997).

    With one sample per patient (or `patient` None) this is DeLong's variance. Unknown targets are left out.
    """
    found = placements(target, score, patient)
    return DeLong(found.auroc, found.variance, found.positive_patients, found.negative_patients)


def placements(target: np.ndarray, score: np.ndarray, patient: np.ndarray | None = None) -> Placements:
    """What DeLong's variance is made of."""
    known = ~np.isnan(target)
    target, score = target[known], score[known]
    patient = np.arange(len(target)) if patient is None else np.unique(patient[known], return_inverse=True)[1]
    positive = target == 1
    m, n = int(positive.sum()), int((~positive).sum())
    i10, i01 = len(np.unique(patient[positive])), len(np.unique(patient[~positive]))
    if not m or not n:
        return Placements(np.nan, np.zeros(0), np.zeros(0), i10, i01)
    rank = rankdata(score)
    v10 = (rank[positive] - rankdata(score[positive])) / n  # share of negatives below each positive
    v01 = 1 - (rank[~positive] - rankdata(score[~positive])) / m  # share of positives above each negative
    auroc = (rank[positive].sum() - m * (m + 1) / 2) / (m * n)
    patients = int(patient.max()) + 1
    d10 = np.bincount(patient[positive], v10 - auroc, patients) / m
    d01 = np.bincount(patient[~positive], v01 - auroc, patients) / n
    return Placements(float(auroc), d10, d01, i10, i01)


def resamples(n_patients: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """`n` draws of as many patients as there are, with replacement: how often each was, (P, up to 32) at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, n - start)
        drawn = rng.integers(n_patients, size=(size, n_patients)) * size + np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n_patients * size).reshape(n_patients, size).astype(np.float64)


def spread(samples: np.ndarray) -> float:
    """Standard deviation of the resamples in which the score is defined; NaN below two."""
    samples = samples[~np.isnan(samples)]
    return float(samples.std(ddof=1)) if len(samples) > 1 else np.nan


def on_logit_scale(value: float, error: float, df: float = np.inf) -> Interval:
    """`value` strictly between 0 and 1 with its standard error -> an interval that stays between them."""
    if not 0 < value < 1 or not np.isfinite(error):
        return Interval(value)
    quantile = float(t.ppf((1 + LEVEL) / 2, df) if np.isfinite(df) else norm.ppf((1 + LEVEL) / 2))
    low, high = expit(logit(value) + np.array([-1, 1]) * quantile * error / (value * (1 - value)))
    return Interval(value, float(low), float(high))


def percentile(value: float, samples: np.ndarray) -> Interval:
    """The middle 95 % of the resamples in which the score is defined."""
    samples = samples[~np.isnan(samples)]
    if np.isnan(value) or len(samples) < 2:
        return Interval(value)
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def mirrored(value: float, samples: np.ndarray) -> Interval:
    """For an error that cannot be below 0 and that drawing twice makes larger: how far the resamples lie above the
    value is how far the value lies above the truth (the basic bootstrap), so both limits are mirrored at the value; the
    value itself stays within them."""
    there = percentile(value, samples)
    low, high = min(value, max(0.0, 2 * value - there.high)), max(value, 2 * value - there.low)
    return Interval(value) if np.isnan(there.low) else Interval(value, low, high)


def difference(value: float, samples: np.ndarray, pairs: int = 1) -> Interval:
    """A difference of two scores and how it spreads over the resamples; at a level that allows for having looked at
    `pairs` differences to find this one (Bonferroni)."""
    error = spread(samples)
    if np.isnan(value) or np.isnan(error):
        return Interval(value)
    reach = float(norm.ppf(1 - (1 - LEVEL) / (2 * pairs))) * error
    return Interval(value, value - reach, value + reach)


def exact(value: float, n: int) -> Interval:
    """Clopper and Pearson's interval for `n` patients who all went right (value 1) or all wrong (value 0)."""
    if not n or value not in (0.0, 1.0):
        return Interval(value)
    edge = float(beta.ppf((1 - LEVEL) / 2, n, 1))
    return Interval(value, edge, 1.0) if value else Interval(value, 0.0, 1 - edge)
