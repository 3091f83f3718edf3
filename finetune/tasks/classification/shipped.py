"""The fitted values that a classification model ships, and those that apply to a table."""

from typing import cast

from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.classification.assessment import FittedOnVal
from finetune.model_file import Model


def class_answers(model: Model) -> ClassAnswers:
    """The answers of a classification model."""
    return cast(ClassAnswers, model.answers)


def select_shipped(model: Model, kind: str) -> FittedOnVal:
    """The shipped values that apply to labels of this kind, with a note on the others.

    Thresholds are of `prob_<class>`, which has the same meaning for a single class of a multiclass model. Calibration,
    sets and confidence are of all classes of the model together.
    """
    answers = class_answers(model)
    if answers.kind == kind:
        return answers.fitted()
    unused = [n for n, p in (("calibration", answers.calibration), ("sets", answers.conformal)) if p is not None]
    notes = (
        [f"The model's {' and '.join(unused)}, for all its classes together, are not applied here."] if unused else []
    )
    return FittedOnVal(operating_points=answers.fitted().operating_points, notes=notes)
