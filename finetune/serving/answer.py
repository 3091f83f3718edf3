"""The answer for one image, as JSON: every field is a field of model.predict, or says how far to trust it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from finetune.evaluation.classification.thresholds import Criterion
from finetune.serving.card import NOTICE, ModelCard
from finetune.serving.predictor import Output, Predictor

SIDES = ("yes", "no")


class ClassAnswer(BaseModel):
    """One class."""

    name: str
    probability: float
    """As prob_<class>: sigmoid or softmax, not calibrated. Thresholds are of this value."""
    calibrated: float | None
    """The probability to read; null for a class without a calibration."""
    positive: bool
    """Whether the decision names the class."""
    threshold: float | None
    """Of `probability`: of multilabel the one that decides, of multiclass that of the first operating point."""
    threshold_calibrated: float | None
    """The same place on the scale of `calibrated`; null where there is none."""
    operating_point: str | None
    """Whose threshold it is; null for 0.5, which was not chosen on val."""
    conformal: list[str] | None
    """Of multilabel: yes, no, both (uncertain) or neither; null without conformal sets."""


class Decision(BaseModel):
    """The classes that the model decides for."""

    classes: list[str]
    text: str
    rule: str


class OperatingPoint(BaseModel):
    """Thresholds of `probability` that met a criterion on val."""

    name: str
    criterion: str
    thresholds: dict[str, float]


class ConformalSet(BaseModel):
    """The classes that cannot be ruled out."""

    coverage: float
    """Share of the sets that hold the truth, for images like those of val."""
    classes: list[str] | None
    """Of multiclass; empty where every class can be ruled out. Of multilabel see `conformal` of each class."""


class Novelty(BaseModel):
    """How unlike the training images this one is."""

    percent: float
    """Of the validation images, those that are more like the training images than this one."""
    unusual: bool
    """Whether it lies beyond the 99th percentile."""


class Caution(BaseModel):
    """What speaks against relying on the answer."""

    kind: Literal["unusual", "novelty unknown", "trained on", "chosen by", "known images unknown", "conformal empty"]
    text: str


class HeatMap(BaseModel):
    """Where the evidence for a class lies, by Grad-CAM. It does not explain why the network decides as it does."""

    name: str
    method: str
    image: str
    """A JPEG as a data URL, of the square that the network sees."""


class Answer(BaseModel):
    """What POST /predict answers."""

    request_id: str
    height: int
    width: int
    classes: list[ClassAnswer]
    decision: Decision
    operating_points: list[OperatingPoint]
    conformal: ConformalSet | None
    novelty: Novelty | None
    split_of_fit: str | None
    """train, val or test where the model's fit had exactly these pixels."""
    warnings: list[Caution]
    heat_map: HeatMap | None
    preview: str | None
    """The image as it was decoded, a JPEG as a data URL."""
    model: ModelCard
    notice: str = NOTICE


def make_answer(
    predictor: Predictor,
    card: ModelCard,
    output: Output,
    *,
    request_id: str,
    size: tuple[int, int],
    split: str | None,
    heat_map: HeatMap | None = None,
    preview: str | None = None,
) -> Answer:
    """Put the answer together.

    Args:
        size: height and width of the decoded image.
        split: of the model's fit, if it had the image.
    """
    answers = predictor.answers
    columns = answers.columns(output.logits[None])
    decided = str(columns["decision"][0])
    names = [decided] if answers.kind == "multiclass" else above_threshold(predictor, columns)
    gaussian = predictor.gaussian
    novelty = None
    if gaussian is not None and output.distance is not None:
        distance = np.array([output.distance])
        novelty = Novelty(percent=gaussian.percentile(distance)[0], unusual=bool(gaussian.unusual(distance)[0]))
    conformal = conformal_set(predictor, columns)
    return Answer(
        request_id=request_id,
        height=size[0],
        width=size[1],
        classes=[class_answer(predictor, columns, name, name in names) for name in answers.classes],
        decision=Decision(classes=names, text=decided, rule=answers.decision()),
        operating_points=operating_points(predictor),
        conformal=conformal,
        novelty=novelty,
        split_of_fit=split,
        warnings=warnings(predictor, novelty, split, conformal),
        heat_map=heat_map,
        preview=preview,
        model=card,
    )


