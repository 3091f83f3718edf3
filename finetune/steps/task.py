"""The contract of a task: all that the jobs need to know about the network's targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.config.settings import EvaluateSettings, ExplainSettings
from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.evaluation.answers import Answers, PredictionsTable
from finetune.model_file import Model
from finetune.network import Network
from finetune.preprocessing import Preprocessing
from finetune.runs.folder import RunFolder
from finetune.training.objective import Objective

Say = Callable[[str], None]
"""Takes a sentence for the user."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a network on a decoded sample table."""

    network: Network
    data: ImageData
    rows: np.ndarray
    """Rows of the table to evaluate, of one split."""
    split: str
    """Name of the split in the run folder."""
    model: Model | None = None
    """The model file of the network; None in the fit that has just trained it."""
    accelerator: str = "auto"
    seed: int = 0
    tta: tuple[str, ...] = ()
    """Views whose outputs are averaged: see `finetune.views`."""


class Task(Protocol):
    """Made of the settings of a job: `Task(settings, **options of conf/task)`; wrong settings fail there.

    A task that inherits from this class gets the optional parts: no explanations, no further files.
    """

    name: str
    test: bool = True
    """Whether a fit predicts and scores the test split."""
    novelty: int = 0
    """Maximum number of training images for the out-of-distribution score; 0 for none."""
    tta: tuple[str, ...] = ()
    """Views whose outputs are averaged in all predictions of a fit and of its model: see `finetune.views`."""
    gives: str = "classes"
    """What the head of its networks returns: see `finetune.heads.features.gives`."""
    fitted_settings: tuple[str, ...] = ()
    """Settings of evaluation that only a fit reads: the model ships their results."""

    # -- before the training

    def check(self, table: SampleTable) -> None:
        """Raise a FinetuneError where the task cannot be trained or evaluated on this table."""
        ...

    def num_outputs(self, table: SampleTable) -> int:
        """`NetworkSpec.num_classes` of a network for this table."""
        ...

    def objective(self, table: SampleTable, rows: np.ndarray) -> Objective:
        """The function to minimise, with weights from the training rows; `monitor` is defined on the val split."""
        ...

    def distil(
        self,
        objective: Objective,
        table: SampleTable,
        teacher: Model,
        preprocessing: Preprocessing,
        *,
        weight: float,
        temperature: float,
    ) -> Objective:
        """The objective with a teacher's part; `preprocessing` is the student's.

        Raises:
            FinetuneError: the task has none, or the teacher does not go with the table.
        """
        raise FinetuneError(f"teacher={teacher.path}: task={self.name} learns from no teacher. Leave it out.")

    def captions(self, batch: Mapping[str, Any], table: SampleTable) -> list[str]:
        """The target of each image of a batch, in a few words."""
        ...

    # -- predictions and scores

    def predict(self, subject: Subject, fitted: Any) -> PredictionsTable | None:
        """Every readable image of the rows once, whatever the number of ranks; None on all ranks but the first.

        `fitted` is the result of `fit`, or `unfitted()`: a task may need it for its predictions, such as masks.
        """
        ...

    def energy(self, outputs: Any, subject: Subject) -> np.ndarray | None:
        """An out-of-distribution score of a batch of outputs (N,), larger for less usual images; None for none."""
        return None

    def fit(self, val: Any | None) -> Any:
        """All values fitted on val; `notes` are sentences on values that could not be fitted."""
        ...

    def unfitted(self) -> Any:
        """As the result of `fit`, with nothing fitted."""
        ...

    def answers(self, table: SampleTable, fitted: Any) -> Answers:
        """The task's part of the model file."""
        ...

    def score(self, tables: Mapping[str, Any], fitted: Any) -> dict[str, Any]:
        """The scores of each split for scores.json of a fit; val comes first."""
        ...

    def add_files(self, run: RunFolder, subject: Subject, predictions: Any, fitted: Any) -> None:
        """Write further files for the report, such as examples of errors."""
        return

    def report(self, folder: Path, scores: dict[str, Any] | None = None) -> None:
        """Write report.html of a run; `scores` if scores.json is not written yet."""
        ...

    def summary(self, scores: Mapping[str, Any], *, synthetic: bool) -> list[str]:
        """The lines on the console at the end."""
        ...

    # -- a finished model on other data

    def match(self, table: SampleTable, model: Model) -> SampleTable:
        """The table in the classes of the model.

        Raises:
            FinetuneError: the classes have nothing in common; the message says how to map them.
        """
        ...

    def shipped(self, model: Model, table: SampleTable) -> Any:
        """The values that the model ships and that apply to this table, as the result of `fit`."""
        ...

    def evaluate(self, predictions: Any, fitted: Any, subject: Subject) -> dict[str, Any]:
        """The scores of one split on which nothing was fitted."""
        ...

    def add_evaluation_files(self, run: RunFolder, subject: Subject, predictions: Any, fitted: Any, say: Say) -> None:
        """As `add_files`, for an evaluation."""
        self.add_files(run, subject, predictions, fitted)

    def score_files(self, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
        """job=evaluate with predictions=: score a file or folder of predictions of any program."""
        raise FinetuneError(f"predictions={settings.predictions}: task={self.name} scores no tables of other programs.")

    def explain(self, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]) -> None:
        """job=explain."""
        raise FinetuneError(f"job=explain: model={settings.model} is of task={self.name}, which has no explanations.")


def check_model_task(model: Model, task: Task, argument: str) -> Model:
    """The model, after checking its task.

    Raises:
        FinetuneError: it was trained for another task.
    """
    if model.task != task.name:
        raise FinetuneError(
            f"model={argument} was trained for task={model.task}, not {task.name}: type task={model.task}."
        )
    return model
