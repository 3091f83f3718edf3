"""report.html: what a run did, how far its numbers can be trusted, and their provenance, in one file.

Everything is read from the run folder, so the report can be rebuilt at any time; missing files are named. A task has an
entry of RENDERERS: its template, which extends report.html.j2, and the function that makes the template's variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.files import write_text_atomic
from finetune.pages import classify, detect, segment
from finetune.pages.environment import render
from finetune.runs.folder import RunFolder
from finetune.runs.read import Run

Renderer = tuple[str, Callable[[Run, Path], dict[str, Any]]]

CLASSIFY, SEGMENT, DETECT = "classify", "segment", "detect"
RENDERERS: dict[str, Renderer] = {
    CLASSIFY: ("report_classify.html.j2", lambda run, folder: classify.context(run)),
    SEGMENT: ("report_segment.html.j2", segment.context),
    DETECT: ("report_detect.html.j2", detect.context),
}
"""Task -> template, and the variables that it shows of a run in a folder."""
KINDS = {"segmentation": SEGMENT, "detection": DETECT}
"""`kind` of the scores of a split -> task; other kinds are of labels."""


def write_report(folder: Path | str, scores: dict[str, Any] | None = None) -> Path:
    """Write `folder`/report.html from the files of the run in `folder`, as its task has it.

    Args:
        scores: the contents of scores.json for a run that writes it last; by default it is read.

    Raises:
        FinetuneError: no folder, or a task that has no report.
    """
    return _write(folder, scores)


def write_segment_report(folder: Path | str, scores: dict[str, Any] | None = None) -> Path:
    """The report of masks, whatever config.yaml says; arguments as those of `write_report`."""
    return _write(folder, scores, SEGMENT)


def write_detect_report(folder: Path | str, scores: dict[str, Any] | None = None) -> Path:
    """The report of boxes, whatever config.yaml says; arguments as those of `write_report`."""
    return _write(folder, scores, DETECT)


def task_of(run: Run) -> str:
    """The task that config.yaml names, else that of the scores."""
    task = run.config.get("task")
    name = task.get("name") if isinstance(task, Mapping) else task
    kinds = [of_split.get("kind") for of_split in run.scores.values()]
    return str(name) if name else next((KINDS[kind] for kind in kinds if kind in KINDS), CLASSIFY)


def _write(folder: Path | str, scores: dict[str, Any] | None, task: str | None = None) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise FinetuneError(f"{folder} is not a folder; name a run folder, such as outputs/latest.")
    run = Run.read(folder, scores)
    name = task or task_of(run)
    if name not in RENDERERS:
        raise FinetuneError(
            f"task={name} of {folder} has no report; there are {', '.join(RENDERERS)}. A task of your own adds its "
            "template and variables to finetune.pages.report.RENDERERS."
        )
    template, context = RENDERERS[name]
    return write_text_atomic(RunFolder(folder).report, render(template, **context(run, folder)))
