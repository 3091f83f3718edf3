"""log.txt: what a terminal shows in the end, of the first process, from the moment the folder is taken."""

import io
import logging
import os
import sys
import warnings

import pytest

from finetune.errors import FinetuneError
from finetune.runs import log


def text(*chunks: str) -> str:
    screen = log.Screen()
    lines = [line for chunk in chunks for line in screen.feed(chunk)]
    return "\n".join([*lines, *screen.take(len(screen.lines))])


def test_a_screen_keeps_what_stands_in_the_end():
    assert text("a\n", "b", "c\n") == "a\nbc\n"
    assert text("10 %\r", "100 %\r", "done \n") == "done \n"
    assert text("\x1b[31mred\x1b[0m\n") == "red\n"
    bar = ["\x1b[?25l", "A 0 %\nB 0 %", "\r\x1b[2K\x1b[1A\x1b[2KA 9 %\nB 9 %"]
    above = "\r\x1b[2K\x1b[1A\x1b[2Kepoch 0\nA 9 %\nB 9 %"  # a line printed above the bar
    assert text("x\n", *bar, above, "\n\x1b[?25h", "y") == "x\nepoch 0\nA 9 %\nB 9 %\ny"
    assert text("\x1b[?25l", "A 1 %", "\n\x1b[?25h\r\x1b[1A\x1b[2K", "end\n") == "end\n"  # a bar that goes away


def test_lines_above_a_bar_are_settled_while_it_runs():
    screen = log.Screen()
    screen.feed("\x1b[?25lA\nB")
    assert screen.feed("\r\x1b[2K\x1b[1A\x1b[2Kline\nA\nB") == []
    assert screen.feed("\r\x1b[2K\x1b[1A\x1b[2KA\nB") == ["line"]


def fails(job, error: type[Exception]) -> None:
    with pytest.raises(error), log.record():
        job()


def test_all_of_a_job_is_kept_from_before_its_folder_was_made(tmp_path, capsys):
    logger = logging.getLogger("of a test")
    logger.setLevel(logging.WARNING)  # whatever jobs before this one left the root at
    logger.addHandler(logging.StreamHandler(sys.stderr))

    def job():
        print("before")
        log.begin(tmp_path, "python -m finetune a=b")
        assert (tmp_path / "log.txt").read_text().endswith("before\n")  # also of a process that is killed
        print(warnings.formatwarning("careful", UserWarning, "file.py", 1), file=sys.stderr)
        logger.warning("by a logger")
        print("no end of line", end="")
        sys.stderr.writelines([" at", " all\n"])
        raise FinetuneError("so it is")

    fails(job, FinetuneError)
    with log.record():
        log.begin(tmp_path, "python -m finetune resume=x")
    print("after")
    logger.warning("after")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].endswith("] python -m finetune a=b")
    assert lines[1] == "before"
    assert any("UserWarning: careful" in line for line in lines)
    assert lines[-4:-1] == ["by a logger", "no end of line at all", "error: so it is"]
    assert lines[-1].endswith("] python -m finetune resume=x")
    out, err = capsys.readouterr()
    assert out == "before\nno end of lineafter\n"
    assert "careful" in err
    assert err.endswith("by a logger\n at all\nafter\n")


def test_a_traceback_is_kept_too(tmp_path):
    def job():
        log.begin(tmp_path, "x")
        print(1 / 0)

    fails(job, ZeroDivisionError)
    assert (tmp_path / "log.txt").read_text().endswith("ZeroDivisionError: division by zero\n")


def test_a_job_that_takes_no_folder_leaves_no_log(tmp_path):
    with log.record():
        print("nothing")
    assert list(tmp_path.iterdir()) == []


def test_other_processes_keep_none(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with log.record():
        log.begin(tmp_path, "x")
        print("from rank 1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_worker_writes_its_own_lines_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with log.record():
        log.begin(tmp_path, "x")
        print("half", end="")
        if (child := os.fork()) == 0:
            print("from a worker")
            os._exit(0)
        os.waitpid(child, 0)
        print(" a line")
    assert (tmp_path / "log.txt").read_text().splitlines()[1:] == ["from a worker", "half a line"]


def test_streams_keep_what_else_they_can(tmp_path):
    with log.record():
        assert sys.stdout.isatty() is sys.stdout.stream.isatty()  # type: ignore[attr-defined]
        assert sys.stdout.encoding
