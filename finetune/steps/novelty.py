"""What a model's own data look like to it, kept beside the run, and how unlike them another data set is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.loading.module import ImageData
from finetune.evaluation.classification import novelty
from finetune.evaluation.classification.novelty import FeatureGaussian
from finetune.evaluation.classification.predictions import Predictions
from finetune.files import write_text_atomic
from finetune.inference import best_device, predict, with_distances
from finetune.model_file import Model
from finetune.network import Network
from finetune.runs.folder import RunFolder
from finetune.weights import own_file


def keep(
    run: RunFolder, network: Network, data: ImageData, test: Predictions | None, most: int, seed: int, accelerator: str
) -> None:
    """Write what is typical of at most `most` training images, how far the validation images lie from that, and how
    novel the test images are against it."""

    def pooled(split: str) -> np.ndarray:  # -> (M, D)
        rows = drawn(data.rows(split), most, seed)
        return predict(network, data.rows_loader(rows), best_device(accelerator), network.features)[1]

    training = pooled("train")
    if len(training) < 2:
        return
    gaussian = FeatureGaussian.fit(training)
    if len(data.rows("val")):
        gaussian = replace(gaussian, val_distances=np.sort(gaussian.distance(pooled("val"))))
    of_weights = own_file.tensors_hash(network.state_dict())
    gaussian.save(run.path, of_weights)
    if test is not None:
        kept, _ = novelty.read(run.path, of_weights)
        write(run.novelty("test"), of(network, data, data.rows("test"), data.table.kind, kept, most, seed, accelerator))


def of(
    network: Network,
    data: ImageData,
    rows: np.ndarray,
    kind: str,
    gaussian: FeatureGaussian | None,
    most: int,
    seed: int,
    accelerator: str,
) -> pd.DataFrame:
    """The novelty of at most `most` of these rows to a network whose labels are of `kind`."""
    rows = drawn(rows, most, seed)
    ask = with_distances(network, gaussian)
    index, answers = predict(network, data.rows_loader(rows), best_device(accelerator), ask)
    frame = data.table.frame.iloc[index]
    logits, distances = (answers, None) if gaussian is None else (answers[:, :-1], answers[:, -1])
    return novelty.table(frame["path"].tolist(), frame["patient"].tolist(), logits, kind, distances)


def drawn(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most `most` of these rows, by `seed`, ascending."""
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, size=most, replace=False))


def write(path: Path, table: pd.DataFrame) -> None:
    write_text_atomic(path, table.to_csv(index=False, float_format="%.7g", lineterminator="\n"))


def against_own(
    model: Model,
    data: ImageData,
    rows: np.ndarray,
    path: Path,
    most: int,
    seed: int,
    accelerator: str,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """How well novelty tells these images from the test images of the model's own run; each image's goes to `path`.

    None where its run kept nothing to compare with.
    """
    run = RunFolder.of_model(model)
    if run is None or not run.novelty("test").is_file():
        return None
    try:
        kept = pd.read_csv(run.novelty("test"), dtype={"sample": str, "patient": str}, keep_default_na=False)
        kept = kept.astype(dict.fromkeys([score for score in novelty.SCORES if score in kept], float))
    except (OSError, ValueError, KeyError) as error:
        say(f"{run.novelty('test')} cannot be read ({error}): nothing is said of novelty.")
        return None
    own = (model.provenance.get("data") or {}).get("name")
    gaussian, _ = novelty.read(run.path, model.weights_hash)
    other = of(model.network, data, rows, model.kind, gaussian, most, seed, accelerator)
    write(path, other)
    told = novelty.separation_auroc(kept, other)
    for name, found in told.items():
        auroc = found["auroc"]
        between = "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
        say(f"novelty by {name}: AUROC {auroc['value']:.3f}{between} of these images against the model's own test")
    return {"own": own, "other": data.table.name, "images": len(other), "scores": told}
