"""What the logits of a segmentation network mean, and what was fitted on val: this goes into the model file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy
from PIL import Image

from finetune.errors import FinetuneError
from finetune.evaluation.answers import Candidate
from finetune.evaluation.segmentation import comparison
from finetune.evaluation.segmentation.assessment import SegmentationFit
from finetune.evaluation.segmentation.collect import HALF, read_regions
from finetune.evaluation.segmentation.summary import summarise
from finetune.evaluation.segmentation.table import CaseTable
from finetune.evaluation.segmentation.tiled import StoredMap, TiledMap
from finetune.placement import Placement
from finetune.tiles import Grid


@dataclass(frozen=True)
class SegmentAnswers:
    """Logits (N, K, S, S) -> label maps of the images as stored, and how many pixels each region has."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}
    task: ClassVar[str] = "segment"
    needs_size: ClassVar[bool] = True

    classes: list[str]
    """Regions in the order of the network's outputs; exclusive ones begin with background."""
    overlapping: bool
    """Whether a pixel may be in several regions: a sigmoid each, else a softmax over all."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Of overlapping regions, chosen on val: the probability from which a pixel is marked; 0.5 where not named."""
    fitted_on: dict[str, Any] = field(default_factory=dict)
    """{split, n, patients} of the images that they were chosen on."""

    @classmethod
    def of(cls, classes: list[str], overlapping: bool, fitted: SegmentationFit) -> SegmentAnswers:
        """With what was fitted on val."""
        return cls(classes, overlapping, dict(fitted.thresholds), dict(fitted.fitted_on))

    def fitted(self) -> SegmentationFit:
        """What was fitted on val, as an evaluation applies it."""
        return SegmentationFit(dict(self.thresholds), dict(self.fitted_on))

    @property
    def regions(self) -> list[str]:
        """Those that are scored: without the background."""
        return read_regions(self.classes, self.overlapping)

    def check(self) -> None:
        """Raise a FinetuneError where the fields contradict each other."""
        regions = self.regions
        if self.thresholds and not self.overlapping:
            raise FinetuneError("thresholds are of overlapping regions; these exclude each other.")
        if unknown := sorted(set(self.thresholds) - set(regions)):
            raise FinetuneError(f"thresholds name {unknown[:3]}, which are no regions.")
        if wrong := [f"{name}={value}" for name, value in self.thresholds.items() if not 0 < value < 1]:
            raise FinetuneError(f"thresholds.{wrong[0]} must lie between 0 and 1.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Regions, and whether thresholds were chosen."""
        names = ", ".join(self.regions[:20])
        kind = "overlapping" if self.overlapping else "exclusive"
        return [f"{kind} regions: {names}", *(["thresholds"] if self.thresholds else [])]

    def decision(self) -> str:
        """By which rule pixels are marked, in words."""
        if not self.overlapping:
            return "each pixel is in its most probable region"
        rules = ", ".join(f"{name} {self.thresholds.get(name, HALF):g}" for name in self.regions)
        return f"a pixel is in a region from this probability on: {rules}"

    def record(self) -> dict[str, Any]:
        """The thresholds, for the record of a prediction."""
        return (
            {"thresholds": {name: self.thresholds.get(name, HALF) for name in self.regions}} if self.overlapping else {}
        )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:  # (K, S, S) -> (K, S, S) float32
        """Softmax over the regions, or the sigmoid of each."""
        logits = np.asarray(logits, np.float32)
        return scipy.special.expit(logits) if self.overlapping else scipy.special.softmax(logits, axis=0)

    def stored_probabilities(self, logits: np.ndarray, placement: Placement) -> np.ndarray:
        """Logits (K, S, S) -> probabilities (K, H, W) on the pixels of the image as stored; where the network did not
        look, background is certain, or nothing."""
        probabilities = self.probabilities(logits)
        stored = np.stack([placement.values_to_stored(of_region) for of_region in probabilities])
        if not self.overlapping:
            stored[0][np.isnan(stored[0])] = 1.0
        return np.nan_to_num(stored, nan=0.0)

    def label_map(self, output: np.ndarray | StoredMap, placement: Placement) -> np.ndarray:  # -> uint8 (H, W)
        """The region of each pixel of the image as stored, or the bits of the regions that it is in.

        Args:
            output: logits (K, S, S), or the result of all tiles of the image.
        """
        if isinstance(output, StoredMap):
            return output.label_map
        return self.mark(self.stored_probabilities(output, placement))

    def mark(self, probabilities: np.ndarray) -> np.ndarray:  # (K, H, W) -> uint8 (H, W)
        """The most probable region of each pixel, or the bits of those whose probability reaches the threshold."""
        if not self.overlapping:
            return probabilities.argmax(axis=0).astype(np.uint8)
        label_map = np.zeros(probabilities.shape[1:], np.uint8)
        for k, name in enumerate(self.regions):
            label_map |= (probabilities[k] >= self.thresholds.get(name, HALF)).astype(np.uint8) << k
        return label_map

    def check_tiles(self, tile: int, head: Any) -> None:
        """Every head goes with tiles."""

    def collect_tiles(self, grid: Grid, side: int, head: Any) -> TiledMap:
        """Probabilities are averaged, and marked where no tile adds to them any more."""
        return TiledMap(grid, len(self.classes), self.stored_probabilities, self.mark)

    def writer(self, output: Path, folder: Path) -> MaskWriter:
        """Masks go into a folder beside the table: PREDICTIONS_masks/ of PREDICTIONS.csv."""
        return MaskWriter(self, output.with_name(f"{output.stem}_masks"), folder)

    def columns(self, outputs: Any, placements: Sequence[Placement]) -> dict[str, Any]:
        """pixels_<region> and share_<region>, of the image as stored."""
        columns: dict[str, list[float]] = {}
        for name in self.regions:
            columns |= {f"pixels_{name}": [], f"share_{name}": []}
        for logits, placement in zip(outputs, placements, strict=True):
            label_map = self.label_map(logits, placement)
            for k, name in enumerate(self.regions):
                region = (label_map >> k) & 1 if self.overlapping else label_map == k + 1
                columns[f"pixels_{name}"].append(int(region.sum()))
                columns[f"share_{name}"].append(float(region.mean()))
        return columns

    fold_scores: ClassVar[tuple[str, ...]] = ("dice",)
    """Scores that a comparison shows of each fold."""

    @classmethod
    def compare(cls, candidates: Sequence[Candidate], n_boot: int, seed: int) -> dict[str, Any]:
        """See `comparison.compare`; nothing is drawn at random."""
        return comparison.compare(candidates)

    @classmethod
    def summarise(cls, table: CaseTable, n_boot: int, seed: int) -> dict[str, Any]:
        """The scores of a table."""
        return summarise(table)

    @classmethod
    def pool(cls, folds: Mapping[int, CaseTable]) -> CaseTable:
        """The tables of several folds as one, with the fold of each image in the metadata column `fold`.

        Raises:
            FinetuneError: they are of different regions.
        """
        first = next(iter(folds.values()))
        if odd := [fold for fold, table in folds.items() if table.regions != first.regions]:
            raise FinetuneError(f"fold {odd[0]} has other regions")
        frame = pd.concat([table.frame.assign(fold=fold) for fold, table in folds.items()], ignore_index=True)
        return CaseTable(frame, first.regions, first.overlapping, list(dict.fromkeys([*first.metadata, "fold"])))

    @classmethod
    def read_table(cls, path: Path, scores: Mapping[str, Any]) -> CaseTable:
        """The case table of a run."""
        return CaseTable.read(path)


class MaskWriter:
    """Writes the mask of each image as a PNG of the image's own size: pixel value i is region i, or bit k region k.

    A palette makes the regions visible. A mask has the place and the name of its image, whatever that one's ending; a
    second one of that name (a.png beside a.jpg) gets a number.

    Args:
        folder: of the masks.
        images: the folder that all images lie below.
    """

    def __init__(self, answers: SegmentAnswers, folder: Path, images: Path):
        self.answers, self.folder, self.images = answers, folder, images
        self.names: set[str] = set()

    def add(self, names: Sequence[str], outputs: Any, placements: Sequence[Placement]) -> None:
        """Write the masks of N images."""
        for name, logits, placement in zip(names, outputs, placements, strict=True):
            path = self.folder / f"{self._free_name(name)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = Image.fromarray(self.answers.label_map(logits, placement))
            mask.putpalette(palette())
            mask.save(path, optimize=False)

    def _free_name(self, image: str) -> str:
        """The path of an image below the folder of the images, without its ending, with a number where it is taken."""
        below = Path(os.path.relpath(image, self.images).replace("::", "/"))  # FILE.npz::KEY/INDEX
        name = (Path(below.name) if ".." in below.parts else below).with_suffix("").as_posix()
        names = chain([name], (f"{name}_{number}" for number in count(1)))
        free = next(name for name in names if name not in self.names)
        self.names.add(free)
        return free

    def discard(self) -> None:
        """The masks that are written stay: each is whole."""

    def close(self) -> str:
        """What was written where."""
        value = "bit k of a pixel is region k of" if self.answers.overlapping else "a pixel's value is its place in"
        return f"{len(self.names):,} masks -> {self.folder}/ ({value}: {', '.join(self.answers.classes)})"


def palette() -> list[int]:
    """256 colours, black first, neighbours far apart."""
    hues = (np.arange(256) * 0.618034) % 1.0
    colours = 127.5 + 127.5 * np.cos(2 * np.pi * (hues[:, None] + np.array([0.0, 0.33, 0.67])))
    colours[0] = 0
    return colours.round().astype(int).ravel().tolist()
