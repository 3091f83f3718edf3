"""From a configuration to run folders: Hydra makes them and starts the job in each, here or in other processes."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from finetune.config import build, launchers, saved
from finetune.config.board import Board
from finetune.config.compose import CHECKED, JOBS_REUSING_DATA, inherit_data, plain
from finetune.config.overrides import CONFIG_DIRS, add_force_prefix, conf_dir, parse, search_path
from finetune.config.sweep import Sweep
from finetune.errors import FinetuneError, Terminated
from finetune.training.failures import end_on_sigterm
from finetune.training.launch import ranks
from finetune.training.launch.cores import CORES

RunJob = Callable[[dict[str, Any], Path, list[str]], Any]
CARRIED = (CONFIG_DIRS, "NO_ALBUMENTATIONS_UPDATE")
"""Environment variables that a process of a launcher needs."""


class _JobFailed(BaseException):
    """Carries an error through Hydra, which would print all overrides above any Exception."""

    def __init__(self, error: FinetuneError):
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Job:
    """What is done in each run folder."""

    typed: list[str]
    run_job: RunJob
    is_sweep: bool

    def run(self, config: DictConfig, folder: Path) -> None:
        """Resolve the configuration that Hydra composed, check it, and run its job; an empty folder does not stay."""
        # of a=1,2 the value of this run
        run_words = self.typed
        if self.is_sweep:
            of_run = [word for word in HydraConfig.get().overrides.task if word != saved.WORD]
            run_words = [*(word for word in self.typed if saved.is_config_word(word)), *of_run]
        try:
            if config.job in JOBS_REUSING_DATA:
                # In a sweep Hydra has prefixed the words already, and they have the group that `expand` added.
                words_of_run = run_words if self.is_sweep else add_force_prefix(run_words)
                if not any(override.key_or_group == "data" for override in parse(add_force_prefix(self.typed))):
                    words_of_run = [word for word in words_of_run if not word.startswith("data=")]
                inherit_data(config, words_of_run)
            resolved = plain(config)
            if self.is_sweep and config.job in CHECKED:  # `expand` saw the first run of a sweep alone
                build.check(resolved)
            self.run_job(resolved, folder, run_words)
        except FinetuneError:
            remove_if_empty(folder)
            raise


@dataclass(frozen=True)
class LaunchedTask:
    """What Hydra calls for each run of a sweep in a process of a launcher, which gets a copy of it."""

    job: Job
    sweep: Sweep
    board: Board
    cwd: Path
    environment: dict[str, str]
    cores: int | None
    follow: Callable[[ranks.Place], None]
    """Does the part of a rank above 0, where a cluster started several tasks for a run."""

    def __call__(self, config: DictConfig) -> None:
        if not self.cwd.is_dir():
            raise FinetuneError(f"{self.cwd} is not there. All machines of a sweep must share the working folder.")
        os.chdir(self.cwd)
        os.environ.update(self.environment)
        place = ranks.launched_place()
        if place is not None and place.rank > 0:
            with contextlib.suppress(SystemExit):  # rank 0 reports the outcome
                self.follow(place)
            return
        if self.board.is_stopped():  # it was in a queue
            return
        if self.cores is not None:
            os.environ.pop("OMP_NUM_THREADS", None)  # of the launcher, for a run of a single process
            os.environ[CORES] = str(self.cores)
            torch.set_num_threads(self.cores)
        number, overrides, folder = current_run()
        with ranks.lead(), prefixed_output(f"[{number}] "), self.board.obeyed():
            outcome = self.sweep.begin(number, overrides, folder, config.job)
            self.board.post(outcome)
            try:
                self.sweep.run(outcome, lambda: self.job.run(config, folder))
            except Terminated:
                print(f"error: {outcome.error}", file=sys.stderr, flush=True)
            finally:
                self.board.post(outcome)


def current_run() -> tuple[int, list[str], Path]:
    """Number (from 1), words and folder of the run that Hydra has begun."""
    node = HydraConfig.get()
    return int(node.job.num) + 1, list(node.overrides.task), Path(node.runtime.output_dir)


class LinePrefix:
    """A stream whose lines begin with a prefix; it is no terminal, so that nothing is drawn over."""

    def __init__(self, stream: TextIO, prefix: str):
        self.stream, self.prefix = stream, prefix
        self.line = ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        if lines:  # in a single call, so that lines of other processes do not come between
            self.stream.write("".join(f"{self.prefix}{line}\n" if line else "\n" for line in lines))
            self.stream.flush()
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def prefixed_output(prefix: str) -> Iterator[None]:
    """Within the block lines of this process's output begin with `prefix`."""
    out, err = sys.stdout, sys.stderr
    streams = LinePrefix(out, prefix), LinePrefix(err, prefix)
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            if stream.line:
                stream.write("\n")
        sys.stdout, sys.stderr = out, err


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that ended before it wrote anything, and those of outputs/ that were made for it."""
    if folder.resolve() == Path.cwd():
        return
    home = Path("outputs").resolve()
    for directory in (folder, *(above for above in folder.resolve().parents if above.is_relative_to(home))):
        try:
            directory.rmdir()  # only if empty
        except OSError:
            return


def run(
    words: list[str],
    typed: list[str],
    run_job: RunJob,
    *,
    multirun: bool = False,
    context: AbstractContextManager[None] | None = None,
    follow: Callable[[ranks.Place], None] = lambda place: None,
) -> None:
    """Let Hydra make the run folder, or several, and run the job in it.

    Args:
        words: what `expand` made of what was `typed`.
        run_job: runs the job of a resolved configuration in a run folder; its last argument is what was typed for it.
        context: is entered during the runs of a multirun that follow each other.
        follow: see `LaunchedTask`.

    Raises:
        FinetuneError: the run failed; in a multirun the failed runs, after all runs.
    """
    job = Job(typed, run_job, multirun)
    if not multirun:
        _run_here(words, job, None)
        return
    sweep = Sweep(words)
    sweep.register()
    launcher = launchers.chosen(words, sweep.total)
    if launcher is not None:
        _run_launched(words, job, sweep, launcher, follow)
        return
    with context or nullcontext():
        _run_here(words, job, sweep)
    sweep.finish()


def _run_here(words: list[str], job: Job, sweep: Sweep | None) -> None:
    """A run, or those of a sweep in turn, in this process."""
    at_work = False

    def task(config: DictConfig) -> None:
        nonlocal at_work
        at_work = True  # Hydra has made the run folder
        if sweep is not None:
            number, overrides, folder = current_run()
            outcome = sweep.begin(number, overrides, folder, config.job)
            sweep.run(outcome, lambda: job.run(config, folder))
            at_work = False
            return
        try:
            job.run(config, Path(HydraConfig.get().runtime.output_dir))
        except FinetuneError as error:
            raise _JobFailed(error) from None

    try:
        _start_hydra(task, words, multirun=sweep is not None)
    except _JobFailed as ended:
        raise ended.error from None
    except OSError as error:
        if at_work:
            raise
        raise FinetuneError(
            f"The run folder cannot be made: {error.filename} ({error.strerror}). Move what is in the way, or name "
            f"another place: hydra.{'sweep' if sweep is not None else 'run'}.dir=DIR."
        ) from None


def _run_launched(
    words: list[str],
    job: Job,
    sweep: Sweep,
    launcher: launchers.Launcher,
    follow: Callable[[ranks.Place], None],
) -> None:
    """The runs of a sweep in processes of a launcher; their outcomes come back through files.

    Raises:
        FinetuneError: runs that failed, or a launcher that ended before its runs.
    """
    try:
        board = Board.below(launcher.sweep_dir)
    except OSError as error:
        raise FinetuneError(
            f"The folder of the sweep cannot be made: {error.filename} ({error.strerror}). Move what is in the way, or "
            "name another place: hydra.sweep.dir=DIR."
        ) from None
    environment = {name: os.environ[name] for name in CARRIED if name in os.environ}
    task = LaunchedTask(job, sweep, board, Path.cwd(), environment, launcher.cores, follow)
    escaped = str(launcher.sweep_dir).replace("\\", "\\\\").replace("'", "\\'")
    stopped = None
    end_on_sigterm()
    try:
        _start_hydra(task, [*words, f"hydra.sweep.dir='{escaped}'"], multirun=True)
    except (KeyboardInterrupt, SystemExit):
        board.stop()
        raise
    except Exception as error:  # of any launcher: a process was killed, a cluster refused a job, an option is wrong
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        stopped = f"{launchers.GROUP}={launcher.name}: {first_line}"
    sweep.outcomes = board.outcomes()
    board.remove()
    sweep.finish(stopped)


def _start_hydra(task: Callable[[DictConfig], None], words: list[str], *, multirun: bool) -> None:
    """Hydra's own main function with these words."""
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors pass unchanged, to be distinguished by the caller
    old, sys.argv = sys.argv, [sys.argv[0], *(["--multirun"] if multirun else []), *search_path(), *words]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="config")(task)()
    finally:
        sys.argv = old
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
