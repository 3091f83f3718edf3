"""What job=explain does for every task: open a split of the data, and write the files and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.config import build
from finetune.config.settings import ExplainSettings
from finetune.data.audit.contact_sheet import write_sheet
from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.evaluation.answers import PredictionsTable
from finetune.files import write_json_atomic
from finetune.inference import best_device, eval_mode
from finetune.model_file import Model
from finetune.pages import explanation as page
from finetune.runs import known_images
from finetune.runs.environment import command
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, scoring
from finetune.steps.image_files import image_files
from finetune.steps.task import Say, Subject, Task

MAX_FILES = 200  # images on one page
MAX_LOCATED = 8  # maps on the page of those that are compared with truth
NUM_TESTS = 64  # maps of the randomisation test


@dataclass(frozen=True)
class OpenedSplit:
    """A split of the data, with the model's answers for it."""

    subject: Subject
    predictions: Any
    """The task's table of predictions."""
    fitted: Any
    """The values that the model ships."""
    about: dict[str, Any]
    """Entry `data` of explain.json."""
    known: list[str]
    """Sentences on images that the model was trained on."""
    seen: bool
    """Whether the model was trained on some of the images."""


def open_split(
    task: Task,
    settings: ExplainSettings,
    model: Model,
    run: RunFolder,
    words: list[str],
    say: Say,
    *,
    predict: Callable[[Subject, Any], PredictionsTable | None],
    check: Callable[[SampleTable], None] = lambda table: None,
) -> OpenedSplit:
    """Select, decode and predict a split; an opening of the model's test split is counted.

    Args:
        predict: subject and fitted values -> the table of predictions.
        check: raises a FinetuneError where the settings do not go with the table, before an image is read.
    """
    source = build.source(settings).table()
    table, split_in_table, split = prepare.select_split(task, source, settings.split, settings.data, model, say)
    check(table)
    run.begin(settings.resolved, words)
    table, images, _ = prepare.decode_and_audit(settings.data, table, model.preprocessing, say, run)
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, model.preprocessing)
    overlap = known_images.find(model, table, images, data.rows(split_in_table))
    leaks = overlap.stop(split, "warn")
    for sentence in leaks:
        say(sentence)
    accelerator = settings.trainer.accelerator
    model.network.to(best_device(accelerator))
    rows = data.rows(split_in_table)
    subject = Subject(model.network, data, rows, split, model, accelerator, settings.seed, model.tta)
    fitted = task.shipped(model, table)
    predictions = predict(subject, fitted)
    assert predictions is not None  # a single process
    opened_run = scoring.count_opening(model, table.name, predictions, overlap, words, say)
    if opened_run is not None:
        task.report(opened_run.path)  # it shows the number of test openings
    about = {"name": table.name, "split": split, "images": len(predictions), "synthetic": table.synthetic}
    return OpenedSplit(subject, predictions, fitted, about, leaks, bool(overlap.sentences))


def finish(
    settings: ExplainSettings,
    model: Model,
    run: RunFolder,
    words: list[str],
    say: Say,
    method: str,
    result: dict[str, Any],
    figures: Sequence[page.Figure],
) -> None:
    """Write explain.json, the sheet of images and the page, and print the sentences of the result.

    Args:
        method: a name of `pages.explanation.METHODS`.
    """
    run.note(model={"path": settings.model, "weights_hash": model.weights_hash})
    about = {"weights_hash": model.weights_hash}
    result = {"model": about, "method": method, "grid": grid_size(model), **result}
    write_json_atomic(run.explanation, result)
    tiles = [tile for figure in figures for tile in (figure.image, figure.heated)]
    captions = [text for figure in figures for text in figure.caption.rsplit(": ", 1)]  # the caption, and the file
    write_sheet(run.explanation_sheet, tiles, captions, columns=6)
    page.write(run.explanation_page, result, figures, command(words))
    for sentence in page.sentences(result):
        say(sentence)
    say(f"page: {run.explanation_page}")


def chosen_files(settings: ExplainSettings) -> list[Path]:
    """The files behind `images=`.

    Raises:
        FinetuneError: there are none, or more than a page holds.
    """
    files = image_files(settings.images, "images")
    if len(files) > MAX_FILES:
        raise FinetuneError(f"images={settings.images} names {len(files):,} images; a page holds {MAX_FILES}.")
    return files


def grid_size(model: Model) -> list[int]:
    """Height and width of the network's last map, the resolution of Grad-CAM."""
    side, channels = model.preprocessing.image_size, model.preprocessing.in_channels
    device = next(model.network.parameters()).device
    with torch.no_grad(), eval_mode(model.network):
        last = model.network.backbone.forward_features(torch.zeros(1, channels, side, side, device=device))
    return [int(side) for side in last.shape[-2:]]


def evenly_spaced(n: int, maximum: int) -> list[int]:
    """At most `maximum` of the numbers below `n`, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, maximum)).round().astype(int)).tolist() if min(n, maximum) else []


def table_rows(data: ImageData, samples: Sequence[str]) -> list[int]:
    """Rows of the sample table by their paths."""
    row_of = {path: row for row, path in enumerate(data.table.paths)}
    return [row_of[sample] for sample in samples]


def input_image(data: ImageData, row: int) -> np.ndarray:  # -> uint8 (S, S) or (S, S, 3)
    """The image as the network sees it, before normalisation."""
    return data.preprocessing.crop(data.images[row])


def load_inputs(data: ImageData, rows: Sequence[int]) -> torch.Tensor:  # -> (N, C, S, S)
    """Normalised images."""
    if not len(rows):
        side = data.preprocessing.image_size
        return torch.zeros(0, data.preprocessing.in_channels, side, side)
    return data.eval_dataset.__getitems__(list(rows))["image"]
