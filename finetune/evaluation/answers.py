"""What a trained network's outputs mean: the part of a task that travels in the model file and needs no torch.

Each task has a class for it, which `ANSWERS` finds by the task's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from finetune.errors import FinetuneError, one_of
from finetune.placement import Placement
from finetune.tiles import Grid, Tile

if TYPE_CHECKING:  # imported where tables are made, so that loading a model stays fast
    import pandas as pd

CLASSIFY = "classify"
"""The task of model files and runs that name none."""


@runtime_checkable
class PredictionsTable(Protocol):
    """What evaluation reads: a row per sample, from a file that it wrote."""

    @property
    def frame(self) -> pd.DataFrame:
        """A row per sample, with its path in the column `sample`."""
        ...

    def __len__(self) -> int: ...

    def write(self, path: str | Path) -> Any:
        """Write the file that `Answers.read_table` reads."""
        ...


@dataclass(frozen=True)
class Candidate:
    """One network to compare, or several that differ only in their seed."""

    label: str
    members: list[Any]
    """The predictions table of each, of the same images."""
    seeds: list[Any]


class Writer(Protocol):
    """Writes answers as they come, such as masks, so that they need no memory."""

    def add(self, names: Sequence[str], outputs: Any, placements: Sequence[Placement]) -> None:
        """The answers of N images, called by their paths."""
        ...

    def close(self) -> str:
        """Finish, and say in a sentence what was written where."""
        ...

    def discard(self) -> None:
        """Remove what is unfinished, after an error: `close` is not called."""
        ...


class Answers(Protocol):
    """How the outputs of a network become columns of a table, with what was fitted on val.

    A frozen dataclass of plain values: its fields are read from a model file by their types, and checked by `check`.
    """

    task: ClassVar[str]
    """Name of the task."""
    needs_size: ClassVar[bool]
    """Whether `columns` reads the placements in pixels of the stored images."""

    @property
    def classes(self) -> list[str]:
        """Names of the network's outputs, as many as `NetworkSpec.num_classes`."""
        ...

    def check(self) -> None:
        """Raise a FinetuneError where the fields contradict each other."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for the model file."""
        ...

    def describe(self) -> list[str]:
        """Some words on it, for a person."""
        ...

    def decision(self) -> str:
        """By which rule the column `decision` is filled, in words."""
        ...

    def record(self) -> dict[str, Any]:
        """What environment.json of a prediction says of the rule."""
        ...

    def writer(self, output: Path, folder: Path) -> Writer | None:
        """What writes the answers that are no columns beside the table `output`; None where there are none. All images
        lie below `folder`."""
        ...

    def columns(self, outputs: Any, placements: Sequence[Placement]) -> dict[str, Any]:
        """Outputs of N images, as arrays, and where each image lies in the network's square -> columns of N values."""
        ...

    @classmethod
    def read_table(cls, path: Path, scores: Mapping[str, Any]) -> PredictionsTable:
        """A predictions table of a run; `scores` are those of its split, or empty.

        Raises:
            FinetuneError: it is no table of this task.
        """
        ...


class TileCollector(Protocol):
    """Puts the outputs of all tiles of an image together."""

    def add(self, tile: Tile, output: Any) -> None:
        """The network's output for a tile, as arrays; tiles come in the order of the grid."""
        ...

    def result(self) -> Any:
        """The output for the image. `columns` and writers take it with the placement `Grid.whole`."""
        ...


@runtime_checkable
class Tileable(Protocol):
    """What answers have besides where images may be predicted in tiles."""

    def check_tiles(self, tile: int, head: Any) -> None:
        """Raise a FinetuneError where the head cannot be used with tiles, before an image is read."""
        ...

    def collect_tiles(self, grid: Grid, side: int, head: Any) -> TileCollector:
        """For one image.

        Args:
            side: of the network's square, in pixels.
            head: of the network, which `check_tiles` has accepted.
        """
        ...


