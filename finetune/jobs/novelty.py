"""What a model's own data look like to it, kept beside the run, and how unlike them another data set is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from finetune.data.module import ImageData
from finetune.evaluation import novelty
from finetune.evaluation.files import write_text_atomic
from finetune.evaluation.novelty import Typical
from finetune.evaluation.predictions import Predictions
from finetune.inference import best_device, predict
from finetune.network import Network
from finetune.package import Model

TYPICAL, OWN = "typical.safetensors", "novelty_test.csv"


def keep(
    run: Path, network: Network, data: ImageData, test: Predictions | None, most: int, seed: int, accelerator: str
) -> None:
    """Write what is typical of at most `most` training images, and how novel the test images are against it."""
    features, _ = pooled(network, data, data.rows("train"), most, seed, accelerator)
    if len(features) < 2:
        return
    typical = Typical.fit(features)
    arrays = {name: getattr(typical, name) for name in ("mean", "directions", "variances")}
    arrays["rest"] = np.array(typical.rest)
    partial = run / f".{TYPICAL}"
    save_file({name: np.ascontiguousarray(a, dtype=np.float32) for name, a in arrays.items()}, partial)
    partial.replace(run / TYPICAL)
    if test is not None:
        write(run / OWN, of(network, data, data.rows("test"), test, read(run), most, seed, accelerator))


def read(run: Path) -> Typical | None:
    """What is typical of the training images of the run in this folder; None where it was not kept."""
    try:
        arrays = load_file(run / TYPICAL)
        return Typical(arrays["mean"], arrays["directions"], arrays["variances"], arrays["rest"].item())
    except (OSError, KeyError, SafetensorError):
        return None


def of(
    network: Network,
    data: ImageData,
    rows: np.ndarray,
    predictions: Predictions,
    typical: Typical | None,
    most: int,
    seed: int,
    accelerator: str,
) -> pd.DataFrame:
    """The novelty of at most `most` of these rows, whose predictions are given."""
    features, chosen = pooled(network, data, rows, most, seed, accelerator)
    names = data.table.frame["path"].iloc[chosen]
    return novelty.table(predictions, dict(zip(names, features, strict=True)), typical)


def pooled(
    network: Network, data: ImageData, rows: np.ndarray, most: int, seed: int, accelerator: str
) -> tuple[np.ndarray, np.ndarray]:
    """Features (M, D) of at most `most` of these rows, drawn by `seed`, and the rows (M,)."""
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, size=most, replace=False))
    index, features = predict(network, data.rows_loader(rows), best_device(accelerator), network.features)
    return features, index


def write(path: Path, table: pd.DataFrame) -> None:
    write_text_atomic(path, table.to_csv(index=False, float_format="%.7g", lineterminator="\n"))


def against_own(
    model: Model,
    data: ImageData,
    rows: np.ndarray,
    predictions: Predictions,
    path: Path,
    config: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """How well novelty tells these images from the test images of the model's own run; each image's goes to `path`.

    None where its run kept nothing to compare with.
    """
    most = config["evaluation"]["novelty"] if config.get("evaluation") else 0
    run = model.path.parent if model.path else Path()
    if not most or not (run / OWN).is_file():
        return None
    try:
        kept = pd.read_csv(run / OWN, dtype={"sample": str, "patient": str}, keep_default_na=False)
        kept = kept.astype(dict.fromkeys([score for score in novelty.SCORES if score in kept], float))
    except (OSError, ValueError, KeyError) as error:
        say(f"{run / OWN} cannot be read ({error}): nothing is said of novelty.")
        return None
    own = (model.provenance.get("data") or {}).get("name")
    accelerator = config["trainer"]["accelerator"]
    other = of(model.network, data, rows, predictions, read(run), most, config["seed"], accelerator)
    write(path, other)
    told = novelty.told(kept, other)
    for name, found in told.items():
        auroc = found["auroc"]
        between = "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
        say(f"novelty by {name}: AUROC {auroc['value']:.3f}{between} of these pictures against the model's own test")
    return {"own": own, "other": data.table.name, "images": len(other), "scores": told}
