"""job=export: a model as one file for other programs, compared with the model before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune import model_file
from finetune.config.settings import ExportSettings
from finetune.deploy import exporting as files
from finetune.deploy import formats
from finetune.deploy.parity import Parity
from finetune.errors import FinetuneError
from finetune.files import write_json_atomic
from finetune.model_file import Model
from finetune.runs.folder import RunFolder
from finetune.steps import exporting, prepare
from finetune.steps.image_files import image_files


def export(settings: ExportSettings, run: RunFolder, words: list[str]) -> dict[str, Any]:
    """Read the model and some images, write the file and its manifest, and say how far its answers differ."""
    model = model_file.load(settings.model)
    suffix = formats.FORMATS[settings.format]
    output = Path(settings.output) if settings.output else run.path / f"model{suffix}"
    say = prepare.make_printer(True)
    images, source = chosen_images(settings, model)
    own = {}
    if settings.precision == "int8":
        files.check(model, output, settings.format, settings.precision, images)
        own = measured_files(settings, model, words)
    about = files.export(
        model,
        output,
        format=settings.format,
        precision=settings.precision,
        size=settings.size,
        images=images,
        source=source,
    )
    run.begin_log(words)
    for name, parity in about["parity"].items():
        say(f"{name}: {Parity(**parity).sentence()}.")
    if own:
        read = formats.read(output, settings.format, about["outputs"])
        with prepare.report_progress("Measuring int8", say) as progress:
            auroc = exporting.auroc_difference(model, own, read, settings.split, settings.size, progress)
        about["auroc"] = auroc
        write_json_atomic(files.manifest_path(output), about)
        say(exporting.auroc_sentence(auroc))
    elif settings.precision == "int8":
        say("AUROC of int8 was not measured: the model has no run with labelled images beside it.")
    run.write_environment(words, model=model.weights_hash)
    if about["not_in_graph"]:
        say(f"Not in the graph: {', '.join(about['not_in_graph'])}.")
    say(f"{settings.format}, {settings.precision}: {output} and {files.manifest_path(output).name}")
    return about


def chosen_images(settings: ExportSettings, model: Model) -> tuple[list[Path] | None, str]:
    """The images to compare on, and what they are in words; None for noise, where there are none.

    Raises:
        FinetuneError: `input` names no image.
    """
    if settings.input is not None:
        return exporting.spread(image_files(settings.input), settings.images), f"of {settings.input}"
    try:
        paths = list(exporting.own_files(model, settings, "val").values())
    except FinetuneError as error:
        return None, f"coloured noise, since {str(error).rstrip('.')}"
    return exporting.spread(paths, settings.images), "of the val split"


def measured_files(settings: ExportSettings, model: Model, words: list[str]) -> dict[str, Path]:
    """The images whose AUROC is compared, all of the split; empty where the model's run is not beside it. An opening of
    the test split is counted."""
    try:
        own = exporting.own_files(model, settings, settings.split)
    except FinetuneError:
        if settings.split == "test":
            raise
        return {}
    if settings.split == "test" and (folder := RunFolder.of_model(model)) is not None:
        folder.open_test(words, len(own))
    return own
