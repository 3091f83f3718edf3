"""From the case tables of val and test to scores.json: thresholds are chosen on val, other splits only read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.classification.subgroups import wanted_columns
from finetune.evaluation.segmentation import subgroups
from finetune.evaluation.segmentation.cases import THRESHOLDS
from finetune.evaluation.segmentation.collect import HALF
from finetune.evaluation.segmentation.examples import examples
from finetune.evaluation.segmentation.harms import harms
from finetune.evaluation.segmentation.scores import overlaps
from finetune.evaluation.segmentation.summary import summarise
from finetune.evaluation.segmentation.table import CaseTable
from finetune.files import plain
from finetune.statistics.intervals import MIN_PATIENTS


@dataclass(frozen=True)
class SegmentationFit:
    """What was chosen on val, as it is stored in the model file."""

    thresholds: dict[str, float] = field(default_factory=dict)
    """Region -> probability from which a pixel is marked; empty for exclusive regions."""
    fitted_on: dict[str, Any] = field(default_factory=dict)
    """{split, n, patients} of the images that they were chosen on."""
    notes: list[str] = field(default_factory=list)
    """What could not be chosen, in sentences."""


@dataclass(frozen=True)
class SegmentationAssessment:
    """The settings of an evaluation of masks."""

    thresholds: bool = True
    """Whether the thresholds of overlapping regions are chosen on val; 0.5 without it."""
    subgroups: list[str] | str | None = "all"
    """Metadata columns whose groups are scored separately: all, or a list."""
    distances: bool = True
    """Whether surface distances are measured; they take most of the time. Read by the jobs."""
    thumbnails: int = 6
    """Images listed as worst, middle and best, each; 0 for none."""
    novelty: int = 2000
    """Maximum number of training images for the out-of-distribution score; read by the jobs."""
    test: bool = True
    """Whether a fit predicts and scores the test split; read by the jobs."""
    tta: list[str] = field(default_factory=list)
    """Views whose outputs are averaged: flip; read by the jobs."""

    def __post_init__(self) -> None:
        if isinstance(self.subgroups, str) and self.subgroups != "all":
            raise FinetuneError(f"evaluation.subgroups={self.subgroups} must be all, or a list: [{self.subgroups}].")
        for name in ("thumbnails", "novelty"):
            if getattr(self, name) < 0:
                raise FinetuneError(f"evaluation.{name}={getattr(self, name)} must be 0 or more.")

    def check_columns(self, metadata: list[str]) -> None:
        """Fail on a missing subgroup column before training, not after it."""
        wanted_columns(metadata, self.subgroups)

    def fit(self, val: CaseTable | None) -> SegmentationFit:
        """The threshold per overlapping region that maximises the mean Dice on `val`; of equal ones the nearest to 0.5.

        A region of fewer than `MIN_PATIENTS` patients keeps 0.5, with a note.
        """
        if val is not None and not val.overlapping:
            return SegmentationFit()
        if val is None or not self.thresholds:
            why = ["There is no val split: no threshold was chosen, all are 0.5."] if val is None else []
            return SegmentationFit(notes=why)
        curve = val.at_thresholds()
        if curve is None:
            return SegmentationFit(notes=["Val has no probabilities: no threshold was chosen, all are 0.5."])
        truth, chosen, notes = val.counts("truth"), {}, []
        for k, name in enumerate(val.regions):
            people = len(np.unique(val.patients[truth[:, k] > 0].astype(str)))
            chosen[name] = HALF
            if people < MIN_PATIENTS:
                notes.append(f"{name}: fewer than {MIN_PATIENTS} patients of val have it, so its threshold is 0.5.")
                continue
            dice = mean_dice_at_thresholds(curve[:, k], truth[:, k])
            best = np.flatnonzero(dice >= np.nanmax(dice) - 1e-12)
            chosen[name] = float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - HALF).argmin()]])
        about = {"split": "val", "n": len(val), "patients": len(np.unique(val.patients.astype(str)))}
        return SegmentationFit(chosen, about, notes)

    def score(
        self,
        cases: CaseTable,
        fitted: SegmentationFit,
        *,
        seed: int = 0,
        split: str = "test",
        val: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The scores of one split that was not fitted on; `fitted` is applied unchanged.

        `harms` are the findings against the run, see harms.py; their sentences come first among the `warnings`.

        Args:
            cases: with probabilities it is scored at the thresholds of `fitted`. Distances need masks that were marked
                at these: give them to `collect.CaseCollector`.
            seed: has no effect: no interval of masks is drawn at random.
            val: the scores of val, to compare with.
        """
        if fitted.thresholds and cases.overlapping and cases.thresholds is not None:
            cases = cases.marked_at(fitted.thresholds)
        scores = summarise(cases)
        if fitted.thresholds:
            scores["thresholds_fitted_on"] = fitted.fitted_on
        if groups := subgroups.subgroups(cases, self.subgroups):
            scores["subgroups"] = groups
            scores["warnings"] = [*scores["warnings"], *subgroups.gap_warnings(groups)]
        if self.thumbnails:
            scores["examples"] = examples(cases, self.thumbnails)
        scores = plain(scores)
        scores["harms"] = harms(scores, split, val)
        scores["warnings"] = [*(harm["text"] for harm in scores["harms"]), *fitted.notes, *scores["warnings"]]
        return scores


def mean_dice_at_thresholds(curve: np.ndarray, truth: np.ndarray) -> np.ndarray:  # (N, T, 2), (N,) -> (T,)
    """The mean Dice over the images where it is defined, at each of `cases.THRESHOLDS`.

    Args:
        curve: pixels of intersection and prediction.
        truth: pixels that have the region.
    """
    dice = overlaps(curve[..., 0], np.broadcast_to(truth[:, None], curve.shape[:2]), curve[..., 1])["dice"]
    return np.nanmean(dice, axis=0)  # images with the region have one at each threshold
