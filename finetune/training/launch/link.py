"""A connection between the processes of a job, beside torch's collectives: for runs from rank 0 and for failures.

A collective waits half an hour for a failed process. Waiting here polls, so a failure is known within a second.
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

POLL = 0.1  # seconds between two polls
ARRIVAL = 300.0  # seconds within which all processes of a job must connect
GRACE = 2.0  # seconds for a process to report an error before it is stopped because of another process
STOP_SECONDS = 20.0  # seconds for a stopped process to end by itself
FAILED_SECONDS = 5.0  # the same after a failure


class Link:
    """One process's end of the connection.

    Args:
        tcp: the store of the messages.
        prefix: of their names.
        rank: this process's number; 0 sends runs, the others do them.
        size: the number of processes.
    """

    def __init__(self, tcp: dist.TCPStore, prefix: str, rank: int, size: int):
        self.tcp, self.prefix, self.rank, self.size = tcp, prefix, rank, size
        self.store = dist.PrefixStore(prefix, tcp)  # only used without waiting, so that threads may share it
        self.run_number = 0
        """The current run, counted from 1."""
        self.status = 0
        """The exit status of the first process, once it has ended."""

    # -- the first process ---------------------------------------------------------------------------------------------

    def send_run(self, order: dict[str, Any], check: Callable[[], str | None] = lambda: None) -> None:
        """Send all others their next run, as plain values.

        Args:
            check: gives the reason why a process will never connect, or None.

        Raises:
            FinetuneError: not all processes have connected.
        """
        deadline = time.monotonic() + ARRIVAL
        while (present := 1 + self.store.add("present", 0)) < self.size:
            if reason := check():
                raise FinetuneError(reason)
            if time.monotonic() > deadline:
                raise FinetuneError(
                    f"{present} of {self.size} processes have connected within {ARRIVAL:.0f} s. Start all of them "
                    "(torchrun, srun), or one alone without RANK, WORLD_SIZE and SLURM_NTASKS in its environment."
                )
            time.sleep(POLL)
        self.run_number += 1
        self.store.set(f"order/{self.run_number}", yaml.safe_dump(order, sort_keys=False))

    def end(self, status: int) -> None:
        """End all others with this exit status. Returns once they have read it: the store may end now. After a failure
        one of them may never read it, and the others end by the broken connection."""
        self.store.set("end", str(status))
        deadline = time.monotonic() + (STOP_SECONDS if status == 0 else FAILED_SECONDS)
        while self.store.add("left", 0) < self.store.add("present", 0) and time.monotonic() < deadline:
            time.sleep(POLL)

    # -- the others ----------------------------------------------------------------------------------------------------

    def orders(self) -> Iterator[dict[str, Any]]:
        """The runs that the first process sends, until it ends."""
        self.store.add("present", 1)
        while True:
            self.run_number += 1
            key = f"order/{self.run_number}"
            while not self.store.check([key]):
                if self.store.check(["end"]) and not self.store.check(
                    [key]
                ):  # a run sent between the two checks counts
                    self.status = int(self.store.get("end"))
                    self.store.add("left", 1)
                    return
                time.sleep(POLL)
            yield yaml.safe_load(self.store.get(key))

    # -- all -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close this end; the port is free once rank 0 has closed."""
        del self.tcp, self.store

    def group_store(self) -> dist.Store:
        """A store for the process group of the current run, over a separate connection, as a group waits in it."""
        return dist.PrefixStore(f"{self.prefix}/group/{self.run_number}", self.tcp.clone())

    def wait_for_all(self, where: str, check: Callable[[], str | None]) -> None:
        """Wait until every process of this run has reached `where`.

        Raises:
            FinetuneError: one of them never will; with the reason.
        """
        key = f"{where}/{self.run_number}"
        self.store.add(key, 1)
        while self.store.add(key, 0) < self.size:
            if reason := check():
                raise FinetuneError(reason)
            time.sleep(POLL)

    def report_failure(self, reason: str) -> bool:
        """Report that this process failed in the current run; True if it was the first to fail."""
        message = f"{self.rank} {reason}"
        return self.store.compare_set(f"failed/{self.run_number}", "", message) == message.encode()

    def failure(self) -> str | None:
        """Why the current run cannot continue: another process has failed or ended; else None."""
        try:
            if self.store.check([f"failed/{self.run_number}"]):
                rank, _, reason = self.store.get(f"failed/{self.run_number}").decode().partition(" ")
                return None if int(rank) == self.rank else f"Rank {rank} of {self.size} stopped: {reason}"
            if self.rank > 0 and self.store.check(["end"]):
                return "Rank 0 has ended."
        except RuntimeError:  # torch's error for a broken connection: the process with the store has ended
            return "The connection to rank 0 is lost."
        return None


def connect(address: str, port: int, rank: int, size: int, *, serve: bool, prefix: str) -> Link:
    """The connection over a store at address:port, held by this process (`serve`, port 0 for a free one) or by another.

    Raises:
        FinetuneError: no answer there, or the port is in use.
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
    """Aborts this process's collectives once another process has failed, then the process if it still runs.

    Args:
        check: gives the reason why the run cannot continue, or None.
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
            with contextlib.suppress(Exception):  # whatever a backend raises when it is stopped
                self.abort()
            if not self.done.wait(STOP_SECONDS):
                print(f"error: {reason}", file=sys.stderr, flush=True)
                os._exit(1)
            return

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()