def tileable(answers: Answers, tile: int) -> Tileable:
    """The answers, after checking that images may be predicted in tiles.

    Raises:
        FinetuneError: their task has no tiles.
    """
    if not isinstance(answers, Tileable):
        raise FinetuneError(
            f"tile={tile} does not go with a model of task={answers.task}, whose answer is of a whole image. Leave "
            "tile out; models of task=segment and task=detect predict large images in tiles."
        )
    return answers


def at_operating_point(answers: Any, name: str | None) -> Any:
    """The answers whose decisions are by the thresholds of one operating point; as they are without a name.

    Raises:
        FinetuneError: there is no such operating point, or decisions of this kind have no thresholds.
    """
    if name is None:
        return answers
    points = getattr(answers, "operating_points", None)
    if points is None or getattr(answers, "kind", None) == "multiclass":
        raise FinetuneError(
            f"operating_point={name} has no effect on this model, whose decision is {answers.decision()}."
        )
    if not points:
        raise FinetuneError(f"operating_point={name}: the model has none, its thresholds are 0.5. Leave it out.")
    if name not in points:
        raise one_of("operating_point", name, points)
    return replace(answers, operating_points={name: points[name]})


ANSWERS: dict[str, str | type[Answers]] = {
    CLASSIFY: "finetune.evaluation.classification.answers.ClassAnswers",
    "segment": "finetune.evaluation.segmentation.answers.SegmentAnswers",
    "detect": "finetune.evaluation.detection.answers.DetectAnswers",
}
"""Name of a task -> its class, or where it is found."""


def answers_named(name: str, where: str = "task") -> type[Answers]:
    """The class of answers of a task.

    Raises:
        FinetuneError: no task of that name is known.
    """
    if name not in ANSWERS:
        raise FinetuneError(
            f"{where}={name} is not known; there are {', '.join(ANSWERS)}. A task of your own is registered first "
            "(finetune.register_task): trust=[MODULE], or its import in Python."
        )
    entry = ANSWERS[name]
    if isinstance(entry, str):
        module, _, attribute = entry.rpartition(".")
        entry = getattr(import_module(module), attribute)
        ANSWERS[name] = entry
    return entry


@runtime_checkable
class Comparable(Protocol):
    """What answers have besides where runs of their task can be compared."""

    fold_scores: ClassVar[tuple[str, ...]]
    """Names of the macro or overall scores that are given of each fold, the first decides."""

    @classmethod
    def compare(cls, candidates: Sequence[Candidate], n_boot: int, seed: int) -> dict[str, Any]:
        """Paired differences over the same resamples of the patients, as in compare.json.

        Raises:
            FinetuneError: the samples, their classes or what is true of them are not the same.
        """
        ...

    @classmethod
    def summarise(cls, table: Any, n_boot: int, seed: int) -> dict[str, Any]:
        """The scores of a table, as in scores.json."""
        ...

    @classmethod
    def pool(cls, folds: Mapping[int, Any]) -> Any:
        """The tables of several folds as one, with the metadata column `fold`.

        Raises:
            FinetuneError: they are of different classes; the message is the end of a sentence.
        """
        ...


def comparable(name: str) -> type[Comparable]:
    """The class of answers of a task whose runs can be compared.

    Raises:
        FinetuneError: no such task, or its runs cannot be compared.
    """
    answers: Any = answers_named(name)
    members = ("fold_scores", "compare", "summarise", "pool")
    if lacking := [member for member in members if not hasattr(answers, member)]:
        raise FinetuneError(
            f"Runs of task={name} cannot be compared: its class {answers.__name__} has no {', '.join(lacking)}."
        )
    return answers


def task_name(config: Mapping[str, Any]) -> str:
    """The name of the task in the configuration of a run; classify in those from before there were others."""
    node = config.get("task")
    return str(node.get("name", CLASSIFY)) if isinstance(node, Mapping) else CLASSIFY
