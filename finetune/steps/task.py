"""What a task is: all that the jobs need to know of what a network learns."""

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
    """Rows of the table that are evaluated, of one split."""
    split: str
    """Name of the split in the run folder."""
    model: Model | None = None
    """The model file that the network is from; None in the fit that has just trained it."""
    accelerator: str = "auto"
    seed: int = 0


class Task(Protocol):
    """Made of the settings of a job: `Task(settings, **options of conf/task)`; wrong settings fail there.

    A task that inherits from this class has what is not asked of it here already: no explanations, no further files.
    """

    name: str
    test: bool = True
    """Whether a fit predicts and scores the test split."""
    novelty: int = 0
    """Maximum number of training images for the out-of-distribution score; 0 for none."""
    gives: str = "classes"
    """What the head of its networks returns: see `finetune.heads.features.gives`."""
    fitted_settings: tuple[str, ...] = ()
    """Settings of evaluation that a fit alone reads: the model ships what it made of them."""

    # -- before the training

    def check(self, table: SampleTable) -> None:
        """Raise a FinetuneError where the task cannot be learned from, or evaluated on, this table."""
        ...

    def num_outputs(self, table: SampleTable) -> int:
        """`NetworkSpec.num_classes` of a network for this table."""
        ...

    def objective(self, table: SampleTable, rows: np.ndarray) -> Objective:
        """What to minimise, with weights from the training rows; `monitor` is defined on the val split."""
        ...

    def captions(self, batch: Mapping[str, Any], table: SampleTable) -> list[str]:
        """What is to be learned of each image of a batch, in a few words."""
        ...

    # -- predictions and what follows from them

    def predict(self, subject: Subject, fitted: Any) -> PredictionsTable | None:
        """Every readable image of the rows once, whatever the number of ranks; None on all ranks but the first.

        `fitted` is what was fitted on val, or `unfitted()`: a task may need it to make its answers, such as masks.
        """
        ...

    def energy(self, outputs: Any, subject: Subject) -> np.ndarray | None:
        """An out-of-distribution score of a batch of outputs (N,), larger for less usual images; None for none."""
        return None

    def fit(self, val: Any | None) -> Any:
        """All that is fitted on val; its `notes` are sentences on what could not be fitted."""
        ...

    def unfitted(self) -> Any:
        """In the form of `fit`, with nothing fitted."""
        ...

    def answers(self, table: SampleTable, fitted: Any) -> Answers:
        """What goes into the model file."""
        ...

    def score(self, tables: Mapping[str, Any], fitted: Any) -> dict[str, Any]:
        """What scores.json of a fit says of each split; val comes first."""
        ...

    def add_files(self, run: RunFolder, subject: Subject, predictions: Any, fitted: Any) -> None:
        """Write what else the report shows of these predictions, such as examples of errors."""
        return

    def report(self, folder: Path, scores: dict[str, Any] | None = None) -> None:
        """Write report.html of a run; `scores` where scores.json is still to be written."""
        ...

    def summary(self, scores: Mapping[str, Any], *, synthetic: bool) -> list[str]:
        """The lines on the console at the end."""
        ...

    # -- a finished model on other data

    def match(self, table: SampleTable, model: Model) -> SampleTable:
        """The table in the classes of the model.

        Raises:
            FinetuneError: they have nothing in common; says how to map them.
        """
        ...

    def shipped(self, model: Model, table: SampleTable) -> Any:
        """What the model ships that applies to this table, in the form of `fit`."""
        ...

    def evaluate(self, predictions: Any, fitted: Any, subject: Subject) -> dict[str, Any]:
        """The scores of one split that nothing was fitted on."""
        ...

    def add_evaluation_files(self, run: RunFolder, subject: Subject, predictions: Any, fitted: Any, say: Say) -> None:
        """As `add_files`, of an evaluation."""
        self.add_files(run, subject, predictions, fitted)

    def score_files(self, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
        """job=evaluate with predictions=: score a file or folder of predictions that any program made."""
        raise FinetuneError(f"predictions={settings.predictions}: task={self.name} scores no tables of other programs.")

    def explain(self, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]) -> None:
        """job=explain."""
        raise FinetuneError(f"job=explain: model={settings.model} is of task={self.name}, which has no explanations.")


def own_model(model: Model, task: Task, argument: str) -> Model:
    """The model, if it is of this task.

    Raises:
        FinetuneError: it was trained for another task.
    """
    if model.task != task.name:
        raise FinetuneError(
            f"model={argument} was trained for task={model.task}, not {task.name}: type task={model.task}."
        )
    return model
