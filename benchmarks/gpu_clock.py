"""Time and memory on a device: interleaved rounds, peaks, limits of time, and whether a batch fits."""

import gc
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from finetune.training.failures import is_out_of_memory

MIB = 2**20
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
SLICE = 0.25  # seconds of one measurement: so many calls are timed together


class TimeUp(Exception):
    """An item took longer than its limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Inside, TimeUp is raised after so many seconds: compiling ends too. For the main thread."""

    def stop(number: int, frame: object) -> None:
        raise TimeUp(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(way: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds per call, by the device's own clock where it has one."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            way()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        way()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / calls


class Clock:
    """Several ways to do the same, timed in turn (A B C, B C A, ...) for about `seconds`, after a warm-up.

    A ratio is formed within a round, so that what slows the whole machine for a while cancels.
    """

    def __init__(self, ways: dict[str, Callable[[], object]], device: torch.device, seconds: float, warm_up: int = 3):
        start = time.monotonic()
        calls = {}
        for name, way in ways.items():
            for _ in range(warm_up):
                way()
            synchronize(device)
            calls[name] = max(1, math.ceil(min(SLICE, seconds) / max(seconds_of(way, device), 1e-6)))
        self.rounds: list[dict[str, float]] = []
        names = list(ways)
        while len(self.rounds) < LEAST_ROUNDS or (
            len(self.rounds) < MOST_ROUNDS and time.monotonic() - start < seconds
        ):
            turn = len(self.rounds) % len(names)
            order = names[turn:] + names[:turn]
            self.rounds.append({name: seconds_of(ways[name], device, calls[name]) for name in order})

    def median(self, name: str) -> float:
        """Seconds per call."""
        return statistics.median(times[name] for times in self.rounds)

    def ratio(self, name: str, to: str) -> tuple[float, float, float]:
        """Time over the time of `to`: median, lower and upper quartile over the rounds."""
        ratios = [times[name] / times[to] for times in self.rounds]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, low, high


def in_words(ratio: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}-{:.2f}]".format(*ratio)


def peak(way: Callable[[], object], device: torch.device) -> float | None:
    """MiB by which one call raises the memory that tensors take; None on a CPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    way()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def fits(way: Callable[[], object], device: torch.device) -> bool:
    """Whether a call finds enough memory. What it has allocated is given back."""
    try:
        way()
        synchronize(device)
        enough = True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        enough = False
    release()
    return enough


def release() -> None:
    """Give back what no tensor needs."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest(fit: Callable[[int], bool], first: int, most: int = 2048) -> int:
    """The largest batch for which `fit` is true, to an eighth of it: by doubling `first`, then halving the gap.

    0 where `first` does not fit; `most` where that fits.
    """
    fitting, size = 0, first
    while size < most and fit(size):
        fitting, size = size, 2 * size
    if not fitting:
        return 0
    if size >= most:
        if fit(most):
            return most
        size = most
    while size - fitting > max(1, fitting // 8):
        middle = (fitting + size) // 2
        fitting, size = (middle, size) if fit(middle) else (fitting, middle)
    return fitting
