"""job=soup: the mean of the weights of finished fits, assessed as a fit is."""

from __future__ import annotations

from typing import Any

from finetune.config import build, compose
from finetune.config.settings import FitSettings, Settings, SoupSettings, parse
from finetune.errors import FinetuneError
from finetune.evaluation.answers import task_name
from finetune.inference import best_device
from finetune.runs import known_images
from finetune.runs.environment import data_facts
from finetune.runs.folder import RunFolder
from finetune.steps import assess, prepare
from finetune.steps import soup as soups
from finetune.steps.task import Subject, Task, check_model_task

TAKEN = (
    "trainer.accelerator",
    "data.num_workers",
    "data.batch_size",
    "data.cache",
    "data.root",
    "data.audit.on_leak",
    "evaluation.test",
    "trust",
)
"""Keys that may be typed; all others are those of the first run."""


def soup(settings: SoupSettings, run: RunFolder, words: list[str]) -> dict[str, Any]:
    """Read the runs and their data, choose by val, and write a run folder as a fit does; test is opened once."""
    run.check_free()
    say = prepare.make_printer(True)
    ingredients = soups.read_ingredients(settings.runs)
    first = ingredients[0]
    inherited = parse(inherit(first.run.read_config(), settings, words))
    warnings = soups.origin_warnings(ingredients)
    for warning in warnings:
        say(f"WARNING: {warning}")
    task: Task = build.task(inherited)
    check_model_task(first.model, task, str(first.run))
    table = prepare.load_table(build.source(inherited).table(), inherited.data, say, recorded=first.run)
    task.check(table)
    run.begin(inherited.resolved, words)
    preprocessing = first.model.preprocessing
    table, images, _ = prepare.decode_and_audit(inherited.data, table, preprocessing, say, run)
    known_images.write_samples(run, table, images)
    check_samples(run, first.run)
    data = prepare.make_datamodule(inherited.data, inherited.seed, table, images, preprocessing)
    if not len(data.rows("val")):
        raise FinetuneError("A soup is chosen on val, which has no images in these runs.")
    objective = task.objective(table, data.rows("train"))
    accelerator = inherited.trainer.accelerator
    kitchen = soups.Kitchen(first.model.spec.build(), objective, data, best_device(accelerator))
    record = soups.cook(ingredients, kitchen, settings.method)
    record["sentence"] = soups.sentence(record)
    say(record["sentence"])
    weights = first.run.read_environment().get("weights")
    run.note(weights=weights, data=data_facts(table), soup={**record, "warnings": warnings})
    tta, rows = first.model.tta, data.rows("val")
    subject = Subject(kitchen.network, data, rows, "val", None, accelerator, inherited.seed, tta)
    tables, fitted = assess.predict_splits(task, subject)
    scores = assess.assess(run, task, first.model.spec, subject, tables, fitted, words, say)
    for line in task.summary(scores, synthetic=table.synthetic):
        say(line)
    say(f"report: {run.report}")
    return record


def inherit(config: dict[str, Any], settings: Settings, words: list[str]) -> dict[str, Any]:
    """The configuration of the first run, with the keys of this job and those of TAKEN that were typed.

    Raises:
        FinetuneError: another key was typed.
    """
    own = ("job", "runs", "method")
    typed = [override.key_or_group for override in compose.parse(words)]
    same_task = ("task",) if task_name(config) == task_name(settings.resolved) else ()
    for key in typed:
        if key not in (*own, *TAKEN, *same_task) and not key.startswith("hydra."):
            raise FinetuneError(
                f"{key} cannot be set for a soup: its data, network and evaluation are those of the first run. These "
                f"can: {', '.join((*own[1:], *TAKEN))}."
            )
    of_fits = FitSettings.model_fields.keys() - Settings.model_fields.keys()
    merged = {key: value for key, value in config.items() if key not in of_fits}
    merged |= {**{key: settings.resolved[key] for key in own}, "trust": settings.trust}
    for key in set(typed) & set(TAKEN) - {"trust"}:
        group, _, rest = key.partition(".")
        merged[group] = set_key(merged[group], rest.split("."), settings.resolved[group])
    return merged


def set_key(node: dict[str, Any], path: list[str], source: Any) -> dict[str, Any]:
    """A copy of `node` with the value at `path` taken from `source`."""
    value = source[path[0]]
    return {**node, path[0]: value if len(path) == 1 else set_key(node[path[0]], path[1:], value)}


def check_samples(run: RunFolder, first: RunFolder) -> None:
    """Compare the images as they are now with those that the first run recorded.

    Raises:
        FinetuneError: they differ.
    """
    now, then = (set(folder.samples.read_text(encoding="utf-8").splitlines()) for folder in (run, first))
    if differing := len(now ^ then):
        raise FinetuneError(
            f"The data are not those of {first}: {differing:,} rows of samples.csv differ (images, patients, splits or "
            "pixels). Restore the data, or fit again."
        )
