"""report.html: what a run did, how far its numbers can be trusted, and their provenance, in one file.

Everything is read from the run folder, so the report can be rebuilt at any time; missing files are named. A task has an
entry of RENDERERS: its template, and the function that makes the template's variables.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.files import write_text_atomic
from finetune.pages import classify
from finetune.pages.environment import render
from finetune.runs.folder import RunFolder
from finetune.runs.read import Run

RENDERERS: dict[str, tuple[str, Callable[[Run], dict[str, Any]]]] = {
    "classify": ("report_classify.html.j2", classify.context),
}
"""Task -> template, and the variables that it shows of a run."""


def write_report(folder: Path | str, scores: dict[str, Any] | None = None) -> Path:
    """Write `folder`/report.html from the files of the run in `folder`.

    Args:
        scores: the contents of scores.json for a run that writes it last; by default it is read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FinetuneError(f"{folder} is not a folder; name a run folder, such as outputs/latest.")
    template, context = RENDERERS["classify"]
    page = render(template, **context(Run.read(folder, scores)))
    return write_text_atomic(RunFolder(folder).report, page)
