"""One way for all jobs from Python: words, run folder, and a process that stays as it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config import compose, process, running, saved
from finetune.config.overrides import CONFIG_DIRS
from finetune.errors import FinetuneError, Terminated
from finetune.files import relative_to_cwd
from finetune.jobs import run_job as do_job
from finetune.model_file import Model
from finetune.python.frames import TABLE, Data, data_of
from finetune.python.words import UNSET, word, words_of
from finetune.runs.folder import RunFolder
from finetune.runs.read import Run
from finetune.training.launch import ranks

TABLE_WORD = word("data.table", TABLE, {})
"""The word of a DataFrame, until the run folder is known."""


@dataclass
class Done:
    """What a job left: its folder and its result."""

    folder: Path = field(default_factory=Path)
    result: Any = None


def start(job: str, data: Any, arguments: Mapping[str, Any], config_dir: Any = None) -> Done:
    """Run a job as the command line does, from its words on."""
    arguments = dict(arguments)
    config_dir = arguments.pop("config_dir", config_dir)
    done = Done()
    with job_process(config_dir):
        words, table = words_and_table(job, data, arguments)

        def run_here(config: dict[str, Any], folder: Path, typed: list[str]) -> None:
            done.folder = folder
            folder = relative_to_cwd(folder)  # as it is printed
            if table.frame is not None:
                typed = _write_table(table, config, folder, typed)
            try:
                done.result = do_job(config, folder, typed)
            except FinetuneError:
                if not RunFolder(folder).config.exists():  # the job ended before it took the folder
                    (folder / TABLE).unlink(missing_ok=True)
                raise

        with saved.as_choices(words) as chosen, stopped_by_hand(done):
            expanded = compose.expand(chosen)
            # Hydra leaves the loggers of the process alone
            running.run([*expanded, "hydra/job_logging=none", "hydra/hydra_logging=none"], words, run_here)
    return done


def _write_table(table: Data, config: dict[str, Any], folder: Path, typed: list[str]) -> list[str]:
    """Write a DataFrame into the run folder and name it in the configuration; returns the words that name it."""
    RunFolder(folder).check_free()
    file = table.write(folder).absolute()
    config["data"]["table"] = config["data"]["source"]["file"] = str(file)
    return written(typed, file)


def written(words: list[str], table: Path) -> list[str]:
    """The words with the file that a DataFrame was written to."""
    return [word("data.table", str(table), {}) if x == TABLE_WORD else x for x in words]


def words_and_table(job: str, data: Any, arguments: Mapping[str, Any]) -> tuple[list[str], Data]:
    """The words of a job, and its table if that is not a file yet."""
    given = listed(dict(arguments))
    given = {name: value for name, value in given.items() if value is not UNSET}
    table = Data({}) if data is UNSET else data_of(data, given)
    return words_of(job, {**table.arguments, **given}), table


def listed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that may be given in a shorter form."""
    if isinstance(trust := arguments.get("trust"), str):
        arguments["trust"] = [trust]
    for name in ("config", "teacher"):
        if name in arguments and arguments[name] is not UNSET and arguments[name] is not None:
            arguments[name] = path_of(arguments[name])
    return arguments


def path_of(value: Any) -> str:
    """The path of a run, a model or a file.

    Raises:
        FinetuneError: it was never written to a file.
    """
    path = value.folder if isinstance(value, Run) else value.path if isinstance(value, Model) else value
    if not isinstance(path, str | Path) or not str(path):
        raise FinetuneError(
            f"{value!r} has no file. Give a run folder, a model.safetensors, or what was read from one."
        )
    return str(path)


@contextmanager
def job_process(config_dir: Any) -> Iterator[None]:
    """The process for a job, and as it was before afterwards.

    Raises:
        FinetuneError: a launcher started several processes of this script, or another job runs here.
    """
    place = ranks.launched_place()
    if place is not None and place.size > 1:
        raise FinetuneError(
            f"A launcher started {place.size} processes of this program ({place.launcher}={place.size}). From Python "
            "start it once and give devices=N; under torchrun or srun use the command: torchrun ... -m finetune WORDS."
        )
    with process.restored():
        # the processes of devices=N and of loaders import the same modules as this one
        os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        if config_dir:
            folders = [config_dir] if isinstance(config_dir, str | Path) else config_dir
            os.environ[CONFIG_DIRS] = os.pathsep.join(os.path.abspath(Path(name).expanduser()) for name in folders)
        yield


@contextmanager
def stopped_by_hand(done: Done | Path) -> Iterator[None]:
    """Inside, a training that Ctrl-C stopped raises KeyboardInterrupt, with how to go on."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop, Terminated) or stop.code != 130:
            raise
        folder = relative_to_cwd(done if isinstance(done, Path) else done.folder)
        raise KeyboardInterrupt(f"The training was stopped. Go on: finetune.resume({str(folder)!r})") from None
