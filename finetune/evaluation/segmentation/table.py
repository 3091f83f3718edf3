"""The case table: pixel counts and scores of each image and region. Evaluation of masks reads nothing else."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.errors import FinetuneError, one_of
from finetune.evaluation.classification.predictions import EXACT_FLOATS
from finetune.evaluation.segmentation.cases import THRESHOLDS, Case
from finetune.evaluation.segmentation.cells import as_numbers, as_text, integers
from finetune.evaluation.segmentation.scores import DISTANCES, OVERLAPS, SCORES, overlaps
from finetune.files import write_text_atomic

COUNTS = ("intersection", "truth", "prediction")
"""Columns <name>_<region> of pixel counts, blank where the region is unknown."""
PIXELS, SPACING, CONFUSION = "known_pixels", ("spacing_y_mm", "spacing_x_mm"), "confusion"
THRESHOLD, CURVE = "threshold", "at_thresholds"
"""Of overlapping regions whose probabilities were there: the threshold of the masks, and the text of
`intersection prediction` at each of `cases.THRESHOLDS`."""
FIXED = ("sample", "patient", PIXELS, *SPACING, CONFUSION)
MEAN_SHAPE = ("shape_intersection", "shape_prediction")
"""Pixel counts of the training masks' mean shape, where it is known."""
PREFIXES = tuple(f"{name}_" for name in (*COUNTS, *SCORES, THRESHOLD, CURVE, *MEAN_SHAPE))


