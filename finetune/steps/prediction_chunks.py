"""The list of images of job=predict, predicted chunk by chunk into the parts of its output."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from finetune.config.settings import PredictSettings
from finetune.evaluation import novelty
from finetune.evaluation.answers import Writer
from finetune.image_batches import Images
from finetune.inference import best_device
from finetune.model_file import Model
from finetune.prediction_stream import Progress
from finetune.steps.answer_files import AnswerFormat
from finetune.steps.image_list import Entry, ImageList
from finetune.steps.prediction_heat import HeatMaps
from finetune.steps.prediction_parts import Parts

MAX_LISTED = 20  # unreadable images named on the screen and in environment.json; the table has all
HEATMAP = "heatmap"
"""Column of the file of a heat map."""
LOOK_SECONDS = 5.0  # between two looks at how far other processes are


def predict_chunks(
    settings: PredictSettings,
    model: Model,
    images: ImageList,
    parts: Parts,
    format_: AnswerFormat,
    *,
    writer: Writer | None,
    heat: HeatMaps | None,
    progress: Progress,
) -> None:
    """Predict all chunks that are not done and that no other process does."""
    waiting: deque[tuple[int, list[Entry], Images]] = deque()

    def lists() -> Iterator[Images | None]:
        for number in parts.claims():
            if number is None:
                yield None
                continue
            entries = images.entries(number)
            files = images.images(entries)
            waiting.append((number, entries, files))
            yield files

    count = _Count(images, parts, progress)
    tables = model.predict_stream(
        lists(),
        batch_size=settings.batch_size,
        device=settings.trainer.accelerator,
        workers=max(1, settings.data.num_workers),
        fast=settings.fast,
        tiling=settings.tiling,
        writer=writer,
        observe=None if heat is None else heat.observe,
        progress=count.report,
    )
    for table in tables:
        number, entries, files = waiting.popleft()
        complete(table, entries, files, images.columns, heat)
        parts.write(number, facts_of_chunk(table), format_.encode(table))
        count.own += len(table)


class _Count:
    """How many images are done: by this process, before it, and by others that share the list."""

    def __init__(self, images: ImageList, parts: Parts, progress: Progress):
        self.images, self.parts, self.progress = images, parts, progress
        self.own = 0
        self.others = self.before = min(parts.done_before * images.chunk, len(images))
        self.next_look = time.monotonic() + LOOK_SECONDS
        progress(self.before, len(images))

    def report(self, done: int, total: int) -> None:
        """Takes what the stream of this process reports, (done, total) of its lists so far."""
        if self.parts.is_shared and time.monotonic() > self.next_look:
            self.others = self.parts.count_done() * self.images.chunk - self.own
            self.next_look = time.monotonic() + LOOK_SECONDS
        self.progress(min(self.others + done, len(self.images)), len(self.images))


def complete(
    table: pd.DataFrame, entries: Sequence[Entry], files: Images, carried: Sequence[str], heat: HeatMaps | None
) -> None:
    """Put the user's paths, carried columns and the files of heat maps into the table of a chunk; error stays last."""
    table["path"] = pd.Series([entry.name for entry in entries], dtype=str)
    before_error = len(table.columns) - 1
    if heat is not None:
        names = [heat.name(str(file)) if ok else "" for file, ok in zip(files, table["error"] == "", strict=True)]
        table.insert(before_error, HEATMAP, pd.Series(names, dtype=str))
        before_error += 1
    for place, name in enumerate(carried):
        cells = [entry.cells.get(name, "") for entry in entries]
        table.insert(before_error + place, name, pd.Series(cells, dtype=str))


def facts_of_chunk(table: pd.DataFrame) -> dict[str, Any]:
    """What `Counts` adds up."""
    bad = table[table["error"] != ""]
    return {
        "columns": table.columns.tolist(),
        "rows": len(table),
        "bad": len(bad),
        "listed": bad[["path", "error"]].head(MAX_LISTED).to_numpy().tolist(),
        "unusual": int((table["unusual"] == "yes").sum()) if "unusual" in table else 0,
    }


@dataclass
class Counts:
    """Of the whole list."""

    columns: list[str] = field(default_factory=list)
    rows: int = 0
    bad: int = 0
    """Images that cannot be read."""
    listed: list[list[str]] = field(default_factory=list)
    """Path and reason of the first of them."""
    unusual: int = 0

    @classmethod
    def of(cls, parts: Parts) -> Counts:
        """The sums over all chunks."""
        counts = cls()
        for facts in parts.facts():
            counts.columns = facts["columns"]
            counts.rows += facts["rows"]
            counts.bad += facts["bad"]
            counts.unusual += facts["unusual"]
            counts.listed = (counts.listed + facts["listed"])[:MAX_LISTED]
        return counts


def state_of(settings: PredictSettings, output: Path, model: Model, images: ImageList) -> dict[str, Any]:
    """What the bytes of the chunks depend on, by the name that an error gives it."""
    assert model.path is not None  # it was loaded
    return {
        "model": _hash(model.path),
        "novelty": _hash(model.path.parent / novelty.FILE),
        "list of images": images.digest,
        "root": None if images.root is None else str(Path(images.root).resolve()),
        "format": output.suffix.lower(),
        "device": best_device(settings.trainer.accelerator).type,
        **{
            name: getattr(settings, name)
            for name in ("batch_size", "fast", "operating_point", "tile", "overlap", "heatmaps", "finding")
        },
    }


def _hash(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
