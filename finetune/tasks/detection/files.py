"""job=evaluate predictions=FILE labels=FILE of boxes, whoever made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config.settings import EvaluateSettings
from finetune.errors import FinetuneError
from finetune.evaluation.detection.score_files import score_files
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, scoring

if TYPE_CHECKING:
    from finetune.tasks.detection.task import Detection


def score(task: Detection, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
    """Write the table of detections, scores with intervals and a report. Nothing is fitted, and no image is read.

    Raises:
        FinetuneError: a file is missing or no file of boxes, or a key is given that such files do not have.
    """
    say = prepare.make_printer(True)
    if not settings.predictions or not settings.labels:
        raise FinetuneError(
            "predictions=FILE needs labels=FILE, the true boxes of the same images: COCO's json, or a csv with the "
            "columns sample, label, left, top, right and bottom."
        )
    for key in ("image", "label", "patient"):
        if (value := getattr(settings, key)) is not None:
            raise FinetuneError(
                f"{key}={value}: the columns of a csv of boxes have fixed names: sample, label, patient."
            )
    if any(word.lstrip("+").startswith("model=") for word in words):
        raise FinetuneError(
            f"model={settings.model}: task=detect scores files as they are. Leave the model out, or predictions=."
        )
    detections = score_files(settings.predictions, settings.labels)
    task.assessment.check_columns(detections.metadata)
    run.begin(settings.resolved, words)
    about = {"name": Path(settings.labels).name, "kind": "boxes", "classes": detections.classes, "notes": []}
    run.note(data=about)
    scoring.write(run, {"test": detections})
    scores = {"test": task.assessment.score(detections, task.unfitted(), seed=settings.seed)}
    task.report(run.path, scores)
    run.complete(scores)
    for line in task.summary(scores, synthetic=False):
        say(line)
    say(f"detections and scores: {run}")
    say(f"report: {run.report}")