def class_answer(predictor: Predictor, columns: dict[str, Any], name: str, positive: bool) -> ClassAnswer:
    """One class of the columns of a single image."""
    calibrated = columns.get(f"calibrated_{name}")
    sides = columns.get(f"set_{name}")
    threshold, point = threshold_of(predictor, name)
    return ClassAnswer(
        name=name,
        probability=float(columns[f"prob_{name}"][0]),
        calibrated=None if calibrated is None else float(calibrated[0]),
        positive=positive,
        threshold=threshold,
        threshold_calibrated=None if threshold is None else calibrated_threshold(predictor, name, threshold),
        operating_point=point,
        conformal=None if sides is None else [side for side in SIDES if side in sides[0].split("|")],
    )


def above_threshold(predictor: Predictor, columns: dict[str, Any]) -> list[str]:
    """The classes of a multilabel model whose probability reaches its threshold."""
    thresholds = predictor.answers.thresholds
    return [name for name, about in thresholds.items() if columns[f"prob_{name}"][0] >= about["threshold"]]


def threshold_of(predictor: Predictor, name: str) -> tuple[float | None, str | None]:
    """The threshold that is shown of a class, and its operating point."""
    answers = predictor.answers
    if name in answers.thresholds:
        about = answers.thresholds[name]
        return about["threshold"], about["point"]
    for point, values in answers.operating_points.items():
        if name in values["thresholds"]:
            return values["thresholds"][name], point
    return None, None


def calibrated_threshold(predictor: Predictor, name: str, threshold: float) -> float | None:
    """The calibrated probability of an image whose `probability` is the threshold.

    None without a calibration, and of multiclass with more than two classes, where it depends on all probabilities.
    """
    answers = predictor.answers
    if answers.calibration is None or (answers.kind == "multiclass" and len(answers.classes) > 2):
        return None
    clipped = min(max(threshold, 1e-9), 1 - 1e-9)
    logits = np.zeros((1, len(answers.classes)))
    k = answers.classes.index(name)
    logits[0, k] = np.log(clipped / (1 - clipped))  # of two classes the other logit is 0
    value = answers.calibration.probabilities(logits)[0, k]
    return None if np.isnan(value) else float(value)


def operating_points(predictor: Predictor) -> list[OperatingPoint]:
    """All operating points of the model."""
    return [
        OperatingPoint(
            name=name,
            criterion=str(Criterion(values["goal"], values.get("value"))) if "goal" in values else "",
            thresholds=values["thresholds"],
        )
        for name, values in predictor.answers.operating_points.items()
    ]


def conformal_set(predictor: Predictor, columns: dict[str, Any]) -> ConformalSet | None:
    """The set of an image; None for a model without sets."""
    conformal = predictor.answers.conformal
    if conformal is None:
        return None
    coverage = 1 - conformal.error
    if conformal.kind != "multiclass":
        return ConformalSet(coverage=coverage, classes=None)
    probs = np.array([[columns[f"prob_{name}"][0] for name in conformal.classes]])
    return ConformalSet(coverage=coverage, classes=[n for n, held in conformal.sets(probs).items() if held[0]])


def warnings(
    predictor: Predictor, novelty: Novelty | None, split: str | None, conformal: ConformalSet | None
) -> list[Caution]:
    """What speaks against relying on the answer, the most important first."""
    found: list[Caution] = []
    if novelty is None:
        text = "It is unknown whether this image is like the training images: their features are not stored."
        found.append(Caution(kind="novelty unknown", text=text))
    elif novelty.unusual:
        text = (
            "This image is unlike the training images: it is farther from them than 99 % of the validation images. "
            "Do not rely on the answer."
        )
        found.append(Caution(kind="unusual", text=text))
    if predictor.splits is None:
        text = "It is unknown whether the model was trained on this image: there is no samples.csv beside it."
        found.append(Caution(kind="known images unknown", text=text))
    elif split == "train":
        text = "The model was trained on exactly this image: the answer says nothing about new images."
        found.append(Caution(kind="trained on", text=text))
    elif split == "val":
        text = "The model was chosen by exactly this image, a validation image of its fit: the answer is optimistic."
        found.append(Caution(kind="chosen by", text=text))
    if conformal is not None and conformal.classes == []:
        text = "Every class can be ruled out: the image is unlike those of the validation split."
        found.append(Caution(kind="conformal empty", text=text))
    return found
