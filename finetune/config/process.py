"""What a job changes in the process that it runs in, and how the process gets it back: for jobs called from Python."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase

from finetune.errors import FinetuneError

_lock = threading.Lock()
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGCONT")
"""Signals that Lightning or this program handle while a job runs."""
QUIET = ("lightning.pytorch", "lightning.fabric")
"""Loggers whose tips and facts a job does not show."""


@contextmanager
def restored() -> Iterator[None]:
    """Inside, a job may run as in a process of its own; afterwards the process is as it was before.

    Restored are environment variables, the working folder, sys.argv, warning filters, levels of loggers, signal
    handlers, the states of random number generators, torch's threads and switches, and the user's own Hydra.

    Raises:
        FinetuneError: another job runs in this process.
    """
    if not _lock.acquire(blocking=False):
        raise FinetuneError(
            "Another job of finetune runs in this process, which has one log, one environment and one random state. "
            "Wait for its end, or start a process for each job."
        )
    try:
        environment, folder, argv = dict(os.environ), os.getcwd(), list(sys.argv)
        generators, switches, hydra = _generators(), _switches(), _hydra()
        handlers, levels = _handlers(), _levels()
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks up its newest version on the internet
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            with warnings.catch_warnings():
                yield
        finally:
            _restore_handlers(handlers)
            _restore_levels(levels)
            _restore_hydra(hydra)
            _restore_switches(switches)
            _restore_generators(generators)
            sys.argv[:] = argv
            if os.environ != environment:
                os.environ.clear()
                os.environ.update(environment)
            os.chdir(folder)
    finally:
        _lock.release()


def _generators() -> tuple[Any, ...]:
    """The states of the random number generators of Python, numpy and torch."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus


def _restore_generators(states: tuple[Any, ...]) -> None:
    of_python, of_numpy, of_torch, gpus = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if gpus is not None:
        torch.cuda.set_rng_state_all(gpus)


def _switches() -> tuple[Any, ...]:
    """Threads and switches of torch that the settings of a trainer change."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    of_numbers = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    torch.set_default_dtype(torch.float32)  # these three as in a new process
    torch.set_float32_matmul_precision("highest")
    torch.set_grad_enabled(True)
    return torch.get_num_threads(), deterministic, warn_only, torch.backends.cudnn.benchmark, of_numbers


def _restore_switches(switches: tuple[Any, ...]) -> None:
    threads, deterministic, warn_only, benchmark, (dtype, precision, grad) = switches
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_grad_enabled(grad)


def _handlers() -> dict[int, Any]:
    """The handlers of SIGNALS; none outside the main thread, where nothing sets one."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    return {number: signal.getsignal(number) for number in numbers}


def _restore_handlers(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:  # None: it was not set by Python
            signal.signal(number, handler)


def _levels() -> dict[logging.Logger, tuple[int, bool]]:
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    return {logger: (logger.level, logger.disabled) for logger in loggers}


def _restore_levels(levels: dict[logging.Logger, tuple[int, bool]]) -> None:
    for logger, (level, disabled) in levels.items():
        logger.disabled = disabled
        if logger.level != level:
            logger.setLevel(level)


def _hydra() -> list[tuple[Any, dict[str, Any]]]:
    """The state of Hydra; the user's own is then put aside."""
    runtime = JobRuntime.instance()
    singletons: list[Any] = [GlobalHydra.instance(), HydraConfig.instance(), runtime, VersionBase.instance()]
    state = [(singleton, dict(vars(singleton))) for singleton in singletons]
    GlobalHydra.instance().clear()
    runtime.conf = runtime.conf.copy()
    return state


def _restore_hydra(state: list[tuple[Any, dict[str, Any]]]) -> None:
    for singleton, values in state:
        Singleton._instances[type(singleton)] = singleton  # initialize(...) puts a copy in its place
        vars(singleton).clear()
        vars(singleton).update(values)
