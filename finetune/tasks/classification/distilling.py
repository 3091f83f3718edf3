"""A classifier that learns from another model as well: which classes, which divergence."""

from __future__ import annotations

from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.model_file import Model
from finetune.preprocessing import Preprocessing
from finetune.tasks.classification.shipped import class_answers
from finetune.training.distillation import Distilled, Teacher, sigmoid_divergence, softmax_divergence
from finetune.training.objective import Objective

DIVERGENCES = {"multiclass": softmax_divergence, "multilabel": sigmoid_divergence}


def distilled(
    objective: Objective,
    table: SampleTable,
    model: Model,
    preprocessing: Preprocessing,
    *,
    weight: float,
    temperature: float,
) -> Distilled:
    """The objective with the teacher's part. Of a softmax over more classes only those of the table are compared.

    Raises:
        FinetuneError: the teacher's labels are of another kind, or it lacks classes of the table.
    """
    kind = class_answers(model).kind
    if kind != table.kind:
        raise FinetuneError(
            f"teacher={model.path} is {kind}, these labels are {table.kind}. Name a teacher of this kind."
        )
    if missing := [name for name in table.classes if name not in model.classes]:
        raise FinetuneError(
            f"teacher={model.path} has no outputs for {', '.join(missing)}: it knows {', '.join(model.classes)}. It "
            "must have all classes of the data set, by the same names, in any order."
        )
    columns = [model.classes.index(name) for name in table.classes]
    teacher = Teacher(model, preprocessing, columns)
    return Distilled(objective, teacher, DIVERGENCES[kind], weight=weight, temperature=temperature)
