"""job=evaluate: a finished model on a split of its own data or on another data set."""

from finetune import model_file
from finetune.config import build, trainer
from finetune.config.settings import EvaluateSettings
from finetune.errors import FinetuneError
from finetune.runs import known_images
from finetune.runs.environment import data_facts
from finetune.runs.folder import RunFolder
from finetune.steps import novelty, prepare, scoring
from finetune.steps.task import Subject, Task, check_model_task
from finetune.training.launch import ranks


def evaluate(settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
    """Load, read the data as for a fit, predict, and write predictions, scores and a report."""
    task: Task = build.task(settings)
    if settings.predictions:
        task.score_files(settings, run, words)
        return
    first = ranks.rank() == 0
    say = prepare.make_printer(first)
    trainer.check(settings.trainer)
    check_not_fitted(task, words)
    model = check_model_task(model_file.load(settings.model), task, settings.model)
    table, split_in_table, split = prepare.select_split(
        task, build.source(settings).table(), settings.split, settings.data, model, say
    )
    task.check(table)
    if first:
        run.begin(settings.resolved, words)
    table, images, _ = prepare.decode_and_audit(settings.data, table, model.preprocessing, say, run if first else None)
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, model.preprocessing)
    rows = data.rows(split_in_table)
    overlap = known_images.find(model, table, images, rows)
    leaks = overlap.stop(split, settings.data.audit.on_leak)
    fitted = task.shipped(model, table)
    if split == "val" and ("val" in overlap.sentences or not overlap.known):
        fitted = task.unfitted()  # the fitted values depend on val
    subject = Subject(model.network, data, rows, split, model, settings.trainer.accelerator, settings.seed, model.tta)
    with ranks.launch(settings.resolved, run.path):
        predictions = task.predict(subject, fitted)
    if not first:
        return
    run.note(model=scoring.describe_model(settings.model, model), data=data_facts(table), notes=table.notes)
    written = scoring.write(run, {split: predictions})[split]
    opened_run = scoring.count_opening(model, table.name, written, overlap, words, say)
    scores = task.evaluate(written, fitted, subject)
    scores["warnings"] = [*leaks, *scores["warnings"]]
    if fitted.notes:
        scores["notes"] = fitted.notes
    if task.novelty and not overlap.same_set:
        comparison = novelty.compare_with_own_test(task, subject, run.novelty(split), task.novelty, say)
        if comparison is not None:
            scores["novelty"] = comparison
    task.add_evaluation_files(run, subject, written, fitted, say)
    task.report(run.path, {split: scores})
    run.complete({split: scores})
    for line in task.summary({split: scores}, synthetic=table.synthetic):
        say(line)
    if opened_run:
        task.report(opened_run.path)  # it shows the number of test openings
    say(f"predictions and scores: {run}")
    say(f"report: {run.report}")


def check_not_fitted(task: Task, words: list[str]) -> None:
    """Refuse settings that only a fit reads: the model ships their results."""
    for word in words:
        key = word.partition("=")[0]
        if key.lstrip("+~") == "evaluation.test":
            raise FinetuneError(f"{word!r} is for a fit. job=evaluate opens the split that split= names.")
        if word.lstrip("+~").startswith(tuple(f"evaluation.{name}" for name in task.fitted_settings)):
            raise FinetuneError(
                f"{word!r}: {key} is fitted on val by a fit and travels in the model; job=evaluate applies it."
            )
