"""The images of a model's own run, for the comparison of an exported file; and what its 8 bits cost in AUROC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import build
from finetune.config.settings import Settings, parse
from finetune.deploy.formats import Run
from finetune.deploy.parity import pixels_of
from finetune.errors import FinetuneError
from finetune.evaluation.answers import Candidate
from finetune.evaluation.classification.comparison import compare
from finetune.evaluation.classification.predictions import Predictions
from finetune.model_file import Model
from finetune.runs.folder import RunFolder

MAX_AUROC_LOSS = 0.005
"""A larger loss of AUROC is reported as a warning."""


def own_files(model: Model, settings: Settings, split: str) -> dict[str, Path]:
    """Sample -> path of the image, of the split of the model's run as its predictions table lists it.

    Raises:
        FinetuneError: the model is not in its run folder, or the data are not there.
    """
    run = RunFolder.of_model(model)
    if run is None or not run.config.is_file() or not run.predictions(split).is_file():
        raise FinetuneError(f"the model has no run folder with predictions_{split}.csv beside it")
    table = build.source(parse(of_fit(run.read_config(), settings))).table()
    files = {path: table.file(row) for row, path in enumerate(table.paths)}
    samples = read_table(model, split).frame["sample"].tolist()
    if missing := [sample for sample in samples if sample not in files]:
        raise FinetuneError(f"the data of the run have no {missing[0]}")
    return {sample: files[sample] for sample in samples}


def of_fit(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The configuration of a fit, as one of this job: its data, and the job's own keys."""
    own = set(type(settings).model_fields) - set(Settings.model_fields) - {"resolved"}
    of_every_job = set(Settings.model_fields) - {"resolved"}
    kept = {key: value for key, value in config.items() if key in of_every_job}
    return {**kept, "job": settings.job, "trust": settings.trust, **{key: settings.resolved[key] for key in own}}


def read_table(model: Model, split: str) -> Any:
    """The predictions table of a split of the model's run."""
    run = RunFolder.of_model(model)
    assert run is not None
    return model.answers.read_table(run.predictions(split), {"kind": getattr(model.answers, "kind", None)})


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """At most `number` items, evenly spread over the list."""
    if len(items) <= number:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, number).round().astype(int)]


def auroc_difference(
    model: Model, files: Mapping[str, Path], run: Run, split: str, size: str, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """{before, after, value, low, high, n, patients}: macro AUROC of the run's predictions and of the file's, and the
    paired difference (after - before) with its interval over patients; `classes` has that of each class."""
    table = read_table(model, split)
    logits = []
    for done, path in enumerate(files.values(), start=1):
        logits.append(run(pixels_of(model, path, size))["logits"][0])
        progress(done, len(files))
    values = np.array(logits)
    changed = table.frame.copy()
    probabilities = model.answers.probabilities(values)  # type: ignore[attr-defined]
    for k, name in enumerate(table.classes):
        changed[f"logit_{name}"], changed[f"prob_{name}"] = values[:, k], probabilities[:, k]
    after = Predictions(changed, table.classes, table.kind, table.metadata)
    compared = compare([Candidate("int8", [after], []), Candidate("fp32", [table], [])])
    pair, scores = compared["pairs"][0], [candidate["scores"] for candidate in compared["candidates"]]
    change = {key: pair["scores"]["macro_auroc"][key] for key in ("value", "low", "high")}
    if len(table.classes) == 1 or (table.kind == "multiclass" and len(table.classes) == 2):
        change = {key: pair["classes"][table.classes[-1]][key] for key in ("value", "low", "high")}  # DeLong's
    return {
        "split": split,
        "n": compared["n"],
        "patients": compared["patients"],
        "before": scores[1]["macro_auroc"]["value"],
        "after": scores[0]["macro_auroc"]["value"],
        **change,
        "classes": pair["classes"],
    }


def auroc_sentence(about: Mapping[str, Any]) -> str:
    """The difference in words, with a warning where AUROC falls by more than MAX_AUROC_LOSS."""
    if about["value"] is None:
        return f"AUROC on {about['split']} is undefined: no class has images with it and without it."
    low, high = ("unknown" if about[key] is None else f"{about[key]:+.4f}" for key in ("low", "high"))
    warning = f" WARNING: a loss above {MAX_AUROC_LOSS:g}." if about["value"] < -MAX_AUROC_LOSS else ""
    return (
        f"macro AUROC on {about['split']} ({about['n']:,} images of {about['patients']:,} patients): fp32 "
        f"{about['before']:.4f}, int8 {about['after']:.4f}, difference {about['value']:+.4f} "
        f"[{low}, {high}], paired over patients.{warning}"
    )
