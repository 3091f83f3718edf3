"""What the boxes of a detector mean, and what was fitted on val: this goes into the model file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from finetune.errors import FinetuneError
from finetune.evaluation.answers import Candidate
from finetune.evaluation.classification.answers import STRICT, OperatingPoint
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.classification.thresholds import decision_thresholds, thresholds_in_words
from finetune.evaluation.detection import comparison
from finetune.evaluation.detection.assessment import DetectionFit
from finetune.evaluation.detection.boxes_file import BoxesFile, in_stored_image
from finetune.evaluation.detection.calibration import calibrated_scores
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.summary import summarise
from finetune.evaluation.detection.tiled import TiledBoxes
from finetune.placement import Placement
from finetune.tiles import Grid

DETECT = "detect"
"""Name of the task."""


@dataclass(frozen=True)
class DetectAnswers:
    """Of each image boxes (M, 4), scores (M,) and labels (M,) -> the boxes that count, and the highest score."""

    __pydantic_config__: ClassVar[Any] = STRICT
    task: ClassVar[str] = DETECT
    needs_size: ClassVar[bool] = True

    classes: list[str]
    calibration: Calibration | None = None
    """Of the scores of boxes, fitted on val; the file of boxes then has `calibrated`."""
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)
    """Thresholds of the scores, chosen on val."""

    @classmethod
    def with_fit(cls, classes: list[str], fitted: DetectionFit) -> DetectAnswers:
        """With what was fitted on val."""
        return cls(classes, fitted.calibration, fitted.operating_points)  # type: ignore[arg-type]

    def fitted(self, classes: Sequence[str]) -> DetectionFit:
        """What was fitted on val, as an evaluation of some of the classes applies it."""
        points = {
            name: {**point, "thresholds": {c: v for c, v in point["thresholds"].items() if c in classes}}
            for name, point in self.operating_points.items()
        }
        curves = {} if self.calibration is None else self.calibration.curves
        curves = {name: curve for name, curve in curves.items() if name in classes}
        if self.calibration is None or not curves:
            return DetectionFit(None, points)
        shares = {name: self.calibration.prevalence[name] for name in curves}
        return DetectionFit(replace(self.calibration, classes=list(classes), curves=curves, prevalence=shares), points)

    def check(self) -> None:
        """Raise a FinetuneError where the fields contradict each other."""
        if self.calibration is not None:
            self.calibration.check()
            if list(self.calibration.classes) != list(self.classes) or self.calibration.kind != "multilabel":
                raise FinetuneError("calibration is of other classes, or of another kind, than the model.")
        for point, about in self.operating_points.items():
            if unknown := sorted(set(about["thresholds"]) - set(self.classes)):
                raise FinetuneError(
                    f"operating_points.{point}.thresholds has {unknown[:3]}, which are not among the classes."
                )
            for name, value in about["thresholds"].items():
                if not 0 <= value <= 1:
                    raise FinetuneError(f"operating_points.{point}.thresholds.{name}={value} must lie between 0 and 1.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Classes and what was fitted."""
        classes = ", ".join(self.classes[:20]) + (f", ... ({len(self.classes)})" if len(self.classes) > 20 else "")
        return [f"boxes: {classes}", *(name for name in ("calibration", "operating_points") if getattr(self, name))]

    @property
    def thresholds(self) -> dict[str, dict[str, Any]]:
        """{class: {threshold, point}}: from which score a box counts; `point` is the first operating point that has
        one, None for 0.5."""
        return decision_thresholds(self.operating_points, self.classes)

    def decision(self) -> str:
        """By which rule the column `decision` is filled, in words."""
        return f"the classes with a box whose score reaches its threshold: {thresholds_in_words(self.thresholds)}"

    def record(self) -> dict[str, Any]:
        """The thresholds, for the record of a prediction."""
        return {"thresholds": self.thresholds}

    def writer(self, output: Path, folder: Path) -> BoxesFile:
        """Writes all boxes beside the table `output`, under its name with .json.

        Raises:
            FinetuneError: the table itself is called so.
        """
        path = output.with_suffix(".json")
        if path == output:
            raise FinetuneError(f"output={output}: this is the name of the file of boxes. Name the table .csv.")
        return BoxesFile(path, self.classes, self.calibrated)

    def calibrated(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """(M,) the share of boxes of such scores that is right, NaN where it is unknown; None without a calibration."""
        return None if self.calibration is None else calibrated_scores(self.calibration, scores, labels)

    def check_tiles(self, tile: int, head: Any) -> None:
        """Raise a FinetuneError where the head has no `suppress`."""
        if not hasattr(head, "suppress"):
            raise FinetuneError(
                f"tile={tile}: {type(head).__name__} has no method `suppress`, which chooses "
                "among boxes of several tiles: see finetune.heads.detection.DetectionHead."
            )

    def collect_tiles(self, grid: Grid, side: int, head: Any) -> TiledBoxes:
        """Boxes of all tiles; the head says which of them are of one object."""
        return TiledBoxes(grid, side, head.suppress)

    def columns(self, outputs: Any, placements: Sequence[Placement]) -> dict[str, Any]:
        """boxes_<class>, the number of boxes whose score reaches the threshold; score_<class>, the highest score, 0
        without a box; and the decision."""
        limits = np.array([about["threshold"] for about in self.thresholds.values()])
        number = np.zeros((len(placements), len(self.classes)), np.int64)
        highest = np.zeros((len(placements), len(self.classes)))
        for i, (detected, placement) in enumerate(zip(outputs, placements, strict=True)):
            _, scores, labels = in_stored_image(detected, placement)
            np.maximum.at(highest[i], labels, scores)
            np.add.at(number[i], labels, scores >= limits[labels])
        names = np.array(self.classes, object)
        return {
            **{f"boxes_{name}": number[:, k] for k, name in enumerate(self.classes)},
            **{f"score_{name}": highest[:, k] for k, name in enumerate(self.classes)},
            "decision": ["|".join(names[row]) or "none" for row in number > 0],
        }

    @classmethod
    def read_table(cls, path: Path, scores: Mapping[str, Any]) -> Detections:
        """The table of detections of a run."""
        return Detections.read(path)

    # -- comparison of runs

    fold_scores: ClassVar[tuple[str, ...]] = ("ap50", "froc")
    """Scores that a comparison shows of each fold."""

    @classmethod
    def compare(cls, candidates: Sequence[Candidate], n_boot: int, seed: int) -> dict[str, Any]:
        """See `comparison.compare`."""
        return comparison.compare(candidates, n_boot, seed)

    @classmethod
    def summarise(cls, table: Detections, n_boot: int, seed: int) -> dict[str, Any]:
        """The scores of a table."""
        return summarise(table, n_boot=n_boot, seed=seed)

    @classmethod
    def pool(cls, folds: Mapping[int, Detections]) -> Detections:
        """The tables of several folds as one, with the fold of each image in the metadata column `fold`.

        Raises:
            FinetuneError: they are of different classes.
        """
        first = next(iter(folds.values()))
        if odd := [fold for fold, table in folds.items() if table.classes != first.classes]:
            raise FinetuneError(f"fold {odd[0]} has other classes")
        starts = np.cumsum([0, *(len(table) for table in folds.values())])
        images = pd.concat([table.images.assign(fold=fold) for fold, table in folds.items()], ignore_index=True)
        truths = [replace(t.truths, image=t.truths.image + s) for t, s in zip(folds.values(), starts, strict=False)]
        boxes = [replace(t.boxes, image=t.boxes.image + s) for t, s in zip(folds.values(), starts, strict=False)]
        metadata = list(dict.fromkeys([*first.metadata, "fold"]))
        return Detections(images, _joined(truths), _joined(boxes), first.classes, metadata)


def _joined(parts: Sequence[Any]) -> Any:
    """Boxes of several tables, one after the other."""
    names = list(vars(parts[0]))
    return type(parts[0])(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
