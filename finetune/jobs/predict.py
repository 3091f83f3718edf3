"""job=predict: probabilities, decisions and novelty of a folder of images, an image or a list of images, as a csv."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from finetune import model_file
from finetune.config.settings import PredictSettings
from finetune.data.sources.listing import shorten
from finetune.errors import FinetuneError
from finetune.evaluation.answers import Writer
from finetune.files import write_text_atomic
from finetune.runs.folder import RunFolder
from finetune.steps import prepare
from finetune.steps.image_files import common_folder, image_files, other_files

MAX_LISTED = 20  # unreadable images named on the screen; the table has all
MAX_UNUSUAL_SHARE = 0.05  # share of unusual images above which a warning is printed; 0.01 is expected by chance


def predict(settings: PredictSettings, run: RunFolder, words: list[str]) -> pd.DataFrame:
    """Read the model, predict every image, write the table: an unreadable image has a row with the reason.

    Returns the table.

    Raises:
        FinetuneError: no image can be read; the table with the reasons is still written.
    """
    output = Path(settings.output) if settings.output else run.answers
    if output.is_dir() or not output.parent.is_dir():
        raise FinetuneError(f"output={output} cannot be written: {output.parent} must be a folder, the name a file's.")
    paths = image_files(settings.input)
    model = model_file.load(settings.model)
    tiling = settings.tiling
    model.check_tiling(tiling)
    say = prepare.make_printer(True)
    say(
        f"{model.spec.backbone} of {shorten(model.classes, 6)}: {format_count(len(paths), 'image')} of {settings.input}"
    )
    if others := other_files(settings.input):
        say(f"{format_count(others, 'other file')} in these folders {'is' if others == 1 else 'are'} no image by name.")
    if tiling is not None:
        say(f"Images larger than {tiling.tile} px are cut into tiles of {tiling.tile} px, overlap {tiling.overlap:g}.")
    say(f"decision: {model.answers.decision()}")
    gaussian, reason = model.feature_gaussian
    if gaussian is None:
        say(f"No novelty: {reason}. It is unknown whether these images are like the training images.")
    writer = model.answers.writer(output, common_folder(settings.input))
    with discarded_on_error(writer), prepare.report_progress("Predicting", say) as progress:
        table = model.predict_all(
            paths,
            batch_size=settings.batch_size,
            device=settings.trainer.accelerator,
            progress=progress,
            writer=writer,
            tiling=tiling,
        )
    bad = table[table["error"] != ""]
    with discarded_on_error(writer):
        run.begin_log(words)
        write_text_atomic(output, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
        run.write_environment(
            words,
            model=model.weights_hash,
            **model.answers.record(),
            **({} if tiling is None else {"tile": tiling.tile, "overlap": tiling.overlap}),
            unreadable=dict(zip(bad["path"], bad["error"], strict=True)),
        )
        if writer is not None:
            say(writer.close())
    if len(bad) == len(table):
        raise FinetuneError(
            f"input={settings.input}: none of {format_count(len(paths), 'image')} can be read, e.g. "
            f"{bad['path'].iloc[0]}: {bad['error'].iloc[0]}. {output} has the reason for each."
        )
    if len(bad):
        listed = "".join(f"\n  {row.path}: {row.error}" for row in bad.head(MAX_LISTED).itertuples())
        more = f"\n  and {len(bad) - MAX_LISTED:,} more" if len(bad) > MAX_LISTED else ""
        say(f"{len(bad):,} of {format_count(len(table), 'image')} cannot be read, see the column error:{listed}{more}")
    if gaussian is not None:
        say(describe_unusual(table, len(gaussian.val_distances)))
    say(f"{format_count(len(table) - len(bad), 'image')} predicted, {len(bad):,} unreadable -> {output}")
    return table


@contextmanager
def discarded_on_error(writer: Writer | None) -> Iterator[None]:
    """Inside, an error or Ctrl-C removes the unfinished files of `writer`."""
    try:
        yield
    except BaseException:
        if writer is not None:
            writer.discard()
        raise


def describe_unusual(table: pd.DataFrame, n_val: int) -> str:
    """The number of images unlike the training images, with the share expected by chance."""
    n_unusual, n_readable = int((table["unusual"] == "yes").sum()), int((table["error"] == "").sum())
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
