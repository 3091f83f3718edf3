"""A line between the processes of a job, beside torch's collectives: rank 0 hands out runs, each reports a failure.

A collective waits half an hour for a process that has failed. Whoever waits here asks again and again, and learns of a
failure within a second.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
import yaml

from finetune.errors import FinetuneError

POLL = 0.1  # seconds between two questions
ARRIVAL = 300.0  # seconds within which all processes of a job must have come
GRACE = 2.0  # seconds for a process to report its own error before it is stopped for another's
LAST = 20.0  # seconds that a stopped process has to end by itself


class Link:
    """One process's end of the line.

    Args:
        tcp: the store that the messages lie in.
        prefix: what their names begin with.
        rank: this process's number; 0 hands out, the others follow.
        size: the number of processes.
    """

    def __init__(self, tcp: dist.TCPStore, prefix: str, rank: int, size: int):
        self.tcp, self.prefix, self.rank, self.size = tcp, prefix, rank, size
        self.store = dist.PrefixStore(prefix, tcp)  # asked only what it answers at once, so that threads may share it
        self.number = 0
        """The run at work, counted from 1."""
        self.status = 0
        """The exit status that the first process ended with, once it has."""

    # -- the first process ---------------------------------------------------------------------------------------------

    def hand(self, order: dict[str, Any], check: Callable[[], str | None] = lambda: None) -> None:
        """Give all others their next run, in plain values.

        Args:
            check: says why a process will never come, if that is known.

        Raises:
            FinetuneError: not all processes have come.
        """
        deadline = time.monotonic() + ARRIVAL
        while (present := 1 + self.store.add("present", 0)) < self.size:
            if reason := check():
                raise FinetuneError(reason)
            if time.monotonic() > deadline:
                raise FinetuneError(
                    f"{present} of {self.size} processes have come within {ARRIVAL:.0f} s. Start all of them "
                    "(torchrun, srun), or one alone without RANK, WORLD_SIZE and SLURM_NTASKS in its environment."
                )
            time.sleep(POLL)
        self.number += 1
        self.store.set(f"order/{self.number}", yaml.safe_dump(order, sort_keys=False))

    def end(self, status: int) -> None:
        """Let all others end, with this exit status. Returns once they know: the store may end with this process."""
        self.store.set("end", str(status))
        deadline = time.monotonic() + LAST
        while self.store.add("left", 0) < self.store.add("present", 0) and time.monotonic() < deadline:
            time.sleep(POLL)

    # -- the others ----------------------------------------------------------------------------------------------------

    def orders(self) -> Iterator[dict[str, Any]]:
        """The runs that the first process hands out, until it ends."""
        self.store.add("present", 1)
        while True:
            self.number += 1
            key = f"order/{self.number}"
            while not self.store.check([key]):
                if self.store.check(["end"]) and not self.store.check([key]):  # a run handed out between the two counts
                    self.status = int(self.store.get("end"))
                    self.store.add("left", 1)
                    return
                time.sleep(POLL)
            yield yaml.safe_load(self.store.get(key))

    # -- all -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up this end; the port is free once rank 0 has."""
        del self.tcp, self.store

    def group_store(self) -> dist.Store:
        """A store for the process group of the run at work, over a connection of its own: a group waits in it."""
        return dist.PrefixStore(f"{self.prefix}/group/{self.number}", self.tcp.clone())

    def meet(self, where: str, check: Callable[[], str | None]) -> None:
        """Wait until every process of this run has come to `where`.

        Raises:
            FinetuneError: one of them never will, and why.
        """
        key = f"{where}/{self.number}"
        self.store.add(key, 1)
        while self.store.add(key, 0) < self.size:
            if reason := check():
                raise FinetuneError(reason)
            time.sleep(POLL)

    def fail(self, reason: str) -> bool:
        """Report that this process failed in the run at work; whether it was the first to fail."""
        mine = f"{self.rank} {reason}"
        return self.store.compare_set(f"failed/{self.number}", "", mine) == mine.encode()

    def failure(self) -> str | None:
        """Why the run at work cannot go on, where another process has said so or is gone."""
        try:
            if self.store.check([f"failed/{self.number}"]):
                rank, _, reason = self.store.get(f"failed/{self.number}").decode().partition(" ")
                return None if int(rank) == self.rank else f"Rank {rank} of {self.size} stopped: {reason}"
            if self.rank > 0 and self.store.check(["end"]):
                return "Rank 0 has ended."
        except RuntimeError:  # torch's own for a broken connection: the process that keeps the store is gone
            return "The connection to rank 0 is lost."
        return None


def connect(address: str, port: int, rank: int, size: int, *, serve: bool, prefix: str) -> Link:
    """The line over a store at address:port, kept by this process (`serve`, port 0 for a free one) or by another.

    Raises:
        FinetuneError: nobody answers there, or the port is taken.
    """
    wait = timedelta(seconds=ARRIVAL)
    try:
        tcp = dist.TCPStore(address, port, is_master=serve, timeout=wait, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        what = "cannot open" if serve else "cannot reach rank 0 at"
        raise FinetuneError(
            f"Rank {rank} {what} MASTER_ADDR={address}, MASTER_PORT={port}: {str(error).splitlines()[0]}"
        ) from None
    return Link(tcp, prefix, rank, size)


class Watch(threading.Thread):
    """Ends this process's collectives once another process has failed, and the process itself where that does not help.

    Args:
        check: says why the run cannot go on, or None.
    """

    def __init__(self, check: Callable[[], str | None], abort: Callable[[], None]):
        super().__init__(daemon=True, name="watch over the other ranks")
        self.check, self.abort = check, abort
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(5 * POLL):
            if (reason := self.check()) is None:
                continue
            if self.done.wait(GRACE):
                return
            with contextlib.suppress(Exception):  # whatever a backend says to being stopped
                self.abort()
            if not self.done.wait(LAST):
                print(f"error: {reason}", file=sys.stderr, flush=True)
                os._exit(1)
            return

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()
