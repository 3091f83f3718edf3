"""A study of Optuna that processes and machines may share: opened, continued, run to its number of trials."""

from __future__ import annotations

import os
import random
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from finetune.errors import FinetuneError, Terminated
from finetune.tuning.sampler import NumberedTPE

PROCESS, REASON, SURPLUS = "process", "reason", "surplus"
"""Attributes of a trial: the process that runs it, why it failed, whether it was one too many."""
HEARTBEAT = 60  # seconds between two signs of life of a trial; after three missing ones its process counts as gone
SQLITE_WAIT = 100  # seconds that a process waits for another one's write
ATTEMPTS = 5  # to open a storage that another process makes at the same moment
FIRST_FAILURES = 5  # a search ends when so many first trials have all failed

optuna.logging.set_verbosity(optuna.logging.ERROR)


class TrialFailed(Exception):
    """A trial has failed, and the search goes on."""


def hidden(storage: str) -> str:
    """The URL without its password."""
    try:
        return make_url(storage).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return storage


def make_pruner(name: str, warmup: int, max_epochs: int) -> optuna.pruners.BasePruner:
    """What stops a trial by its val score per epoch.

    Args:
        name: `median` stops below the median of earlier trials at the same epoch, once there are five (Golovin et al.,
            2017); `hyperband` compares trials of one bracket (Li et al., 2018); `none` stops nothing.
        warmup: epochs before the first stop.
        max_epochs: of a whole trial.
    """
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=warmup)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, warmup), max_resource=max(max_epochs, warmup + 1))
    return optuna.pruners.NopPruner()


def make_storage(url: str) -> RDBStorage:
    """The storage with heartbeats, so that a trial of a machine that is gone does not run for ever."""
    arguments: dict[str, Any] = {"connect_args": {"timeout": SQLITE_WAIT}} if url.startswith("sqlite") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(url, engine_kwargs=arguments, heartbeat_interval=HEARTBEAT, grace_period=3 * HEARTBEAT)


def unreachable(url: str, error: Exception) -> FinetuneError:
    """The error for a storage that cannot be opened, in one line."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FinetuneError(f"storage={hidden(url)} cannot be opened: {text}")


@contextmanager
def open_storage(url: str) -> Iterator[RDBStorage]:
    """The storage behind `url`, made where it does not exist.

    Raises:
        FinetuneError: it cannot be reached or is no storage of Optuna.
    """
    storage = None
    for attempt in range(ATTEMPTS):
        try:
            storage = make_storage(url)
            break
        except (OperationalError, ProgrammingError, IntegrityError) as error:
            if attempt + 1 == ATTEMPTS or ("exist" not in str(error) and "UNIQUE" not in str(error).upper()):
                raise unreachable(url, error) from None
            time.sleep(1 + random.random())  # another process makes the tables at this moment
        except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError, ValueError) as error:
            raise unreachable(url, error) from None
    assert storage is not None
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(
    name: str, storage: RDBStorage, facts: dict[str, Any], sampler: NumberedTPE, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The study of this name, made or continued, the trials of dead processes failed.

    Args:
        facts: what all its trials share, in plain values, such as the space and the val images; `higher_is_better` is
            among them. A study that is continued must have the same.

    Raises:
        FinetuneError: the study was made with other facts; names the first.
    """
    directions = optuna.study.StudyDirection
    direction = directions.MAXIMIZE if facts["higher_is_better"] else directions.MINIMIZE
    study = optuna.create_study(
        storage=storage, study_name=name, direction=direction, sampler=sampler, pruner=pruner, load_if_exists=True
    )
    recorded = study.user_attrs
    for key, value in facts.items():
        if key not in recorded:
            study.set_user_attr(key, value)
        elif recorded[key] != value:
            raise FinetuneError(
                f"study={name} was begun with another {key}: {_difference(recorded[key], value)}. Its trials cannot be "
                "compared with new ones: choose another name."
            )
    fail_dead(study)
    return study


def _difference(recorded: Any, value: Any) -> str:
    """The first difference between two plain values."""
    if isinstance(recorded, dict) and isinstance(value, dict):
        key = next(k for k in sorted({*recorded, *value}) if recorded.get(k) != value.get(k))
        return f"{key} was {recorded.get(key, 'absent')}, is {value.get(key, 'absent')}"
    return f"it was {recorded}, is {value}"