@dataclass
class CaseTable:
    """One row per image. Build it by `collect.CaseCollector` or `read`, which check what the other methods rely on.

    Example:
        >>> test = CaseTable.read("outputs/latest/cases_test.csv")
        >>> test.regions, test.scores("dice").shape  # R names, (N, R)
        (['liver', 'spleen'], (200, 2))
    """

    frame: pd.DataFrame
    """sample, patient, known_pixels, spacing_y_mm, spacing_x_mm, of exclusive regions confusion (K x K pixel counts,
    truth by truth), then <count>_<region>, <score>_<region>, the columns of thresholds, and the metadata."""
    regions: list[str]
    """Names, without the background."""
    overlapping: bool
    metadata: list[str] = field(default_factory=list)
    """Names of the metadata columns."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def patients(self) -> np.ndarray:
        """(N,) names; a sample without one stands for itself."""
        return self.frame["patient"].to_numpy(object)

    @property
    def pixels(self) -> np.ndarray:
        """(N,) float64 known pixels."""
        return self.frame[PIXELS].to_numpy(np.float64)

    @property
    def spacing(self) -> np.ndarray:
        """(N, 2) float64 millimetres per row and column, NaN where unknown."""
        return self.frame[list(SPACING)].to_numpy(np.float64)

    @property
    def unit(self) -> str:
        """Of distances: mm where every image has a spacing, px where none has, else mixed."""
        known = ~np.isnan(self.spacing).any(axis=1)
        return "mixed" if known.any() and not known.all() else "mm" if known.any() else "px"

    def counts(self, name: str) -> np.ndarray:
        """(N, R) float64 pixels of `intersection`, `truth` or `prediction`, NaN where the region is unknown."""
        return self.frame[self._columns(name)].to_numpy(np.float64, na_value=np.nan)

    def scores(self, name: str) -> np.ndarray:
        """(N, R) float64, NaN where undefined or unknown."""
        return self.frame[self._columns(name)].to_numpy(np.float64)

    @property
    def mean_shape(self) -> np.ndarray | None:
        """(N, R, 2) float64 pixels of intersection and prediction of the training masks' mean shape; None without."""
        known = set(self._columns(MEAN_SHAPE[0])) <= set(self.frame.columns)
        return np.stack([self.counts(name) for name in MEAN_SHAPE], axis=2) if known else None

    @property
    def confusion(self) -> np.ndarray | None:
        """(K, K) pixels of all images, truth by prediction, the background first; None of overlapping regions."""
        if self.overlapping:
            return None
        k = len(self.regions) + 1
        return as_numbers(self.frame[CONFUSION].dropna()).reshape(-1, k, k).sum(axis=0)

    @property
    def thresholds(self) -> dict[str, float] | None:
        """Region -> the probability from which its masks were marked; None where it is unknown."""
        if f"{THRESHOLD}_{self.regions[0]}" not in self.frame.columns or not len(self):
            return None
        return {name: float(self.frame[f"{THRESHOLD}_{name}"].iloc[0]) for name in self.regions}

    def at_thresholds(self) -> np.ndarray | None:
        """(N, R, T, 2) float64 pixels of intersection and prediction at each of `cases.THRESHOLDS`, NaN where the
        region is unknown; None where no probabilities were there."""
        if f"{CURVE}_{self.regions[0]}" not in self.frame.columns:
            return None
        curve = np.full((len(self), len(self.regions), len(THRESHOLDS), 2), np.nan)
        for k, column in enumerate(self._columns(CURVE)):
            known = self.frame[column].notna().to_numpy()
            curve[known, k] = as_numbers(self.frame[column][known]).reshape(-1, len(THRESHOLDS), 2)
        return curve

    def marked_at(self, thresholds: Mapping[str, float]) -> CaseTable:
        """The table of masks that are marked at these thresholds instead, among `cases.THRESHOLDS`. Where the threshold
        of a region changes, its distances are left blank: they need the masks.

        Raises:
            FinetuneError: no counts at thresholds, a threshold that is not among them, or of no region.
        """
        if odd := [name for name in thresholds if name not in self.regions]:
            raise one_of("threshold", odd[0], self.regions)
        present = self.thresholds or {}
        changed = [name for name, value in thresholds.items() if not np.isclose(value, present.get(name, np.nan))]
        if not changed:
            return self
        curve, frame = self.at_thresholds(), self.frame.copy()
        if curve is None:
            raise FinetuneError("These cases were counted from label maps, without probabilities: no other threshold.")
        for name in changed:
            k, t = self.regions.index(name), np.flatnonzero(np.isclose(THRESHOLDS, thresholds[name]))
            if not len(t):
                raise FinetuneError(f"threshold={thresholds[name]} of {name} was not counted; 0.05 to 0.95 were.")
            intersection, prediction = curve[:, k, t[0]].T
            truth = self.counts("truth")[:, k]
            frame[f"prediction_{name}"], frame[f"intersection_{name}"] = integers(prediction), integers(intersection)
            for score, values in overlaps(intersection, truth, prediction).items():
                frame[f"{score}_{name}"] = values
            for score in DISTANCES:
                frame[f"{score}_{name}"] = np.nan
            frame[f"{THRESHOLD}_{name}"] = thresholds[name]
        return replace(self, frame=frame)

    def taken(self, rows: np.ndarray) -> CaseTable:
        """Some of the images: bool (N,) or their numbers."""
        return replace(self, frame=self.frame[rows] if rows.dtype == bool else self.frame.iloc[rows]).renumbered()

    def renumbered(self) -> CaseTable:
        """Rows numbered from 0."""
        return replace(self, frame=self.frame.reset_index(drop=True))

    def _columns(self, prefix: str) -> list[str]:
        return [f"{prefix}_{name}" for name in self.regions]

    @classmethod
    def from_cases(
        cls,
        cases: Sequence[Case],
        regions: list[str],
        overlapping: bool,
        thresholds: Mapping[str, float] | None = None,
    ) -> CaseTable:
        """The table of N cases; `thresholds` are those of the masks, where there were probabilities."""
        n, r = len(cases), len(regions)
        known = np.array([case.known for case in cases], bool).reshape(n, r)
        counts = np.array([case.counts for case in cases], np.float64).reshape(n, r, len(COUNTS))
        counts[~known] = np.nan
        between = np.array([case.distances for case in cases], np.float64).reshape(n, r, len(DISTANCES))
        columns: dict[str, Any] = {
            "sample": pd.Series([case.sample for case in cases], dtype=str),
            "patient": pd.Series([_patient(case) for case in cases], dtype=str),
            PIXELS: np.array([case.pixels for case in cases], np.int64),
        }
        spacing = np.array([case.spacing or (np.nan, np.nan) for case in cases], np.float64).reshape(n, 2)
        columns |= dict(zip(SPACING, spacing.T, strict=True))
        if not overlapping:
            columns[CONFUSION] = pd.Series([as_text(case.confusion) for case in cases], dtype=object)
        for i, name in enumerate(COUNTS):
            columns |= {f"{name}_{region}": integers(counts[:, k, i]) for k, region in enumerate(regions)}
        values = overlaps(*np.moveaxis(counts, 2, 0))
        values |= {name: np.where(known, between[:, :, i], np.nan) for i, name in enumerate(DISTANCES)}
        for name in SCORES:
            columns |= {f"{name}_{region}": values[name][:, k] for k, region in enumerate(regions)}
        if thresholds is not None:
            columns |= {f"{THRESHOLD}_{region}": np.full(n, thresholds[region]) for region in regions}
            for k, region in enumerate(regions):
                curves = [None if c.at_thresholds is None or not c.known[k] else c.at_thresholds[k] for c in cases]
                columns[f"{CURVE}_{region}"] = pd.Series([as_text(curve) for curve in curves], dtype=object)
        if n and all(case.mean_shape is not None for case in cases):
            shape = np.array([case.mean_shape for case in cases], np.float64)
            shape[~known] = np.nan
            for i, name in enumerate(MEAN_SHAPE):
                columns |= {f"{name}_{region}": integers(shape[:, k, i]) for k, region in enumerate(regions)}
        metadata = pd.DataFrame([dict(case.metadata) for case in cases], index=range(n))
        frame = pd.concat([pd.DataFrame(columns), metadata], axis=1)
        return cls(frame, list(regions), overlapping, [str(column) for column in metadata.columns]).checked()

    @classmethod
    def joined(cls, tables: Sequence[CaseTable], order: Sequence[str] | None = None) -> CaseTable:
        """The cases of several processes, each sample once, in the `order` of samples if given.

        Raises:
            FinetuneError: no table, tables of other regions, or samples that are not those of `order`.
        """
        tables = [table for table in tables if len(table)] or list(tables[:1])
        if not tables:
            raise FinetuneError("there are no case tables to join.")
        first = tables[0]
        for table in tables[1:]:
            if (table.regions, table.overlapping) != (first.regions, first.overlapping):
                raise FinetuneError(f"case tables of other regions cannot be joined: {first.regions}, {table.regions}.")
        frame = pd.concat([table.frame for table in tables]).drop_duplicates("sample")
        if order is not None:
            if odd := sorted(set(order) ^ set(frame["sample"])):
                raise FinetuneError(f"{len(odd):,} samples are not those expected, such as {odd[0]!r}.")
            frame = frame.set_index("sample", drop=False).loc[list(order)]
        return replace(first, frame=frame.reset_index(drop=True)).checked()

    @classmethod
    def read(cls, path: str | Path) -> CaseTable:
        """A table that `write` made.

        Raises:
            FinetuneError: it is no case table, or its scores do not follow from its counts.
        """
        path = Path(path)
        try:
            columns = list(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
            regions, overlapping = _regions(columns, path)
            of_regions = [c for c in columns if any(c == p + name for p in PREFIXES for name in regions)]
            texts = [c for c in of_regions if c.startswith(f"{CURVE}_")] + [CONFUSION]
            whole = [f"{name}_{region}" for name in (*COUNTS, *MEAN_SHAPE) for region in regions]
            whole_numbers = [PIXELS, *(column for column in whole if column in columns)]
            numbers = [c for c in (*of_regions, *SPACING) if c not in texts and c not in whole_numbers]
            dtypes: dict[str, Any] = {
                **dict.fromkeys(numbers, np.float64),
                **dict.fromkeys(whole_numbers, "Int64"),
                PIXELS: np.int64,
            }
            frame = pd.read_csv(
                path,
                encoding="utf-8-sig",
                dtype={**dtypes, **dict.fromkeys(texts, object), "sample": str, "patient": str},
                keep_default_na=False,  # a patient named NA is a patient
                na_values={c: ["", "nan", "NaN"] if c in numbers else [""] for c in columns if c not in FIXED[:2]},
                **EXACT_FLOATS,
            )
        except (OSError, UnicodeError, ValueError) as error:
            if isinstance(error, FinetuneError):
                raise
            raise FinetuneError(f"{path} cannot be read as a case table: {error}") from error
        metadata = [c for c in columns if c not in FIXED and c not in of_regions]
        table = cls(frame, regions, overlapping, metadata).checked(str(path))
        expected = overlaps(*(table.counts(name) for name in COUNTS))
        for name in OVERLAPS:
            same = np.isclose(table.scores(name), expected[name], rtol=0, atol=1e-9, equal_nan=True)
            if not same.all():
                row, k = np.argwhere(~same)[0]
                raise FinetuneError(f"{path}: {name}_{regions[k]} does not follow from the counts of row {row + 2}.")
        return table

    def write(self, path: str | Path) -> Path:
        """Write a csv with every float in full precision: reading it back gives the same bits."""
        text = io.StringIO()
        self.frame.to_csv(text, index=False, lineterminator="\n")
        return write_text_atomic(path, text.getvalue())

    def checked(self, where: str = "cases") -> CaseTable:
        """This table, if names are unique and metadata is no column of another kind.

        Raises:
            FinetuneError: naming the sample or column.
        """
        twice = [name for name, number in Counter(map(str, self.frame.columns)).items() if number > 1]
        if twice:
            raise FinetuneError(f"{where}: column(s) {twice} are there twice; rename the region or the metadata.")
        if odd := [name for name in self.metadata if name.startswith("truth_")]:
            raise FinetuneError(f"{where}: metadata column(s) {odd} look like those of a region; rename them.")
        if (same := self.frame["sample"].duplicated()).any():
            raise FinetuneError(f"{where}: sample {self.frame['sample'][same].iloc[0]!r} is there twice.")
        return self


def _regions(columns: list[str], path: Path) -> tuple[list[str], bool]:
    """Names in the order of their truth columns, and whether they overlap."""
    regions = [c.removeprefix("truth_") for c in columns if c.startswith("truth_")]
    needed = [*FIXED[:-1], *(f"{name}_{region}" for name in (*COUNTS, *SCORES) for region in regions)]
    if not regions or (missing := [c for c in needed if c not in columns]):
        lacks = f"it lacks {missing[:6]}" if regions else "it has no column truth_<region>"
        raise FinetuneError(f"{path} is no case table: {lacks}; it has {columns[:8]}.")
    return regions, CONFUSION not in columns


def _patient(case: Case) -> str:
    """Its name; a sample without one stands for itself."""
    name = case.patient
    return case.sample if name is None or name != name or not str(name).strip() else str(name)
