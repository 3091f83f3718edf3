"""job=predict: probabilities, decisions and novelty of a folder of images, an image or a list of images, as a csv."""

from pathlib import Path

import pandas as pd

from finetune import model_file
from finetune.config.settings import PredictSettings
from finetune.data.sources.listing import shorten
from finetune.errors import FinetuneError
from finetune.files import write_text_atomic
from finetune.runs.folder import RunFolder
from finetune.steps import prepare
from finetune.steps.image_files import image_files, other_files

SHOWN = 20  # unreadable images that are named on the screen; the table has all
EXPECTED = 0.05  # share of unusual images above which a caution is said; 0.01 is expected of images like the model's


def predict(settings: PredictSettings, run: RunFolder, words: list[str]) -> None:
    """Read the model, ask it about every image, write the table: an unreadable image has a row with its reason.

    Raises:
        FinetuneError: no image can be read; the table with the reasons is written all the same.
    """
    output = Path(settings.output) if settings.output else run.answers
    if output.is_dir() or not output.parent.is_dir():
        raise FinetuneError(f"output={output} cannot be written: {output.parent} must be a folder, the name a file's.")
    paths = image_files(settings.input)
    model = model_file.load(settings.model)
    say = prepare.sayer(True)
    say(f"{model.spec.backbone} of {shorten(model.classes, 6)}: {counted(len(paths), 'image')} of {settings.input}")
    if others := other_files(settings.input):
        say(f"{counted(others, 'other file')} in these folders {'is' if others == 1 else 'are'} no image by name.")
    say(f"decision: {model.answers.decision()}")
    gaussian, reason = model.feature_gaussian
    if gaussian is None:
        say(f"No novelty: {reason}. Nothing says whether these images are like those that the model was made with.")
    writer = model.answers.writer(output)
    with prepare.progress("Predicting", say) as progress:
        table = model.predict_all(
            paths,
            batch_size=settings.batch_size,
            device=settings.trainer.accelerator,
            progress=progress,
            writer=writer,
        )
    bad = table[table["error"] != ""]
    run.begin_log(words)
    write_text_atomic(output, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    run.write_environment(
        words,
        model=model.weights_hash,
        **model.answers.record(),
        unreadable=dict(zip(bad["path"], bad["error"], strict=True)),
    )
    if writer is not None:
        say(writer.close())
    if len(bad) == len(table):
        raise FinetuneError(
            f"input={settings.input}: none of {counted(len(paths), 'image')} can be read, e.g. {bad['path'].iloc[0]}: "
            f"{bad['error'].iloc[0]}. {output} has the reason of each."
        )
    if len(bad):
        listed = "".join(f"\n  {row.path}: {row.error}" for row in bad.head(SHOWN).itertuples())
        more = f"\n  and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        say(f"{len(bad):,} of {counted(len(table), 'image')} cannot be read, see the column error:{listed}{more}")
    if gaussian is not None:
        say(unusual(table, len(gaussian.val_distances)))
    say(f"{counted(len(table) - len(bad), 'image')} answered, {len(bad):,} unreadable -> {output}")


def unusual(table: pd.DataFrame, n_val: int) -> str:
    """How many images are unlike those that the model was made with, beside what chance makes of its own."""
    strange, answered = int((table["unusual"] == "yes").sum()), int((table["error"] == "").sum())
    said = (
        f"unusual: {strange:,} of {counted(answered, 'image')} ({100 * strange / answered:.1f} %) are farther from the "
        f"training images than 99 % of the {n_val:,} validation images"
    )
    if strange > EXPECTED * answered:
        said += ". What the model says of images unlike its own is not to be relied on"
    return f"{said}."


def counted(n: int, noun: str) -> str:
    """1 image, 2,000 images."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
