"""The record of the model and of test openings in every evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from finetune.evaluation.answers import PredictionsTable
from finetune.model_file import Model
from finetune.runs import known_images
from finetune.runs.folder import RunFolder


def describe_model(path: str, model: Model) -> dict[str, Any]:
    """The entry of the evaluated model in environment.json."""
    return {
        "path": path,
        "weights_hash": model.weights_hash,
        "backbone": model.spec.backbone,
        "data": (model.provenance.get("data") or {}).get("name"),
    }


def count_opening(
    model: Model,
    name: str,
    predictions: PredictionsTable,
    overlap: known_images.KnownImages,
    words: list[str],
    say: Callable[[str], None],
) -> RunFolder | None:
    """Count an opening of the model's test split, if images of it are evaluated.

    Returns the model's run folder, or None if nothing was counted.

    Images are compared by their pixels; for a run without samples.csv, by their names in a data set of the same name.
    """
    folder = RunFolder.of_model(model)
    if folder is None or not (folder.scores.is_file() and folder.environment.is_file()):
        return None
    images = overlap.tested
    if not overlap.known:
        if (
            not folder.predictions("test").is_file()
            or (folder.read_environment().get("data") or {}).get("name") != name
        ):
            return None
        test = pd.read_csv(folder.predictions("test"), usecols=["sample"], dtype=str)["sample"]
        images = int(predictions.frame["sample"].isin(test).sum())
    if not images:
        return None
    try:
        number = folder.open_test(words, images)
    except OSError as error:
        say(f"{folder} cannot be written ({error.strerror}): this opening of its test split is not counted.")
        return None
    say(f"This is opening {number} of the test split of {folder}. Do not choose models or settings by it.")
    return folder


def write(run: RunFolder, tables: Mapping[str, Any]) -> dict[str, Any]:
    """predictions_<split>.csv for each split."""
    written = {}
    for split, table in tables.items():
        assert table is not None
        table.write(run.predictions(split))
        written[split] = table
    return written
