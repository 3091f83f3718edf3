"""The predictions table: the network's output for each sample, and the truth. Evaluation reads nothing else."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from finetune.errors import FinetuneError, one_of
from finetune.files import write_text_atomic

if TYPE_CHECKING:  # imported where tables are made, so that loading a model stays fast
    import pandas as pd

KINDS = ("multilabel", "multiclass")
PREFIXES = ("target_", "logit_", "prob_")
# pandas 3.1 reads every float exactly and warns about the option
EXACT_FLOATS: dict[str, Any] = (
    {} if tuple(map(int, version("pandas").split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
)

_BOXES = "boxes"
_BOX = re.compile(r"\S.*( -?\d[\d.e+-]*){4}")  # label, left, top, width, height


@dataclass
class Predictions:
    """One row per sample. Build it by `from_arrays` or `read`, which check what the other methods rely on.

    Example:
        >>> test = finetune.Predictions.read("outputs/latest/predictions_test.csv")
        >>> test.probs.shape, test.classes  # (N, K), K names
        ((700, 2), ['Edema', 'Effusion'])
        >>> women = test.frame[test.frame["sex"] == "F"].reset_index(drop=True)
        >>> finetune.summarise(finetune.Predictions(women, test.classes, test.kind))
    """

    frame: pd.DataFrame
    """sample, patient, target_<class>..., logit_<class>..., prob_<class>..., then the metadata columns."""
    classes: list[str]
    kind: str
    """multilabel (prob is the sigmoid of the logit) or multiclass (prob is the softmax over the classes)."""
    metadata: list[str] = field(default_factory=list)
    """Names of the metadata columns."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def targets(self) -> np.ndarray:
        """(N, K) float64 as given: 1, 0, NaN where unknown, or a soft value between."""
        return self._block("target_")

    @property
    def truth(self) -> np.ndarray:
        """(N, K) of 1, 0 and NaN: what predictions are scored against.

        A soft target is a policy for training, not a fact, so it counts as unknown; so does a multiclass row that
        does not name exactly one class.
        """
        targets = self.targets
        hard = (targets == 0) | (targets == 1)
        if self.kind == "multiclass":
            hard &= (hard.all(axis=1) & (np.nansum(targets, axis=1) == 1))[:, None]
        return np.where(hard, targets, np.nan)

    @property
    def logits(self) -> np.ndarray:
        """(N, K) float64."""
        return self._block("logit_")

    @property
    def probs(self) -> np.ndarray:
        """(N, K) float64: sigmoid or softmax of the logits, never calibrated."""
        return self._block("prob_")

    @property
    def patients(self) -> np.ndarray:
        """(N,) names; a sample without one stands for itself."""
        return self.frame["patient"].to_numpy(object)

    def _block(self, prefix: str) -> np.ndarray:
        return self.frame[[prefix + name for name in self.classes]].to_numpy(np.float64)

    @classmethod
    def from_arrays(
        cls,
        samples: Sequence[str],
        patients: Sequence[str | None],
        classes: Sequence[str],
        kind: str,
        targets: np.ndarray,
        logits: np.ndarray,
        metadata: pd.DataFrame | None = None,
    ) -> Predictions:
        """The table of N samples from targets (N, K) and logits (N, K).

        Raises:
            FinetuneError: shapes or names do not fit together, a sample is there twice, a logit is not finite.
        """
        import pandas as pd

        classes = [str(name) for name in classes]
        targets, logits = np.asarray(targets, np.float64), np.asarray(logits, np.float64)
        shape = (len(samples), len(classes))
        for name, array in (("targets", targets), ("logits", logits)):
            if array.shape != shape and not (array.size == 0 and shape[0] == 0):
                raise FinetuneError(f"{name} have the shape {array.shape}; samples and classes need {shape}.")
        if len(patients) != shape[0]:
            raise FinetuneError(f"{len(patients)} patients are given for {shape[0]} samples.")
        if metadata is None:
            metadata = pd.DataFrame(index=range(shape[0]))
        targets, logits = targets.reshape(shape), logits.reshape(shape)
        names = pd.Series([str(sample) for sample in samples], dtype=str)
        people = pd.Series(list(patients), dtype=object)
        blank = people.isna() | (people.astype(str).str.strip() == "")
        blocks = {"target_": targets, "logit_": logits, "prob_": probabilities(logits, kind)}
        frame = pd.concat(
            [
                pd.DataFrame({"sample": names, "patient": people.where(~blank, names.astype(object)).astype(str)}),
                *(pd.DataFrame(array, columns=[prefix + c for c in classes]) for prefix, array in blocks.items()),
                metadata.reset_index(drop=True),
            ],
            axis=1,
        )
        return cls(frame, classes, kind, [str(column) for column in metadata.columns])._checked()

    @classmethod
    def read(cls, path: str | Path, kind: str | None = None) -> Predictions:
        """A table that `write` made. Without `kind` it follows from the file: the probabilities are either the sigmoid
        or the softmax of the logits.

        Raises:
            FinetuneError: it is no predictions table, or its probabilities do not follow from its logits.
        """
        import pandas as pd

        path = Path(path)
        try:
            columns = list(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
            classes = _classes(columns, path)
            numbers = [prefix + name for prefix in PREFIXES for name in classes]
            rest = [c for c in columns if c not in numbers and c not in ("sample", "patient")]
            frame = pd.read_csv(
                path,
                encoding="utf-8-sig",
                dtype={**dict.fromkeys(numbers, np.float64), "sample": str, "patient": str},
                keep_default_na=False,  # a patient named NA is a patient
                na_values={c: ["", "nan", "NaN", "null"] if c in numbers else [""] for c in [*numbers, *rest]},
                **EXACT_FLOATS,
            )
        except (OSError, UnicodeError, ValueError) as error:
            if isinstance(error, FinetuneError):
                raise
            raise FinetuneError(f"{path} cannot be read as a predictions table: {error}") from error
        if _BOXES in rest and _holds_boxes(frame[_BOXES]):
            frame, rest = frame.drop(columns=_BOXES), [name for name in rest if name != _BOXES]
        logits = frame[["logit_" + c for c in classes]].to_numpy(np.float64)
        probs = frame[["prob_" + c for c in classes]].to_numpy(np.float64)
        kind = kind or _kind(logits, probs, frame[["target_" + c for c in classes]].to_numpy(np.float64), path)
        if (off := np.abs(probs - probabilities(logits, kind)) > 1e-4).any():
            row = int(np.flatnonzero(off.any(axis=1))[0])
            what = "sigmoid" if kind == "multilabel" else "softmax"
            raise FinetuneError(f"{path}: prob_ is not the {what} of logit_ (kind={kind}), first in row {row + 2}.")
        return cls(frame, classes, kind, rest)._checked(str(path))

    def write(self, path: str | Path) -> Path:
        """Write a csv with every float in full precision: reading it back gives the same bits."""
        text = io.StringIO()
        self.frame.to_csv(text, index=False, lineterminator="\n")
        return write_text_atomic(path, text.getvalue())

    def _checked(self, where: str = "predictions") -> Predictions:
        if self.kind not in KINDS:
            raise one_of("kind", self.kind, KINDS)
        if not self.classes:
            raise FinetuneError(f"{where}: there are no classes.")
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise FinetuneError(f"{where}: kind=multiclass needs two classes or more, not only {self.classes[0]!r}.")
        twice = [name for name, count in Counter(map(str, self.frame.columns)).items() if count > 1]
        if twice:
            raise FinetuneError(f"{where}: column(s) {twice} are there twice; rename the class or the metadata column.")
        if (same := self.frame["sample"].duplicated()).any():
            raise FinetuneError(f"{where}: sample {self.frame['sample'][same].iloc[0]!r} is there twice.")
        if (bad := ~np.isfinite(self.logits).all(axis=1)).any():
            first = self.frame["sample"][bad].iloc[0]
            raise FinetuneError(
                f"{where}: the network's output is not finite for {bad.sum():,} of {len(self):,} samples, "
                f"first {first!r}. The training diverged: lower optimizer.lr, or set trainer.gradient_clip_val=1."
            )
        return self


def probabilities(logits: np.ndarray, kind: str) -> np.ndarray:
    """Logits (N, K) -> probabilities (N, K) in float64, stable for any finite logit."""
    logits = np.asarray(logits, np.float64)
    return scipy.special.softmax(logits, axis=1) if kind == "multiclass" else scipy.special.expit(logits)


def _holds_boxes(column: pd.Series) -> bool:
    """Whether each cell is blank or the text of boxes, as in the tables that version 0.1.0 wrote: they show the labels,
    so they are no metadata to make groups by."""
    cells = column.dropna().astype(str)
    return bool(cells.map(lambda text: all(_BOX.fullmatch(part.strip()) for part in text.split(";"))).all())


def _classes(columns: list[str], path: Path) -> list[str]:
    """Class names in the order of their target columns; each has all three columns."""
    names_by_prefix = {prefix: [c.removeprefix(prefix) for c in columns if c.startswith(prefix)] for prefix in PREFIXES}
    classes = names_by_prefix["target_"]
    if "sample" not in columns or "patient" not in columns or not classes:
        raise FinetuneError(
            f"{path} is no predictions table: it needs the columns sample, patient, and target_, logit_ and prob_ for "
            f"each class; it has {columns[:8]}."
        )
    for prefix in PREFIXES:
        if odd := sorted(set(names_by_prefix[prefix]) ^ set(classes)):
            raise FinetuneError(f"{path}: class(es) {odd} lack one of the columns target_, logit_, prob_.")
    return classes


def _kind(logits: np.ndarray, probs: np.ndarray, targets: np.ndarray, path: Path) -> str:
    """Which function makes these probabilities of these logits; where both do, one-hot targets mean multiclass."""
    fits = [k for k in KINDS if np.allclose(probs, probabilities(logits, k), rtol=0, atol=1e-4)]
    if not fits:
        raise FinetuneError(f"{path}: prob_ is neither the sigmoid nor the softmax of logit_; was it changed?")
    if len(fits) == 2:
        labelled = targets[~np.isnan(targets).any(axis=1)]
        one_hot = targets.shape[1] > 1 and len(labelled) > 0 and np.allclose(labelled.sum(axis=1), 1)
        return "multiclass" if one_hot else "multilabel"
    return fits[0]
