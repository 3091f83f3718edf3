"""The distribution of a model's training features, stored in its run, and the novelty of other images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.evaluation import novelty
from finetune.evaluation.novelty import FeatureGaussian
from finetune.files import write_text_atomic
from finetune.inference import best_device, predict, run, with_distances
from finetune.runs.folder import RunFolder
from finetune.steps.task import Say, Subject, Task
from finetune.weights import own_file


def save_reference(folder: RunFolder, task: Task, subject: Subject, max_images: int, *, test: bool) -> None:
    """Write the distribution of the features of at most `max_images` training images and the distances of as many
    validation images; with `test` also the novelty of the test images."""
    data, network = subject.data, subject.network

    def pooled(split: str) -> np.ndarray:  # -> (M, D)
        rows = sample_rows(data.rows(split), max_images, subject.seed)
        return predict(network, data.rows_loader(rows), best_device(subject.accelerator), network.features)[1]

    training = pooled("train")
    if len(training) < 2:
        return
    distribution = FeatureGaussian.fit(training)
    if len(data.rows("val")):
        distribution = replace(distribution, val_distances=np.sort(distribution.distance(pooled("val"))))
    weights_hash = own_file.tensors_hash(network.state_dict())
    distribution.save(folder.path, weights_hash)
    if test:
        stored, _ = novelty.read(folder.path, weights_hash)
        of_test = replace(subject, rows=data.rows("test"), split="test")
        write_scores(folder.novelty("test"), compute_scores(task, of_test, stored, max_images))


def compute_scores(task: Task, subject: Subject, distribution: FeatureGaussian | None, max_images: int) -> pd.DataFrame:
    """The novelty of at most `max_images` of the subject's rows."""
    network, data = subject.network, subject.data
    rows = sample_rows(subject.rows, max_images, subject.seed)
    forward = with_distances(network, distribution, subject.tta)
    index: list[np.ndarray] = []
    energies: list[np.ndarray | None] = []
    distances: list[np.ndarray] = []
    for batch, (outputs, batch_distances) in run(
        network, data.rows_loader(rows), best_device(subject.accelerator), forward
    ):
        index.append(np.asarray(batch["index"]))
        energies.append(task.energy(outputs, subject))
        distances += [] if batch_distances is None else [batch_distances]
    frame = data.table.frame.iloc[np.concatenate(index) if index else []]
    known = [part for part in energies if part is not None]
    return novelty.table(
        frame["path"].tolist(),
        frame["patient"].tolist(),
        np.concatenate(known) if known else None,
        np.concatenate(distances) if distances else None,
    )


def sample_rows(rows: np.ndarray, max_images: int, seed: int) -> np.ndarray:
    """A random sample of at most `max_images` rows, by `seed`, ascending."""
    if len(rows) <= max_images:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=max_images, replace=False))


def write_scores(path: Path, table: pd.DataFrame) -> None:
    write_text_atomic(path, table.to_csv(index=False, float_format="%.7g", lineterminator="\n"))


def compare_with_own_test(task: Task, subject: Subject, path: Path, max_images: int, say: Say) -> dict[str, Any] | None:
    """How well novelty separates these images from the test images of the model's run; writes each score to `path`.

    None where the run has no novelty of its test images.
    """
    model = subject.model
    folder = None if model is None else RunFolder.of_model(model)
    if model is None or folder is None or not folder.novelty("test").is_file():
        return None
    try:
        of_test = pd.read_csv(folder.novelty("test"), dtype={"sample": str, "patient": str}, keep_default_na=False)
        of_test = of_test.astype(dict.fromkeys([score for score in novelty.SCORES if score in of_test], float))
    except (OSError, ValueError, KeyError) as error:
        say(f"{folder.novelty('test')} cannot be read ({error}): no novelty is computed.")
        return None
    distribution, _ = novelty.read(folder.path, model.weights_hash)
    other = compute_scores(task, subject, distribution, max_images)
    write_scores(path, other)
    separation = novelty.separation_auroc(of_test, other)
    for score_name, score in separation.items():
        auroc = score["auroc"]
        interval = "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
        say(
            f"novelty by {score_name}: AUROC {auroc['value']:.3f}{interval} of these images "
            f"against the model's own test"
        )
    name = (model.provenance.get("data") or {}).get("name")
    return {"own": name, "other": subject.data.table.name, "images": len(other), "scores": separation}
