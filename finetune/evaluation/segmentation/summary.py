"""The scores of one split of masks with their intervals, as written to scores.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.evaluation.segmentation import wording
from finetune.evaluation.segmentation.baseline import baseline
from finetune.evaluation.segmentation.by_size import by_size
from finetune.evaluation.segmentation.scores import DISTANCES, OVERLAPS, SCORES, failures, overlaps
from finetune.evaluation.segmentation.table import CaseTable
from finetune.files import plain
from finetune.statistics import intervals, means
from finetune.statistics.intervals import Interval
from finetune.statistics.means import Mean

BACKGROUND = "background"


@dataclass
class Scorer:
    """The scores of a table beside the number of each image's patient."""

    cases: CaseTable

    def __post_init__(self) -> None:
        self.patient_names, self.patient = np.unique(self.cases.patients.astype(str), return_inverse=True)
        self.truth, self.prediction, self.intersection = (
            self.cases.counts(name) for name in ("truth", "prediction", "intersection")
        )
        self.values = {score: self.cases.scores(score) for score in SCORES}  # (N, R) each
        if self.cases.unit == "mixed":  # a mean of pixels and millimetres is neither
            without = np.isnan(self.cases.spacing).any(axis=1)
            for score in DISTANCES:
                self.values[score] = np.where(without[:, None], np.nan, self.values[score])

    @property
    def n_patients(self) -> int:
        return len(self.patient_names)

    def mean(self, score: str, k: int | None = None, rows: np.ndarray | None = None) -> Mean:
        """The mean of a score over images, of one region or over all of them; `rows` (N,) bool are taken."""
        values = self.values[score] if k is None else self.values[score][:, k]
        if rows is not None:
            values = np.where(rows[:, None] if k is None else rows, values, np.nan)
        return means.mean(values, self.patient, self.n_patients)


def summarise(cases: CaseTable) -> dict[str, Any]:
    """{"macro", "classes", "baseline", "confusion", ...}: each score is {"value", "low", "high"}, the mean over images;
    what is undefined is None, as are the limits where there is no interval, and then "reason" says why.

    A score of a class also has "n" images where it is defined, "undefined" ones, and its "median"; a distance has
    "failures", images where the region is only marked or only predicted. `macro` is the mean over regions.

    Example:
        >>> summarise(CaseTable.read("outputs/latest/cases_test.csv"))["macro"]["dice"]
        {'value': 0.91, 'low': 0.89, 'high': 0.93, 'n_classes': 3, 'n_undefined': 0}
    """
    scorer = Scorer(cases)
    result = described(scorer)
    for k, name in enumerate(cases.regions):
        result["classes"][name]["by_size"] = by_size(cases, k, scorer.patient)
    result |= {
        "baseline": baseline(scorer.cases, scorer.values["dice"], scorer.patient, scorer.n_patients),
        "kind": "mask",
        "n": len(cases),
        "patients": scorer.n_patients,
        "overlapping": cases.overlapping,
        "unit": "mm" if cases.unit == "mixed" else cases.unit,
        "thresholds": cases.thresholds,
        "intervals": {"level": intervals.LEVEL, "unit": "patient"},
        "warnings": warnings(cases, result["classes"]),
    }
    if (confusion := cases.confusion) is not None:
        result["confusion"] = {"classes": [BACKGROUND, *cases.regions], "counts": confusion.astype(int).tolist()}
    return plain(result)


def described(scorer: Scorer, rows: np.ndarray | None = None) -> dict[str, Any]:
    """{"macro", "classes"} of the images `rows` (N,) bool, of all without it."""
    rows = np.ones(len(scorer.cases), bool) if rows is None else rows
    classes = {name: _of_region(scorer, k, rows) for k, name in enumerate(scorer.cases.regions)}
    macro = {}
    for score in SCORES:
        defined = [of_class for of_class in classes.values() if of_class[score]["n"]]
        interval = as_interval(score, scorer.mean(score, rows=rows))
        interval = replace(interval, reason="defined for no region") if not defined else interval
        counts = {"n_classes": len(defined), "n_undefined": len(classes) - len(defined)}
        macro[score] = {**interval.as_dict(), **counts}
    return {"macro": macro, "classes": classes}


