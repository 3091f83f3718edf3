"""A fit with a teacher: the model, its part of the objective, and the images that it knows."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune import model_file
from finetune.config.settings import Settings
from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.model_file import Model
from finetune.preprocessing import Preprocessing
from finetune.runs import known_images
from finetune.runs.folder import RunFolder
from finetune.steps import scoring
from finetune.steps.task import Task, check_model_task
from finetune.training.objective import Objective


def load_teacher(settings: Settings, task: Task) -> Model | None:
    """The model that `teacher` names; None where it names none.

    Raises:
        FinetuneError: no such model, or one of another task.
    """
    if settings.teacher is None:
        return None
    try:
        model = model_file.load(settings.teacher)
    except FinetuneError as error:
        raise FinetuneError(str(error).replace("model=", "teacher=", 1)) from None
    return check_model_task(model, task, settings.teacher)


def make_objective(
    settings: Settings,
    task: Task,
    table: SampleTable,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    teacher: Model | None,
) -> Objective:
    """The task's objective, with the teacher's part where there is a teacher."""
    objective = task.objective(table, rows)
    if teacher is None:
        return objective
    return task.distil(
        objective,
        table,
        teacher,
        preprocessing,
        weight=settings.teacher_weight,
        temperature=settings.teacher_temperature,
    )


def check_images(settings: Settings, teacher: Model, data: ImageData) -> list[str]:
    """Warnings on val and test images that the teacher was trained on, or chosen by.

    Images are compared by their pixels, patients by their ids, with samples.csv in the teacher's run. Val images may
    have chosen the teacher's epoch, as they choose the student's.

    Raises:
        FinetuneError: there are such images, and data.audit.on_leak=stop.
    """
    where = f"teacher={settings.teacher}"
    leaks = []
    for split, fit_splits in (("test", ("train", "val")), ("val", ("train",))):
        overlap = known_images.find(teacher, data.table, data.images, data.rows(split))
        if not overlap.known:
            return [
                f"{where} has no samples.csv beside it: whether it was trained on images of val or test is unknown. "
                "If it was, the scores are too good."
            ]
        leaks += [f"{where}: of {split}, {overlap.sentences[name]}" for name in fit_splits if name in overlap.sentences]
        if overlap.same_patient_ids:
            leaks.append(f"{where}: of {split}, {overlap.same_patient_ids}")
    if leaks and settings.data.audit.on_leak == "stop":
        raise FinetuneError(
            f"{' '.join(leaks)} The student would learn them from its teacher. Use the splits of the teacher's run "
            "(the same data.seed and data.fold), or another teacher; data.audit.on_leak=warn trains anyway."
        )
    return leaks


def describe(settings: Settings, teacher: Model, warnings: list[str]) -> dict[str, Any]:
    """The entry of environment.json and of the model's provenance."""
    return {
        **scoring.describe_model(str(settings.teacher), teacher),
        "weight": settings.teacher_weight,
        "temperature": settings.teacher_temperature,
        "warnings": warnings,
    }


def check_same(run: RunFolder, teacher: Model) -> None:
    """Check, for a resume, that the teacher is the recorded one.

    Raises:
        FinetuneError: it has other weights.
    """
    recorded = (run.read_environment().get("teacher") or {}).get("weights_hash")
    if recorded is not None and recorded != teacher.weights_hash:
        raise FinetuneError(
            f"resume={run}: teacher={teacher.path} is not the model that the run learned from (other weights). Restore "
            "it, or begin a new fit."
        )