# -- trials of processes that ended ------------------------------------------------------------------------------------


def this_process() -> list[Any]:
    """Host, process id, and when the process began, as ids are used again."""
    return [socket.gethostname(), os.getpid(), _began(os.getpid())]


def _began(process: int) -> str | None:
    """Start time of a process in ticks since boot; None where the system does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def is_dead(process: list[Any]) -> bool:
    """Whether a process of this machine has ended; those of other machines are judged by their heartbeats."""
    host, number, began = process
    if host != socket.gethostname():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return began is not None and _began(number) != began


def fail_dead(study: optuna.Study) -> list[int]:
    """Fail the running trials whose process has ended; their numbers. They do not count towards the total."""
    dead = [
        trial.number
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if PROCESS in trial.user_attrs and is_dead(trial.user_attrs[PROCESS])
    ]
    for number in dead:
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    return dead


# -- running -----------------------------------------------------------------------------------------------------------


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial counts towards the total: all but the waiting ones, and those that were killed or surplus."""
    if trial.state == TrialState.WAITING or SURPLUS in trial.user_attrs:
        return False
    return trial.state != TrialState.FAIL or REASON in trial.user_attrs


def num_counted(study: optuna.Study, below: int | None = None) -> int:
    """The number of trials that count, or of those with a smaller number than `below`."""
    trials = study.get_trials(deepcopy=False)
    return sum(counts(trial) for trial in trials if below is None or trial.number < below)


def running_elsewhere(study: optuna.Study) -> list[int]:
    """Numbers of the trials that run now; this process runs none when it asks."""
    fail_dead(study)
    return [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]


def run_trials(study: optuna.Study, total: int, objective: Callable[[Trial], float]) -> None:
    """Run trials until the study has `total` of them, those of other processes included.

    An error of a trial is recorded as its reason, and the next trial begins; Ctrl-C ends the search.

    Args:
        objective: the value of a trial, or optuna.TrialPruned.

    Raises:
        FinetuneError: the first trials have all failed.
    """

    def one_trial(trial: Trial) -> float:
        trial.set_user_attr(PROCESS, this_process())
        if num_counted(study, below=trial.number) >= total:  # several processes have begun the last trial at once
            trial.set_user_attr(SURPLUS, True)
            raise TrialFailed
        return guarded(trial, objective)

    while True:
        fail_dead(study)  # trials of other processes that were killed meanwhile are made up for
        if num_counted(study) >= total:
            return
        optimize(study, one_trial)
        check_first_failures(study)


def optimize(study: optuna.Study, objective: Callable[[Trial], float]) -> None:
    """One trial; a failed one is no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of heartbeats
        study.optimize(objective, n_trials=1, catch=(TrialFailed,))


def guarded(trial: Trial, objective: Callable[[Trial], float]) -> float:
    """The value of a trial; an error becomes its recorded reason and a TrialFailed."""
    start = time.monotonic()
    try:
        return objective(trial)
    except optuna.TrialPruned:
        raise
    except Terminated:
        raise
    except SystemExit:  # Lightning's end after a signal
        raise KeyboardInterrupt from None
    except Exception as error:
        if not isinstance(error, FinetuneError):
            traceback.print_exc()
        text = str(error) if isinstance(error, FinetuneError) else traceback.format_exception_only(error)[-1].strip()
        trial.set_user_attr(REASON, text)
        raise TrialFailed from None
    finally:
        trial.set_user_attr("seconds", round(time.monotonic() - start, 1))


def check_first_failures(study: optuna.Study) -> None:
    """Refuse to go on where nothing has ever worked.

    Raises:
        FinetuneError: FIRST_FAILURES trials have failed, and no other has ended.
    """
    ended = [trial for trial in study.get_trials(deepcopy=False) if counts(trial) and trial.state.is_finished()]
    if len(ended) >= FIRST_FAILURES and all(trial.state == TrialState.FAIL for trial in ended):
        raise FinetuneError(
            f"study={study.study_name}: all of the first {len(ended)} trials have failed. "
            f"The last: {ended[-1].user_attrs[REASON]}"
        )
