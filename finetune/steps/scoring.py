"""From a network and a split to predictions, scores and the lines that say them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch.distributed as dist

from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.evaluation import metrics, wording
from finetune.evaluation.classification.assessment import Assessment, FittedOnVal
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import log_odds
from finetune.inference import best_device, by_index, predict
from finetune.model_file import Model
from finetune.network import Network
from finetune.runs import known_images
from finetune.runs.folder import RunFolder


def predictions(
    network: Network,
    data: ImageData,
    split: str,
    accelerator: str,
    answers: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Predictions | None:
    """Every readable sample of `split` once, whatever the number of ranks; None on all ranks but the first.

    `answers` turns the network's logits (N, K) into those of the table's classes, where they are not the same.
    """
    several = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    loader = data.eval_loader(split, rank=rank, world_size=world)
    index, logits = predict(network, loader, best_device(accelerator))
    if several:
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, (index, logits))
        index, logits = (np.concatenate([g[i] for g in gathered]) for i in (0, 1))
    if rank != 0:
        return None
    index, logits = by_index(index, logits)
    logits = logits if answers is None else answers(logits)
    table, rows = data.table, data.table.frame.iloc[index]
    return Predictions.from_arrays(
        rows["path"].tolist(),
        rows["patient"].tolist(),
        table.classes,
        table.kind,
        table.targets()[index],
        logits,
        rows[table.metadata].reset_index(drop=True),
    )


def answers_of(model: Model, table: SampleTable) -> Callable[[np.ndarray], np.ndarray] | None:
    """From the logits of a multiclass model to the log odds of the classes that are asked about as findings, so that
    their sigmoid is the model's own probability; None where the table has the model's classes."""
    if model.kind == table.kind:
        return None
    columns = [model.classes.index(name) for name in table.classes]
    return lambda logits: log_odds(logits.astype(np.float64))[:, columns]


def about(path: str, model: Model) -> dict[str, Any]:
    """What environment.json says of the model that was asked."""
    return {
        "path": path,
        "weights_hash": model.weights_hash,
        "backbone": model.spec.backbone,
        "data": (model.provenance.get("data") or {}).get("name"),
    }


def shipped(model: Model, kind: str) -> tuple[FittedOnVal, list[str]]:
    """What the model ships that goes with labels of this kind, and what must be said of the rest.

    The thresholds are of `prob_<class>`, which means the same where a class is asked about as a finding; calibration,
    sets and sureness are of all classes of the model together.
    """
    if model.kind == kind:
        return FittedOnVal(model.calibration, model.operating_points, model.selective, model.conformal), []
    left = [n for n, p in (("calibration", model.calibration), ("sets", model.conformal)) if p is not None]
    notes = [f"The model's {' and '.join(left)}, for all its classes together, are not applied here."] if left else []
    return FittedOnVal(operating_points=model.operating_points), notes


def has_auroc(table: SampleTable, split: str) -> bool:
    """Whether at least one class has a positive and a negative in `split`."""
    target = table.targets()[table.rows(split)]
    return bool(((target >= 0.5).any(axis=0) & (target < 0.5).any(axis=0)).any())


def count_opening(
    model: Model,
    name: str,
    predictions: Predictions,
    met: known_images.Met,
    words: list[str],
    say: Callable[[str], None],
) -> RunFolder | None:
    """The model's own run folder, if images of its test split are among those evaluated: an opening that is counted.

    They are known by their pixels; of a run that kept none of them by their names in a data set of its name.
    """
    own = RunFolder.of(model)
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


def write(run: RunFolder, tables: Mapping[str, Predictions | None]) -> dict[str, Predictions]:
    """predictions_<split>.csv for each split."""
    written = {}
    for split, table in tables.items():
        assert table is not None
        table.write(run.predictions(split))
        written[split] = table
    return written


def scores(tables: dict[str, Predictions], assessment: Assessment, fitted: FittedOnVal, seed: int) -> dict[str, Any]:
    """What scores.json says of each split; of val its scores alone, as what was fitted on it looks too good there.

    What speaks against the run is said once, of test where there is one.
    """
    plainly = replace(assessment, subgroups=[])
    told: dict[str, Any] = {}
    for split, table in tables.items():  # val first: test is compared with it
        if split == "val":
            told[split] = plainly.score(table, FittedOnVal(), seed=seed, split=split)
        else:
            told[split] = assessment.score(table, fitted, seed=seed, split=split, val=told.get("val"))
    if len(told) > 1 and "val" in told:
        said = [harm["text"] for harm in told["val"]["harms"]]
        told["val"]["warnings"] = [sentence for sentence in told["val"]["warnings"] if sentence not in said]
        told["val"]["harms"] = []
    if fitted.notes:
        told["val" if "val" in told else "test"]["notes"] = fitted.notes
    return told


def show(scores: dict[str, Any], synthetic: bool, say: Callable[[str], None]) -> None:
    """The numbers that matter, each with its interval and what an answer that looks at no image gets."""
    made_up = " (SYNTHETIC images)" if synthetic else ""
    for split, of_split in scores.items():
        for group, metric in metrics.HEADLINES:
            found = (of_split.get(group) or {}).get(metric)
            if found and found["value"] is not None:
                interval = f" [{found['low']:.3f}, {found['high']:.3f}] (95 %)" if found["low"] is not None else ""
                name = metrics.metric(metric).in_group(group)
                trivial = wording.baseline(of_split, group, metric)
                say(f"{split}: {name} {found['value']:.3f}{interval}{'; ' + trivial if trivial else ''}{made_up}")
        for name, score in of_split.get("own_metrics", {}).items():
            say(f"{split}: {name} {text_of(score)}")
        for sentence in [*of_split.get("warnings", []), *of_split.get("notes", [])]:
            say(f"  {sentence}")


def text_of(score: dict[str, Any]) -> str:
    """A score of the user's own with its interval, or the reason that there is none."""
    if score["value"] is None:
        return str(score["reason"])
    interval = f"[{score['low']:.4g}, {score['high']:.4g}] (95 %)" if score["low"] is not None else score["reason"]
    return f"{score['value']:.4g} {interval}"
