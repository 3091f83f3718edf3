"""log.txt of a run folder: output, warnings and errors of the first process, without redrawn progress bars."""

import io
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from finetune.errors import FinetuneError
from finetune.training.launch import ranks

TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b.?|\r|\n|[^\x1b\r\n]+")
"""A control sequence, an end of line, or text."""


class Screen:
    """The final lines of a terminal, without what was overwritten, such as progress bars.

    Of control sequences only those are obeyed that move up or erase; colours and the rest are dropped.
    """

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.live = False  # between hiding the cursor and showing it: lines may be drawn over

    def feed(self, text: str) -> list[str]:
        """Process `text`; returns the lines that can no longer be overwritten."""
        top = self.row if "\r" in text or not self.live else 0
        for token in TOKEN.finditer(text):
            argument, command = token.groups()
            if token[0] == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif token[0] == "\r":
                self.column = 0
            elif command:
                self._control(argument, command)
                top = min(top, self.row)
            elif not token[0].startswith("\x1b"):
                line = self.lines[self.row].ljust(self.column)
                end = self.column + len(token[0])
                self.lines[self.row] = line[: self.column] + token[0] + line[end:]
                self.column = end
        return self.take(top if self.live else self.row)

    def _control(self, argument: str, command: str) -> None:
        number = int(argument) if argument.isdigit() else 0
        if command == "A":
            self.row = max(0, self.row - max(1, number))
        elif command == "K":
            self.lines[self.row] = "" if number == 2 else self.lines[self.row][: self.column]
        elif argument == "?25":
            self.live = command == "l"

    def take(self, count: int) -> list[str]:
        """Remove and return the first `count` lines."""
        settled, self.lines = self.lines[:count], self.lines[count:] or [""]
        self.row = max(0, self.row - count)
        return settled


class Log:
    """Collects text from the streams until the file is known, then writes line by line."""

    def __init__(self) -> None:
        self.screen = Screen()
        self.waiting: list[str] = []
        self.file: TextIO | None = None
        self.process = os.getpid()
        self.lock = threading.Lock()  # a progress bar draws from another thread

    def feed(self, text: str) -> None:
        if os.getpid() != self.process:  # a forked worker does not write to the screen
            self._write([text.rstrip("\n")] if text.strip() else [])
            return
        with self.lock:
            self._write(self.screen.feed(text))

    def begin(self, path: Path, title: str) -> None:
        """From now on append to `path`, beginning with `title`."""
        if self.file is None:
            waiting, self.waiting = self.waiting, []
            self.file = path.open("a", encoding="utf-8")
            self._write([title, *waiting])

    def end(self) -> None:
        """Write the remaining lines and close."""
        self._write([line for line in self.screen.take(len(self.screen.lines)) if line.strip()])
        if self.file is not None:
            self.file.close()
        self.file, self.waiting, self.process = None, [], -1

    def _write(self, lines: list[str]) -> None:
        if self.file is None:
            self.waiting += lines
        elif lines:
            try:
                self.file.write("".join(f"{line.rstrip()}\n" for line in lines))
                self.file.flush()
            except OSError:  # a full disk: the job itself reports it
                return


class Tee:
    """A stream whose text also goes into a log."""

    def __init__(self, stream: TextIO, log: Log):
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        written = self.stream.write(text)
        if self.log.process >= 0:
            self.log.feed(text)
        return written

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_current: Log | None = None


@contextmanager
def record() -> Iterator[None]:
    """Copies output of the first process within the block to the log.txt that `begin` names, if any."""
    global _current
    if ranks.rank() != 0 or _current is not None:
        yield
        return
    _current = log = Log()
    out, err = sys.stdout, sys.stderr
    tees = Tee(out, log), Tee(err, log)
    sys.stdout, sys.stderr = tees
    _redirect({out: tees[0], err: tees[1]})
    try:
        yield
    except FinetuneError as error:
        log.feed(f"error: {error}\n")
        raise
    except KeyboardInterrupt:
        log.feed("stopped.\n")
        raise
    except Exception:
        log.feed(traceback.format_exc())
        raise
    finally:
        sys.stdout, sys.stderr = out, err
        _redirect({tees[0]: out, tees[1]: err})
        log.end()
        _current = None


def begin(file: Path, command: str) -> None:
    """The job has a run folder: write its log to `file` from now on, with all that was printed before."""
    if _current is not None:
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        _current.begin(file, f"[{when}] {command}")


def _redirect(streams: dict[Any, Any]) -> None:
    """Redirect loggers, which keep the stream that they were created with."""
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler.stream, io.BufferedIOBase):
            for old, new in streams.items():
                if handler.stream is old:
                    handler.setStream(new)
                    break
