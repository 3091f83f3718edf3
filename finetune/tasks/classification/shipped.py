"""What a classification model ships, and what of it applies to a table."""

from typing import cast

from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.classification.assessment import FittedOnVal
from finetune.model_file import Model


def class_answers(model: Model) -> ClassAnswers:
    """The answers of a classification model."""
    return cast(ClassAnswers, model.answers)


def shipped(model: Model, kind: str) -> FittedOnVal:
    """What the model ships that goes with labels of this kind, with a note on the rest.

    The thresholds are of `prob_<class>`, which means the same where a class is asked about as a finding; calibration,
    sets and confidence are of all classes of the model together.
    """
    answers = class_answers(model)
    if answers.kind == kind:
        return answers.fitted()
    left = [n for n, p in (("calibration", answers.calibration), ("sets", answers.conformal)) if p is not None]
    notes = [f"The model's {' and '.join(left)}, for all its classes together, are not applied here."] if left else []
    return FittedOnVal(operating_points=answers.fitted().operating_points, notes=notes)
