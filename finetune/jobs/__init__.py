"""Jobs: what `job=NAME` does, each in a file that reads from top to bottom."""

from importlib import import_module
from pathlib import Path
from typing import Any

from finetune.errors import one_of

JOBS = ("fit", "evaluate", "explain", "predict", "preview", "compare")


def run_job(config: dict[str, Any], run: Path, words: list[str] | None = None, **more: Any) -> None:
    """Do the configuration's job in the run folder `run`; `words` is what was typed, for the record."""
    name = config["job"]
    if name not in JOBS:
        raise one_of("job", name, JOBS)
    from finetune.jobs.log import record

    with record():
        getattr(import_module(f"finetune.jobs.{name}"), name)(config, run, words or [], **more)
