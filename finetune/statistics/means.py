"""Means and medians of a score over images, with 95 % intervals over patients; nothing is drawn at random.

The method for each was chosen by measured coverage, see benchmarks/SEGMENTATION_INTERVALS.md:

- Means: the standard error by leaving out one patient at a time (the jackknife), whose number of images may differ;
  Student's t for as many patients as those of unequal size are worth (Kish, 1965). Scores between 0 and 1 on the logit
  scale, distances on that of their logarithm, differences as they are.
- Medians: the interval of the share of images below the median, from `intervals.share`, read off the sorted values
  (Woodruff, 1952).

A mean over several regions is the mean of the regions' means, and is left out whole: a patient missing from all of them
changes each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from finetune.statistics import intervals
from finetune.statistics.intervals import LEVEL, NO_SPREAD, SAME, Interval
from finetune.statistics.shares import ratio


@dataclass(frozen=True)
class Mean:
    """A mean over images, and what it is without each patient. Those of the same patients can be subtracted."""

    value: float
    without: np.ndarray
    """(P,) the mean without the images of one patient; NaN where no image is left."""
    images: np.ndarray
    """(P,) images of each patient that count."""
    limit: float = np.inf
    """Degrees of freedom are at most this: of a difference those of its less certain side."""

    def __sub__(self, other: Mean) -> Mean:
        value, without = self.value - other.value, self.without - other.without
        return Mean(value, without, self.images + other.images, min(self.df, other.df))

    @property
    def patients(self) -> int:
        """Those with an image that counts."""
        return int((self.images > 0).sum())

    @property
    def error(self) -> float:
        """Standard error over patients; NaN below two."""
        without = self.without[self.images > 0]
        n = len(without)
        return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())) if n > 1 else np.nan

    @property
    def df(self) -> float:
        """Degrees of freedom: the number of equally large patients that are worth as much, less one."""
        squares = float((self.images**2).sum())
        return min(max(float(self.images.sum()) ** 2 / squares - 1, 1.0) if squares else 1.0, self.limit)

    def between_0_and_1(self) -> Interval:
        """Of a score between 0 and 1. Where all images have 0 (or 1), the limit is that of the share of patients with
        another value, which the mean cannot exceed."""
        if why := self._why_none():
            return Interval(self.value, reason=why)
        if self.value in (0.0, 1.0):
            return intervals.exact(self.value, self.patients)
        return intervals.on_logit_scale(self.value, self.error, self.df)

    def above_0(self) -> Interval:
        """Of a distance, or another number of 0 or more."""
        if why := self._why_none():
            return Interval(self.value, reason=why)
        return intervals.on_log_scale(self.value, self.error, self.df)

    def signed(self, looks: int = 1) -> Interval:
        """Of a difference, at a level corrected for `looks` differences that were compared (Bonferroni)."""
        if why := self._why_none():
            return Interval(self.value, reason=why)
        if not self.error > SAME:
            return Interval(self.value, reason=NO_SPREAD)
        reach = float(scipy.stats.t.ppf(1 - (1 - LEVEL) / (2 * looks), self.df)) * self.error
        return Interval(self.value, self.value - reach, self.value + reach)

    @property
    def p(self) -> float:
        """Two-sided p of a difference of 0; NaN where there is no spread or too few patients."""
        if self._why_none() or not self.error > SAME:
            return 1.0 if self.value == 0 and self.patients > 1 else np.nan
        return float(2 * scipy.stats.t.sf(abs(self.value) / self.error, self.df))

    def _why_none(self) -> str:
        return "no such image" if np.isnan(self.value) else intervals.too_few(self.patients)


def mean(values: np.ndarray, patient: np.ndarray, n_patients: int) -> Mean:
    """The mean over images, of several regions the mean of their means.

    Args:
        values: (N,) or (N, R), NaN where undefined. Regions without any value are left out.
        patient: (N,) number of each image's patient, below `n_patients`.
    """
    values = np.asarray(values, np.float64)
    values = values[:, None] if values.ndim == 1 else values  # (N, R)
    defined = ~np.isnan(values)
    columns = np.flatnonzero(defined.any(axis=0))
    total, count = np.zeros((2, n_patients, len(columns)))  # (P, R)
    np.add.at(total, patient, np.where(defined, values, 0.0)[:, columns])
    np.add.at(count, patient, defined[:, columns])
    if not len(columns):
        return Mean(np.nan, np.full(n_patients, np.nan), np.zeros(n_patients))
    value = float((total.sum(axis=0) / count.sum(axis=0)).mean())
    rest = count.sum(axis=0) - count
    without = ratio(total.sum(axis=0) - total, rest)  # (P, R)
    return Mean(value, ratio(np.nansum(without, axis=1), (~np.isnan(without)).sum(axis=1)), count.sum(axis=1))


def median(values: np.ndarray, patient: np.ndarray) -> Interval:
    """The median over images (N,), NaN left out, with Woodruff's interval over patients."""
    defined = ~np.isnan(values)
    values, patient = values[defined], np.unique(patient[defined], return_inverse=True)[1]
    if not len(values):
        return Interval(np.nan, reason="no such image")
    value, n = float(np.median(values)), int(patient.max()) + 1
    if why := intervals.too_few(n):
        return Interval(value, reason=why)
    below = np.bincount(patient, (values < value) + 0.5 * (values == value), n)
    share = intervals.share(below, np.bincount(patient, minlength=n).astype(np.float64))
    if np.isnan(share.low):
        return Interval(value, reason=share.reason)
    ordered = np.sort(values)
    low = ordered[max(int(np.floor(share.low * len(values))), 0)]
    high = ordered[min(int(np.ceil(share.high * len(values))) - 1, len(values) - 1)]
    return intervals.checked(Interval(value, min(float(low), value), max(float(high), value)))
