"""What every evaluation records of the model and of the test split."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from finetune.evaluation.answers import PredictionsTable
from finetune.model_file import Model
from finetune.runs import known_images
from finetune.runs.folder import RunFolder


def about(path: str, model: Model) -> dict[str, Any]:
    """What environment.json says of the model that was asked."""
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
    met: known_images.KnownImages,
    words: list[str],
    say: Callable[[str], None],
) -> RunFolder | None:
    """The model's own run folder, if images of its test split are among those evaluated: an opening that is counted.

    They are known by their pixels; of a run that kept none of them by their names in a data set of its name.
    """
    own = RunFolder.of_model(model)
    if own is None or not (own.scores.is_file() and own.environment.is_file()):
        return None
    images = met.tested
    if not met.known:
        if not own.predictions("test").is_file() or (own.read_environment().get("data") or {}).get("name") != name:
            return None
        test = pd.read_csv(own.predictions("test"), usecols=["sample"], dtype=str)["sample"]
        images = int(predictions.frame["sample"].isin(test).sum())
    if not images:
        return None
    try:
        times = own.open_test(words, images)
    except OSError as error:
        say(f"{own} cannot be written ({error.strerror}): this opening of its test split is not counted.")
        return None
    say(f"This is opening {times} of the test split of {own}. Choose nothing by it.")
    return own


def write(run: RunFolder, tables: Mapping[str, Any]) -> dict[str, Any]:
    """predictions_<split>.csv for each split."""
    written = {}
    for split, table in tables.items():
        assert table is not None
        table.write(run.predictions(split))
        written[split] = table
    return written
