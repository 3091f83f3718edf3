"""job=evaluate predictions=FOLDER labels=FOLDER of masks, whoever made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config.settings import EvaluateSettings
from finetune.data.regions import Regions
from finetune.errors import FinetuneError
from finetune.evaluation.segmentation.folders import score_folders
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, scoring

if TYPE_CHECKING:
    from finetune.tasks.segmentation.task import Segmentation


def score(task: Segmentation, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
    """Match masks by their file names; write the case table, scores with intervals and a report. Nothing is fitted."""
    say = prepare.make_printer(True)
    names, overlapping = settings.data.options.get("regions"), bool(settings.data.options.get("overlapping"))
    if not settings.labels or not names:
        raise FinetuneError(
            "predictions=FOLDER of masks needs labels=FOLDER, the true ones, and the regions of the pixel values: "
            "data=folder data.regions=[background,lung] (data.overlapping=true where they are bits)."
        )
    regions = Regions([str(name) for name in names], overlapping)
    cases = score_folders(
        Path(str(settings.predictions)),
        Path(settings.labels),
        regions.names,
        regions.overlapping,
        distances=task.assessment.distances,
    )
    run.begin(settings.resolved, words)
    run.note(data={"name": Path(settings.labels).name, "kind": "mask", "classes": regions.names, "notes": []})
    scoring.write(run, {"test": cases})
    scores = {"test": task.assessment.score(cases, task.unfitted())}
    task.report(run.path, scores)
    run.complete(scores)
    for line in task.summary(scores, synthetic=False):
        say(line)
    say(f"cases and scores: {run}")
    say(f"report: {run.report}")
