"""From one pair of label maps after the other to the case table; what stays of an image is a row of counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.segmentation import cases
from finetune.evaluation.segmentation.cases import Case
from finetune.evaluation.segmentation.scores import DISTANCES
from finetune.evaluation.segmentation.table import CaseTable

BACKGROUND = "background"
MAX_OVERLAPPING, MAX_EXCLUSIVE = 8, 255
HALF = 0.5


def read_regions(names: Sequence[str], overlapping: bool) -> list[str]:
    """Names of the regions that are scored: all of overlapping ones, of exclusive ones all but the background.

    Raises:
        FinetuneError: no region, too many, a name twice, or exclusive regions that do not begin with the background.
    """
    names = [str(name) for name in names]
    if not overlapping and (not names or names[0] != BACKGROUND):
        raise FinetuneError(f"regions={names}: exclusive regions begin with {BACKGROUND}, the pixels of value 0.")
    regions, most = (names, MAX_OVERLAPPING) if overlapping else (names[1:], MAX_EXCLUSIVE - 1)
    if not 0 < len(regions) <= most:
        raise FinetuneError(f"regions={names}: there must be 1 to {most}, beside the background of exclusive ones.")
    if len(set(names)) < len(names):
        raise FinetuneError(f"regions={names}: a name is there twice.")
    return regions


@dataclass
class CaseCollector:
    """Collects cases image by image in memory that does not depend on the images' size.

    Example:
        >>> collector = CaseCollector(["background", "liver"], overlapping=False)
        >>> collector.update("1.png", "patient 1", prediction, truth)  # uint8 (H, W) each
        >>> collector.table().write("cases_test.csv")
    """

    names: Sequence[str]
    """Of the regions; exclusive ones begin with background."""
    overlapping: bool
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Region -> probability from which `update_probabilities` marks a pixel; 0.5 where not named."""
    distances: bool = True
    """Whether surface distances are measured, which takes most of the time."""

    def __post_init__(self) -> None:
        self.regions = read_regions(self.names, self.overlapping)
        if unknown := sorted(set(self.thresholds) - set(self.regions)):
            raise FinetuneError(f"thresholds name {unknown}, which are no regions. Choose from {self.regions}.")
        self.cases: list[Case] = []
        self._with_probabilities = False

    def __len__(self) -> int:
        return len(self.cases)

    def update(
        self,
        sample: str,
        patient: str | None,
        prediction: np.ndarray,
        truth: np.ndarray,
        *,
        known: Sequence[bool] | np.ndarray | None = None,
        spacing: tuple[float, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        mean_shape: np.ndarray | None = None,
    ) -> None:
        """Add the case of one image.

        Args:
            prediction, truth: label maps (H, W) of whole numbers, see cases.py.
            known: (K,) whether the truth says anything of each of `names`; everything is known without it. Of
                exclusive regions all or none are known.
            spacing: millimetres between rows and between columns.
            mean_shape: label map (H, W) of the training masks' mean shape, a baseline; given for all images or none.

        Raises:
            FinetuneError: sizes differ, a value is no region, or the spacing is not above 0.
        """
        self._add(sample, patient, prediction, truth, known, spacing, metadata, None, mean_shape)

    def update_probabilities(
        self,
        sample: str,
        patient: str | None,
        probabilities: np.ndarray,
        truth: np.ndarray,
        *,
        known: Sequence[bool] | np.ndarray | None = None,
        spacing: tuple[float, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        mean_shape: np.ndarray | None = None,
    ) -> None:
        """The same from probabilities (K, H, W) of overlapping regions: pixels are marked from `thresholds` on, and
        counted at each of `cases.THRESHOLDS`, from which `SegmentationAssessment.fit` chooses.

        Raises:
            FinetuneError: exclusive regions, another shape, or values that are no probabilities.
        """
        probabilities, truth = np.asarray(probabilities), np.asarray(truth)
        shape = (len(self.regions), *truth.shape)
        if not self.overlapping:
            raise FinetuneError("probabilities are for overlapping regions; give label maps of exclusive ones.")
        if probabilities.shape != shape:
            raise FinetuneError(
                f"{sample}: probabilities have the shape {probabilities.shape}; the regions and the truth need {shape}."
            )
        if not (probabilities.min(initial=0) >= 0 and probabilities.max(initial=0) <= 1):  # NaN is neither
            raise FinetuneError(f"{sample}: probabilities must lie between 0 and 1.")
        prediction = np.zeros(truth.shape, np.uint8)
        curve = np.zeros((len(self.regions), len(cases.THRESHOLDS), 2), np.int32)
        for k, name in enumerate(self.regions):
            of_region = probabilities[k].astype(np.float64)  # 0.7 is another number in 32 bits
            prediction |= (of_region >= self.thresholds.get(name, HALF)).astype(np.uint8) << k
            curve[k] = cases.count_at_thresholds(of_region, cases.region_of(truth, k, True))
        self._with_probabilities = True
        self._add(sample, patient, prediction, truth, known, spacing, metadata, curve, mean_shape)

    def _add(
        self,
        sample: str,
        patient: str | None,
        prediction: np.ndarray,
        truth: np.ndarray,
        known: Sequence[bool] | np.ndarray | None,
        spacing: tuple[float, float] | None,
        metadata: Mapping[str, Any] | None,
        curve: np.ndarray | None,
        mean_shape: np.ndarray | None,
    ) -> None:
        prediction, truth = np.asarray(prediction), np.asarray(truth)
        n_values = 2 ** len(self.regions) if self.overlapping else len(self.names)
        cases.check_maps(prediction, truth, n_values, self.overlapping, sample)
        spacing = _checked_spacing(spacing, sample)
        regions = self._known(known, sample)
        counts = cases.count(prediction, truth, len(self.regions), self.overlapping)
        between = np.full((len(self.regions), len(DISTANCES)), np.nan)
        both = (counts.regions[:, 1] > 0) & (counts.regions[:, 2] > 0) & regions
        ignored = None if self.overlapping or counts.pixels == truth.size else truth == cases.UNKNOWN
        for k in np.flatnonzero(both).tolist() if self.distances else ():
            masks = [cases.region_of(label_map, k, self.overlapping) for label_map in (prediction, truth)]
            if ignored is not None:
                masks = [mask & ~ignored for mask in masks]
            between[k] = cases.surface_distances(masks[0], masks[1], spacing)
        confusion = counts.confusion if regions.all() else None
        trivial = None
        if mean_shape is not None:
            cases.check_maps(mean_shape, truth, n_values, self.overlapping, f"mean shape over {sample}")
            trivial = cases.count(mean_shape, truth, len(self.regions), self.overlapping).regions[:, [0, 2]]
        self.cases.append(
            Case(
                sample=str(sample),
                patient=patient,
                pixels=counts.pixels,
                spacing=spacing,
                known=regions,
                counts=counts.regions,
                distances=between,
                confusion=confusion,
                at_thresholds=curve,
                metadata=dict(metadata or {}),
                mean_shape=trivial,
            )
        )

    def _known(self, known: Sequence[bool] | np.ndarray | None, sample: str) -> np.ndarray:  # -> bool (R,)
        if known is None:
            return np.ones(len(self.regions), bool)
        known = np.asarray(known, bool)
        if known.shape != (len(self.names),):
            raise FinetuneError(f"{sample}: known has the shape {known.shape}; it needs ({len(self.names)},).")
        return known if self.overlapping else np.full(len(self.regions), known.all())

    def table(self) -> CaseTable:
        """The cases so far.

        Raises:
            FinetuneError: a sample is there twice, or a metadata column has the name of another.
        """
        thresholds = {name: float(self.thresholds.get(name, HALF)) for name in self.regions}
        marked = thresholds if self._with_probabilities else None
        return CaseTable.from_cases(self.cases, self.regions, self.overlapping, marked)


def _checked_spacing(spacing: tuple[float, float] | None, sample: str) -> tuple[float, float] | None:
    if spacing is None:
        return None
    steps = [float(step) for step in spacing]
    if len(steps) != 2 or not all(0 < step < np.inf for step in steps):
        raise FinetuneError(f"{sample}: spacing={spacing} must be two numbers above 0: mm per row, mm per column.")
    return steps[0], steps[1]
