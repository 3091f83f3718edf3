"""Files through which the processes of a sweep report to the one that started it, on a disk that all see."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.files import write_json_atomic

POLL = 1.0  # seconds between two looks for a stop


@dataclass
class Outcome:
    """Outcome of one run."""

    number: int
    """Counted from 1."""
    folder: Path
    label: str
    """What distinguishes it from the others, as typed: `backbone=resnet18 seed=1`."""
    job: str
    error: str | None = None


@dataclass(frozen=True)
class Board:
    """A folder with a file for the outcome of each run, and one that stops them all."""

    folder: Path

    @classmethod
    def below(cls, sweep: Path) -> "Board":
        """A new board in the folder of a sweep. Its name is drawn, so that no other sweep's outcomes are on it."""
        board = cls(sweep / f".sweep_{secrets.token_hex(4)}")
        board.folder.mkdir(parents=True)
        return board

    def post(self, outcome: Outcome) -> None:
        """Write the outcome of a run, in place of an earlier one."""
        write_json_atomic(self.folder / f"{outcome.number}.json", {**asdict(outcome), "folder": str(outcome.folder)})

    def outcomes(self) -> list[Outcome]:
        """All outcomes, in the order of the runs."""
        read = [json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("*.json")]
        return sorted((Outcome(**{**o, "folder": Path(o["folder"])}) for o in read), key=lambda o: o.number)

    def stop(self) -> None:
        """Stop all runs, those too that Ctrl-C does not reach: on other machines, or still in a queue."""
        with contextlib.suppress(OSError):
            self._stop.touch()

    def is_stopped(self) -> bool:
        return self._stop.is_file()

    def remove(self) -> None:
        """Remove the files, once all runs have ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Inside, `stop` acts on this process as Ctrl-C would."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(POLL):
                if self.is_stopped():
                    os.kill(os.getpid(), signal.SIGINT)
                    return

        thread = threading.Thread(target=watch, daemon=True, name="watch for a stop of the sweep")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @property
    def _stop(self) -> Path:
        return self.folder / "stop"
