"""job=predict: probabilities, decisions and novelty of any number of images, as csv, jsonl or parquet."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pandas.api.types import is_numeric_dtype

from finetune import model_file
from finetune.config.settings import PredictSettings
from finetune.data.sources.listing import shorten
from finetune.errors import FinetuneError
from finetune.evaluation.answers import Writer, at_operating_point
from finetune.model_file import Model
from finetune.runs.folder import RunFolder
from finetune.steps import prepare
from finetune.steps.answer_files import AnswerFormat, Written, format_of
from finetune.steps.image_files import common_folder
from finetune.steps.image_list import ImageList, read_list
from finetune.steps.prediction_chunks import HEATMAP, Counts, predict_chunks, state_of
from finetune.steps.prediction_heat import HeatMaps
from finetune.steps.prediction_parts import Parts
from finetune.steps.prepare import Say

BATCHES_PER_CHUNK = 8  # a killed run repeats a chunk at most, and there is a file for each
MAX_UNUSUAL_SHARE = 0.05  # share of unusual images above which a warning is printed; 0.01 is expected by chance


def predict(settings: PredictSettings, run: RunFolder, words: list[str]) -> Written:
    """Read the model, predict every image, write the table: an unreadable image has a row with the reason.

    What is predicted lies in OUTPUT.part/ until the end, where the same command finds it after a stop, and where other
    processes with the same command take part.

    Raises:
        FinetuneError: no image can be read; the table with the reasons is still written.
    """
    output = Path(settings.output) if settings.output else run.answers
    if output.is_dir() or not output.parent.is_dir():
        raise FinetuneError(f"output={output} cannot be written: {output.parent} must be a folder, the name a file's.")
    format_of(output)
    if settings.finding is not None and settings.heatmaps is None:
        raise FinetuneError(f"finding={settings.finding} is the class of heat maps: name their folder, heatmaps=DIR.")
    with read_list(settings.input, settings.root, BATCHES_PER_CHUNK * settings.batch_size) as images:
        return Written(output, predict_list(settings, run, words, output, images))


def predict_list(
    settings: PredictSettings, run: RunFolder, words: list[str], output: Path, images: ImageList
) -> list[str]:
    """Predict the images of a list into `output`; returns the names of its columns of text."""
    format_ = format_of(output)
    model = model_file.load(settings.model)
    model.answers = at_operating_point(model.answers, settings.operating_point)
    model.check_tiling(settings.tiling)
    base = common_folder(settings.input, settings.root)
    heat = heat_maps(settings, model, base)
    if images.columns:
        check_columns(settings, model, images)
    say = prepare.make_printer(True)
    announce(settings, model, images, say)
    parts = Parts(output, state_of(settings, output, model, images), images.n_chunks)
    writer = model.answers.writer(output, base)
    with closed(parts, say, keep=writer is None), discarded_on_error(writer):
        run.begin_log(words)
        if writer is not None:
            parts.begin_anew()
        elif parts.done_before:
            say(f"{output} was begun before: {parts.done_before:,} of {parts.n:,} parts of the list are predicted.")
        with prepare.report_progress("Predicting", say) as progress:
            predict_chunks(settings, model, images, parts, format_, writer=writer, heat=heat, progress=progress)
        counts = parts.finish(lambda: join(output, parts, format_))
        record(settings, run, words, model, counts)
        if writer is not None:
            say(writer.close())
    if counts is None:
        say(f"Another process has completed {output}.")
    else:
        summarise(settings, output, model, counts, say)
    empty = model.predict_all([])
    return [*(str(name) for name in empty if not is_numeric_dtype(empty[name])), *images.columns, HEATMAP]


def heat_maps(settings: PredictSettings, model: Model, base: Path) -> HeatMaps | None:
    """What writes heat maps; None where none are asked for.

    Raises:
        FinetuneError: their folder lies among the images, so that the next run would take them for images.
    """
    if settings.heatmaps is None:
        return None
    folder = Path(settings.heatmaps)
    for item in settings.input if isinstance(settings.input, list) else [settings.input]:
        if Path(item).is_dir() and folder.resolve().is_relative_to(Path(item).resolve()):
            raise FinetuneError(f"heatmaps={folder} lies in input={item}, whose images are predicted. Name another.")
    return HeatMaps(model, folder, base, settings.finding, settings.trainer.accelerator)


def check_columns(settings: PredictSettings, model: Model, images: ImageList) -> None:
    """Raise a FinetuneError where a column of a list of images has the name of one of the output."""
    own = [*model.predict_all([]).columns, HEATMAP]
    if both := [name for name in images.columns if name in own]:
        raise FinetuneError(f"input={settings.input}: the column {both[0]} is one of the output's too. Rename it.")


def announce(settings: PredictSettings, model: Model, images: ImageList, say: Say) -> None:
    """Print what is predicted, and how."""
    tiling = settings.tiling
    count = format_count(len(images), "image")
    say(f"{model.spec.backbone} of {shorten(model.classes, 6)}: {count} of {settings.input}")
    if n := images.others:
        say(f"{format_count(n, 'other file')} in these folders {'is' if n == 1 else 'are'} no image by name.")
    if tiling is not None:
        say(f"Images larger than {tiling.tile} px are cut into tiles of {tiling.tile} px, overlap {tiling.overlap:g}.")
    if settings.fast:
        say("fast=true: batch norms are part of the convolutions; probabilities differ from job=evaluate by rounding.")
    say(f"decision: {model.answers.decision()}")
    gaussian, reason = model.feature_gaussian
    if gaussian is None:
        say(f"No novelty: {reason}. It is unknown whether these images are like the training images.")


def join(output: Path, parts: Parts, format_: AnswerFormat) -> Counts:
    """Write the output from its parts."""
    counts = Counts.of(parts)
    format_.join(output, counts.columns, parts.contents)
    return counts


def record(settings: PredictSettings, run: RunFolder, words: list[str], model: Model, counts: Counts | None) -> None:
    """Write environment.json; without counts, of a process that did a part."""
    tiling = settings.tiling
    tiles = {} if tiling is None else {"tile": tiling.tile, "overlap": tiling.overlap}
    facts: dict[str, Any] = {} if counts is None else {"images": counts.rows, "unreadable": dict(counts.listed)}
    if counts is not None and counts.bad > len(counts.listed):
        facts["unreadable_images"] = counts.bad
    run.write_environment(words, model=model.weights_hash, **model.answers.record(), **tiles, **facts)


def summarise(settings: PredictSettings, output: Path, model: Model, counts: Counts, say: Say) -> None:
    """Print how many images could be read, and how many are unusual.

    Raises:
        FinetuneError: none could be read.
    """
    if counts.bad == counts.rows:
        path, reason = counts.listed[0]
        raise FinetuneError(
            f"input={settings.input}: none of {format_count(counts.rows, 'image')} can be read, e.g. "
            f"{path}: {reason}. {output} has the reason for each."
        )
    if counts.bad:
        listed = "".join(f"\n  {path}: {reason}" for path, reason in counts.listed)
        more = f"\n  and {counts.bad - len(counts.listed):,} more" if counts.bad > len(counts.listed) else ""
        total = format_count(counts.rows, "image")
        say(f"{counts.bad:,} of {total} cannot be read, see the column error:{listed}{more}")
    readable = counts.rows - counts.bad
    gaussian, _ = model.feature_gaussian
    if gaussian is not None:
        say(describe_unusual(counts.unusual, readable, len(gaussian.val_distances)))
    say(f"{format_count(readable, 'image')} predicted, {counts.bad:,} unreadable -> {output}")


@contextmanager
def closed(parts: Parts, say: Say, *, keep: bool) -> Iterator[None]:
    """The locks of the parts end here; after an error or Ctrl-C a sentence says how to go on. Without `keep`, nothing
    can go on, and the parts are removed."""
    try:
        yield
    except BaseException:
        parts.give_up(keep)
        if parts.folder.is_dir() and keep:
            say(
                f"{parts.count_done():,} of {parts.n:,} parts are predicted, in {parts.folder}. "
                f"The same command with output={parts.output} goes on from there."
            )
        raise
    finally:
        parts.close()


@contextmanager
def discarded_on_error(writer: Writer | None) -> Iterator[None]:
    """Inside, an error or Ctrl-C removes the unfinished files of `writer`."""
    try:
        yield
    except BaseException:
        if writer is not None:
            writer.discard()
        raise


def describe_unusual(n_unusual: int, n_readable: int, n_val: int) -> str:
    """The number of images unlike the training images, with the share expected by chance."""
    sentence = (
        f"unusual: {n_unusual:,} of {format_count(n_readable, 'image')} ({100 * n_unusual / n_readable:.1f} %) "
        f"are farther from the training images than 99 % of the {n_val:,} validation images"
    )
    if n_unusual > MAX_UNUSUAL_SHARE * n_readable:
        sentence += ". Do not rely on predictions for images unlike the training images"
    return f"{sentence}."


def format_count(n: int, noun: str) -> str:
    """1 image, 2,000 images."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