def as_interval(score: str, mean: Mean) -> Interval:
    """The interval on the scale of the score."""
    return mean.between_0_and_1() if score in OVERLAPS else mean.above_0()


def _of_region(scorer: Scorer, k: int, rows: np.ndarray) -> dict[str, Any]:
    truth, prediction, both = (
        np.where(rows, counts[:, k], np.nan) for counts in (scorer.truth, scorer.prediction, scorer.intersection)
    )
    known, patient = ~np.isnan(truth), scorer.patient
    present, absent = truth > 0, truth == 0
    missed, false_alarm, failed = present & (both == 0), absent & (prediction > 0), failures(truth, prediction)
    people = [len(np.unique(patient[part])) for part in (present, absent)]
    counts: dict[str, Any] = {
        "n": int(rows.sum()),
        "positives": int(present.sum()),
        "negatives": int(absent.sum()),
        "unknown": int((rows & ~known).sum()),
        "positive_patients": people[0],
        "negative_patients": people[1],
        "missed": _share(missed, present, patient, scorer.n_patients),
        "false_alarms": _share(false_alarm, absent, patient, scorer.n_patients),
        "pixels": _totals(np.nansum(both), np.nansum(truth), np.nansum(prediction)),
    }
    if 0 < people[0] < intervals.MIN_PATIENTS:
        counts["note"] = f"fewer than {intervals.MIN_PATIENTS} patients with the region"
    scores = {}
    for score in SCORES:
        values = np.where(rows, scorer.values[score][:, k], np.nan)
        n = int((~np.isnan(values)).sum())
        interval = as_interval(score, scorer.mean(score, k, rows))
        median = means.median(values, patient)
        if not n:
            reason = wording.why_undefined(score, counts, bool((present & (prediction > 0)).any()))
            interval, median = replace(interval, reason=reason), replace(median, reason=reason)
        scores[score] = {**interval.as_dict(), "n": n, "undefined": int(known.sum()) - n, "median": median.as_dict()}
        if score in DISTANCES:
            scores[score]["failures"] = int(failed.sum())
    return {**scores, **counts}


def _share(marked: np.ndarray, among: np.ndarray, patient: np.ndarray, n_patients: int) -> dict[str, Any]:
    """{count, value, low, high}: the images `marked` and their share of those `among`, (N,) bool each."""
    total = np.bincount(patient[among], minlength=n_patients).astype(np.float64)
    share = intervals.share(np.bincount(patient[marked], minlength=n_patients).astype(np.float64), total)
    return {"count": int(marked.sum()), **share.as_dict()}


def _totals(both: float, truth: float, prediction: float) -> dict[str, Any]:
    """Pixels of all images together, and their scores: large regions weigh most."""
    scores = overlaps(np.array(both), np.array(truth), np.array(prediction))
    pixels = {"intersection": int(both), "truth": int(truth), "prediction": int(prediction)}
    return {**pixels, **{score: float(value) for score, value in scores.items()}}


def warnings(cases: CaseTable, classes: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader must know before the numbers, in sentences."""
    sentences = []
    if names := [name for name, c in classes.items() if c["positives"] + c["negatives"] == 0]:
        sentences.append(f"Nothing is known about any image, so no score is defined: {', '.join(names)}.")
    if names := [name for name, c in classes.items() if not c["positives"] and c["negatives"]]:
        sentences.append(f"No image has the region, so Dice is 0 or undefined: {', '.join(names)}.")
    if names := [name for name, c in classes.items() if "note" in c]:
        few = f"Fewer than {intervals.MIN_PATIENTS} patients have the region"
        sentences.append(f"{few}, so scores are uncertain: {', '.join(names)}.")
    if cases.unit == "mixed":
        n = int((~np.isnan(cases.spacing).any(axis=1)).sum())
        sentences.append(
            f"The spacing of pixels is known for {n:,} of {len(cases):,} images: distances are of these, in mm."
        )
    failed = {name: c["hd95"]["failures"] for name, c in classes.items() if c["hd95"]["failures"]}
    if failed:
        images = ", ".join(f"{name} {n:,}" for name, n in failed.items())
        sentences.append(f"Distances leave out images where a region is only marked or only predicted: {images}.")
    return sentences
