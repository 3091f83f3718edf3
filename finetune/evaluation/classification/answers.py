"""What the logits of a classification network mean, and what was fitted on val: this goes into the model file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NotRequired

import numpy as np
from typing_extensions import TypedDict

from finetune.errors import FinetuneError
from finetune.evaluation.answers import CLASSIFY, Candidate
from finetune.evaluation.classification import comparison
from finetune.evaluation.classification.assessment import FittedOnVal
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.classification.conformal import Conformal
from finetune.evaluation.classification.predictions import Predictions, probabilities
from finetune.evaluation.classification.selective import ALL
from finetune.evaluation.classification.summary import summarise
from finetune.evaluation.classification.thresholds import decision_thresholds, thresholds_in_words
from finetune.placement import Placement

STRICT: Any = {"extra": "forbid", "allow_inf_nan": False}
GROWING: Any = {"extra": "allow", "allow_inf_nan": False}


class OperatingPoint(TypedDict):
    """Thresholds of `prob_<class>`; further keys are kept as they are."""

    __pydantic_config__ = GROWING  # type: ignore[misc]
    thresholds: dict[str, float]
    goal: NotRequired[str]
    value: NotRequired[float | None]
    split: NotRequired[str]


class Selective(TypedDict):
    """How confident an answer must be, per share of images to answer."""

    __pydantic_config__ = GROWING  # type: ignore[misc]
    threshold: float | None
    cuts: dict[str, float]
    point: NotRequired[str | None]


@dataclass(frozen=True)
class ClassAnswers:
    """Logits (N, K) -> probabilities, calibrated probabilities, sets and decisions."""

    __pydantic_config__: ClassVar[Any] = STRICT
    task: ClassVar[str] = CLASSIFY
    needs_size: ClassVar[bool] = False

    classes: list[str]
    kind: Literal["multilabel", "multiclass"]
    """multilabel: one sigmoid per class; multiclass: one softmax over the classes."""
    calibration: Calibration | None = None
    """Fitted on val; `columns` then has `calibrated_<class>`."""
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)
    """Thresholds of `prob_<class>`, chosen on val."""
    selective: dict[str, Selective] = field(default_factory=dict)
    """Minimum confidence per share of images to answer, chosen on val."""
    conformal: Conformal | None = None
    """Fitted on val; `columns` then has the sets."""

    @classmethod
    def of(cls, classes: list[str], kind: str, fitted: FittedOnVal) -> ClassAnswers:
        """With what was fitted on val."""
        return cls(
            classes,
            kind,  # type: ignore[arg-type]
            fitted.calibration,
            fitted.operating_points,  # type: ignore[arg-type]
            fitted.selective,  # type: ignore[arg-type]
            fitted.conformal,
        )

    def fitted(self) -> FittedOnVal:
        """What was fitted on val, as an evaluation applies it."""
        points, selective = dict(self.operating_points), dict(self.selective)
        return FittedOnVal(self.calibration, points, selective, self.conformal)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise a FinetuneError where the fields contradict each other."""
        for name, fitted in (("calibration", self.calibration), ("conformal", self.conformal)):
            if fitted is not None:
                fitted.check()
                if list(fitted.classes) != list(self.classes) or fitted.kind != self.kind:
                    raise FinetuneError(f"{name} is of other classes, or of another kind, than the model.")
        for point, about in self.operating_points.items():
            _check_names(f"operating_points.{point}.thresholds", about["thresholds"], self.classes)
            for name, value in about["thresholds"].items():
                if not 0 <= value <= 1:
                    raise FinetuneError(f"operating_points.{point}.thresholds.{name}={value} must lie between 0 and 1.")
        _check_names("selective", self.selective, [ALL] if self.kind == "multiclass" else self.classes)
        for name, cut in self.selective.items():
            if self.kind == "multilabel" and not 0 <= (-1 if cut["threshold"] is None else cut["threshold"]) <= 1:
                raise FinetuneError(f"selective.{name}.threshold={cut['threshold']} must lie between 0 and 1.")
            if not all(_is_share(share) for share in cut["cuts"]):
                raise FinetuneError(f"selective.{name}.cuts={cut['cuts']} must be named by shares between 0 and 1.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Kind, classes and what was fitted."""
        classes = ", ".join(self.classes[:20]) + (f", ... ({len(self.classes)})" if len(self.classes) > 20 else "")
        fitted = ("calibration", "operating_points", "selective", "conformal")
        return [f"{self.kind}: {classes}", *(name for name in fitted if getattr(self, name))]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits (N, K) -> sigmoid or softmax in float64."""
        return probabilities(logits, self.kind)

    @property
    def thresholds(self) -> dict[str, dict[str, Any]]:
        """Of a multilabel model {class: {threshold, point}}: from which `prob_<class>` its `decision` names the class;
        `point` is the operating point whose threshold it is, None for 0.5. Empty for a multiclass model, whose decision
        is the most probable class."""
        return decision_thresholds(self.operating_points, self.classes) if self.kind == "multilabel" else {}

    def decision(self) -> str:
        """By which rule the column `decision` is filled, in words."""
        if self.kind == "multiclass":
            return "the most probable class"
        return f"the classes whose prob_ reaches its threshold: {thresholds_in_words(self.thresholds)}"

    def record(self) -> dict[str, Any]:
        """The thresholds, for the record of a prediction."""
        return {"thresholds": self.thresholds}

    def writer(self, output: Path, folder: Path) -> None:
        """All answers are columns."""
        return None

    def columns(self, outputs: np.ndarray, placements: Sequence[Placement] = ()) -> dict[str, Any]:
        """prob_, calibrated_, the sets and the decision, of logits (N, K)."""
        logits = np.asarray(outputs).reshape(len(outputs), len(self.classes))
        probs = self.probabilities(logits)
        columns: dict[str, Any] = {f"prob_{name}": probs[:, k] for k, name in enumerate(self.classes)}
        if self.calibration is not None:
            calibrated = self.calibration.probabilities(logits)
            columns |= {f"calibrated_{c}": calibrated[:, self.classes.index(c)] for c in self.calibration.calibrated}
        if self.conformal is not None:
            columns |= self.conformal.columns(probs)
        names = np.array(self.classes, object)
        if self.kind == "multiclass":
            return {**columns, "decision": names[logits.argmax(axis=1)]}
        above = probs >= np.array([about["threshold"] for about in self.thresholds.values()])
        return {**columns, "decision": ["|".join(names[row]) or "none" for row in above]}

    @classmethod
    def read_table(cls, path: Path, scores: Mapping[str, Any]) -> Predictions:
        """The predictions table of a run."""
        return Predictions.read(path, scores.get("kind"))

    # -- comparison of runs

    fold_scores: ClassVar[tuple[str, ...]] = ("auroc", "average_precision", "brier", "log_loss")
    """Scores that are given of each fold."""

    @classmethod
    def compare(cls, candidates: Sequence[Candidate], n_boot: int, seed: int) -> dict[str, Any]:
        """See `comparison.compare`."""
        return comparison.compare(candidates, n_boot, seed)

    @classmethod
    def summarise(cls, table: Predictions, n_boot: int, seed: int) -> dict[str, Any]:
        """The scores of a table."""
        return summarise(table, n_boot, seed)

    @classmethod
    def pool(cls, folds: Mapping[int, Predictions]) -> Predictions:
        """The tables of several folds as one, with the fold of each image in the metadata column `fold`.

        Raises:
            FinetuneError: they are of different classes.
        """
        first = next(iter(folds.values()))
        for fold, table in folds.items():
            if (table.classes, table.kind) != (first.classes, first.kind):
                raise FinetuneError(f"fold {fold} has other classes")
        import pandas as pd

        frame = pd.concat([table.frame.assign(fold=fold) for fold, table in folds.items()], ignore_index=True)
        return Predictions(frame, first.classes, first.kind, list(dict.fromkeys([*first.metadata, "fold"])))


def _check_names(where: str, names: Iterable[str], classes: list[str]) -> None:
    if unknown := sorted(set(names) - set(classes)):
        raise FinetuneError(f"{where} has {unknown[:3]}, which are not among the classes.")


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False
