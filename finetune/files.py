"""Writing results so that a file is there whole or not at all, in plain JSON without NaN."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SCORES, MODEL, SAMPLES = "scores.json", "model.safetensors", "samples.csv"
"""Of a run folder, whose other files finetune/runs/folder.py names."""
LONGER = ".longer"
"""In the folder of a finished fit that trains longer: `training` while its results stand as they were, `results` while
they are being replaced."""


def is_finished(run: Path) -> bool:
    """Whether the results in a run folder are whole: scores.json, which comes last, and none that is being replaced."""
    mark = run / LONGER
    return (run / SCORES).is_file() and not (mark.is_file() and mark.read_text(encoding="utf-8") == "results")


def relative_to_cwd(path: Path) -> Path:
    """A path as a command would name it: from the working directory where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def resume_word(run: Path) -> str:
    """resume=RUN as it is typed in a shell."""
    return shlex.quote(f"resume={run}")


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 beside `path`, then put it in its place in one step."""
    return write_bytes_atomic(path, [text.encode("utf-8")])


def write_bytes_atomic(path: str | Path, parts: Iterable[bytes]) -> Path:
    """Write `parts`, one after the other, beside `path`, then put the file in its place in one step."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_json_atomic(path: str | Path, value: Any) -> Path:
    """Write `value` as JSON that any reader takes: numbers that are NaN or infinite become null."""
    return write_text_atomic(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """`value` in dicts, lists, str, int, float, bool and None; what is undefined (NaN, infinite) is None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
