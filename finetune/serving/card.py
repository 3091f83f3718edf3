"""The facts that stand beside every answer: what the model is, what it was trained on, and how well it did there."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from finetune import __version__
from finetune.evaluation import wording
from finetune.evaluation.metrics import HEADLINES, metric
from finetune.model_file import Model
from finetune.runs.folder import RunFolder
from finetune.runs.known_images import samples_of_fit
from finetune.runs.older_keys import current_scores
from finetune.serving.predictor import Predictor

NOTICE = (
    "A research tool, not a medical device: no decision about a person should rest on its answers. Scores hold for "
    "images such as those they were measured on."
)
SPLITS = ("test", "val")
"""The split whose scores are shown: the first that was scored."""


class Score(BaseModel):
    """A score with its 95 % interval over patients; null where it is undefined."""

    name: str
    title: str
    value: float | None
    low: float | None
    high: float | None


class ClassScore(BaseModel):
    """How well a class is recognised."""

    name: str
    positives: int | None
    """Images of the scored split that have it."""
    auroc: Score | None


class SplitCount(BaseModel):
    """The size of a split of the fit."""

    split: str
    images: int
    patients: int


class ModelCard(BaseModel):
    """What the model is."""

    description: str
    classes: list[str]
    kind: str
    """multiclass: one of the classes; multilabel: any of them."""
    backbone: str
    image_size: int
    trained_on: str | None
    """Name of the data set."""
    synthetic: bool
    """Whether its images were made by a program."""
    splits: list[SplitCount]
    scored_split: str | None
    scored_images: int | None
    scored_patients: int | None
    scores: list[Score]
    class_scores: list[ClassScore]
    harms: list[str]
    """What speaks against the use of the model, measured on that split."""
    calibration: str | None
    """Method; null where probabilities are not calibrated."""
    conformal_coverage: float | None
    novelty: str
    """Whether images unlike the training images are recognised."""
    weights_hash: str
    finetune_version: str
    notice: str = NOTICE


def model_card(predictor: Predictor) -> ModelCard:
    """From the model file and, where they lie beside it, scores.json and samples.csv of its run."""
    model, answers = predictor.model, predictor.answers
    data = model.provenance.get("data") or {}
    split, scores = scores_of(model)
    gaussian = predictor.gaussian
    return ModelCard(
        description=f"{model.spec.backbone} at {model.preprocessing.image_size} px, {answers.kind}, "
        + wording.counted(len(answers.classes), "class", "classes"),
        classes=list(answers.classes),
        kind=answers.kind,
        backbone=model.spec.backbone,
        image_size=model.preprocessing.image_size,
        trained_on=data.get("name"),
        synthetic=bool(data.get("synthetic")),
        splits=split_counts(model),
        scored_split=split,
        scored_images=scores.get("n"),
        scored_patients=scores.get("patients"),
        scores=[
            score(name, metric(name, "classify").in_group(group), scores[group][name])
            for group, name in HEADLINES
            if name in (scores.get(group) or {})
        ],
        class_scores=[
            ClassScore(
                name=name,
                positives=of_class.get("positives"),
                auroc=score("auroc", "AUROC", of_class["auroc"]) if of_class.get("auroc") else None,
            )
            for name, of_class in (scores.get("classes") or {}).items()
        ],
        harms=[str(harm.get("text") or harm.get("short")) for harm in scores.get("harms") or []],
        calibration=None if answers.calibration is None else answers.calibration.method,
        conformal_coverage=None if answers.conformal is None else 1 - answers.conformal.error,
        novelty=f"compared with {wording.counted(len(gaussian.val_distances), 'validation image')}"
        if gaussian is not None
        else "unknown: the features of the training images are not stored beside the model, or of too few images",
        weights_hash=predictor.weights_hash,
        finetune_version=__version__,
    )


def scores_of(model: Model) -> tuple[str | None, dict[str, Any]]:
    """The split that was scored, and its part of scores.json; None and nothing for a model without its run."""
    run = RunFolder.of_model(model)
    try:
        scores = {} if run is None else current_scores(json.loads(run.scores.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None, {}
    split = next((name for name in SPLITS if name in scores), None)
    return split, scores[split] if split else {}


def split_counts(model: Model) -> list[SplitCount]:
    """Images and patients per split of the fit; empty where its record is not beside the model."""
    samples = samples_of_fit(model)
    if samples is None:
        return []
    order = ["train", "val", "test"]
    counts = [
        SplitCount(split=str(split), images=len(rows), patients=rows["patient"].nunique())
        for split, rows in samples.groupby("split", sort=False)
    ]
    return sorted(counts, key=lambda each: order.index(each.split) if each.split in order else len(order))


def score(name: str, title: str, value: dict[str, Any]) -> Score:
    """An entry of scores.json."""
    return Score(name=name, title=title, **{key: value.get(key) for key in ("value", "low", "high")})
