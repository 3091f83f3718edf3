"""An unfinished prediction: OUTPUT.part/ holds finished chunks, so that it can go on, and be shared by processes.

A chunk is a fixed stretch of the list of images, and a file that appears whole. Its bytes depend on the model, the list
and the settings alone, never on who computes it: these stand in state.json, and another command is an error. A process
locks a chunk (a byte of the file `locks`) while it computes it. Such a lock ends with its process, also by kill -9 and
on other machines of a network file system. Where a file system has no locks, two processes do the same work twice,
and the result is the same.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from finetune.errors import FinetuneError
from finetune.files import write_bytes_atomic, write_json_atomic

try:
    import fcntl
except ImportError:  # Windows: see above
    fcntl = None  # type: ignore[assignment]

Joined = TypeVar("Joined")
POLL_SECONDS = 0.5  # between two looks at what other processes have done
STATE, LOCKS = "state.json", "locks"
WHOLE = 0  # the byte of `locks` for state.json and the output; chunk k has byte k + 1


class Parts:
    """The chunks of a prediction into `output`.

    Args:
        about: what their bytes depend on, in plain values by name.
        n: number of chunks.
    """

    def __init__(self, output: Path, about: dict[str, Any], n: int):
        self.output, self.n = output, n
        self.folder = folder_of(output)
        self.is_shared = False
        """Whether another process was at work on it."""
        self._claimed: set[int] = set()
        self._locks = self._open(about)
        self.done_before = len(self._done())
        """Chunks that were finished when this process began."""

    def _open(self, about: dict[str, Any]) -> IO[bytes]:
        while True:
            self.folder.mkdir(exist_ok=True)
            try:
                self._locks = (self.folder / LOCKS).open("ab+")
            except FileNotFoundError:  # another process has just finished
                continue
            try:
                with self._locked_whole():
                    if self._is_current():
                        self._check(about)
                        return self._locks
            except BaseException:
                self._locks.close()
                raise
            self._locks.close()

    def _check(self, about: dict[str, Any]) -> None:
        state = self.folder / STATE
        try:
            known = json.loads(state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            write_json_atomic(state, about)
            return
        except ValueError:
            known = {}
        here = json.loads(json.dumps(about))
        if different := [name for name in here if here[name] != known.get(name)]:
            values = ", ".join(
                f"{name} {known.get(name)} and not {here[name]}" if len(str(here[name])) < 60 else f"another {name}"
                for name in different
            )
            raise FinetuneError(
                f"{self.folder} holds an unfinished prediction with {values}. Finish it by the command that began it, "
                f"name another output, or remove it: rm -r {self.folder}"
            )

    def claims(self) -> Iterator[int | None]:
        """The numbers of chunks that this process is to do, each once it has its lock; None while the others do the
        rest. It ends when every chunk is done or claimed by this process."""
        idle = False
        while True:
            undone = sorted(set(range(self.n)) - self._done() - self._claimed)
            if not undone or not self._is_current():
                return
            if idle:
                time.sleep(POLL_SECONDS)
            idle = True
            for number in undone:
                if self._lock(number + 1):
                    if not self._file(number).exists():
                        if not self._is_current():
                            return
                        self._claimed.add(number)
                        idle = False
                        yield number
                    else:
                        self._unlock(number + 1)
                else:
                    self.is_shared = True
            if idle:
                yield None

    def begin_anew(self) -> None:
        """Take all chunks, and forget those that are done.

        Raises:
            FinetuneError: another process is at work.
        """
        if not self._lock(1, self.n):
            raise FinetuneError(
                f"output={self.output} is being written by another process. Processes share the predictions of "
                "classifiers only: wait for it, or name another output."
            )
        for number in self._done():
            self._file(number).unlink(missing_ok=True)
        self.done_before = 0

    def give_up(self, keep: bool) -> None:
        """After an error: remove the folder unless finished chunks are to be kept, or another process is at work."""
        if self._is_current() and not (keep and self._done()) and self._lock(1, self.n):
            self.remove()

    def write(self, number: int, facts: dict[str, Any], content: bytes) -> None:
        """A chunk is done: its rows, and facts on them as plain values."""
        write_bytes_atomic(self._file(number), [json.dumps(facts).encode("ascii"), b"\n", content])
        self._unlock(number + 1)

    def facts(self) -> Iterator[dict[str, Any]]:
        """Those of all chunks, in their order."""
        for number in range(self.n):
            with self._file(number).open("rb") as file:
                yield json.loads(file.readline())

    def contents(self) -> Iterator[bytes]:
        """The rows of all chunks, in their order."""
        for number in range(self.n):
            with self._file(number).open("rb") as file:
                file.readline()
                yield file.read()

    def finish(self, join: Callable[[], Joined]) -> Joined | None:
        """Make the output of all chunks by `join`, and remove them; None where another process has done so."""
        with self._locked_whole():
            if not self._is_current():
                return None
            joined = join()
            self.remove()
            return joined

    def remove(self) -> None:
        """Remove all chunks, in one step for other processes."""
        away = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")
        shutil.rmtree(away, ignore_errors=True)
        os.replace(self.folder, away)
        shutil.rmtree(away, ignore_errors=True)

    def close(self) -> None:
        """End all locks of this process."""
        self._locks.close()

    def count_done(self) -> int:
        """Number of finished chunks, of all processes."""
        return len(self._done())

    def _done(self) -> set[int]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return set(range(self.n))
        return {int(name) for name in names if name.isdigit()}

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:08d}"

    def _is_current(self) -> bool:
        """Whether the folder is the one that this process opened: the last process moves it away."""
        try:
            return os.path.samestat(os.stat(self.folder / LOCKS), os.fstat(self._locks.fileno()))
        except FileNotFoundError:
            return False

    @contextmanager
    def _locked_whole(self) -> Iterator[None]:
        self._lock(WHOLE, wait=True)
        try:
            yield
        finally:
            self._unlock(WHOLE)

    def _lock(self, byte: int, count: int = 1, *, wait: bool = False) -> bool:
        """Whether these bytes are ours, or the file system has no locks."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), count, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # no locks here
            return True
        return True

    def _unlock(self, byte: int) -> None:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, byte)


def folder_of(output: Path) -> Path:
    """The folder of the chunks of an output."""
    return output.with_name(f"{output.name}.part")
