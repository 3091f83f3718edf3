"""The assessment of a trained network: predictions, what is fitted on val, the model file, scores and the report."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.evaluation.answers import PredictionsTable
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.runs.folder import RunFolder
from finetune.steps import novelty, scoring
from finetune.steps.task import Subject, Task


def predict_splits(task: Task, subject: Subject) -> dict[str, PredictionsTable | None]:
    """The predictions of val, and of test where the fit may open it; None on all ranks but the first."""
    splits = [split for split in ("val", *(["test"] if task.test else [])) if len(subject.data.rows(split))]
    return {split: task.predict(of_split(subject, split)) for split in splits}


def of_split(subject: Subject, split: str) -> Subject:
    """The same network on the readable images of another split."""
    return replace(subject, rows=subject.data.rows(split), split=split)


def assess(
    run: RunFolder,
    task: Task,
    spec: NetworkSpec,
    subject: Subject,
    tables: Mapping[str, PredictionsTable | None],
    words: list[str],
) -> dict[str, Any]:
    """Write all that a complete run holds, scores.json last; the scores.

    Everything is fitted on val. The test split is predicted, scored and counted as opened only with
    `evaluation.test=true`.
    """
    data = subject.data
    run.begin_results()
    written = scoring.write(run, tables)
    fitted = task.fit(written.get("val"))  # nothing is ever fitted on test
    closed = len(data.rows("test")) if "test" not in written else 0
    if closed:
        fitted = replace(fitted, notes=[*fitted.notes, closed_test_note(run, closed)])
    answers = task.answers(data.table, fitted)
    Model(subject.network, spec, data.preprocessing, answers, provenance(run.read_environment())).save(run.model)
    if task.novelty:
        novelty.keep(run, task, subject, task.novelty, test="test" in written)
    if "test" in written:
        run.open_test(words, len(written["test"]))
    scores = task.score(written, fitted)
    split = next((name for name in ("test", "val") if name in written), None)
    if split is not None:  # before the report, which shows them
        task.add_files(run, of_split(subject, split), written[split], fitted)
    task.report(run.path, scores)
    run.complete(scores)
    return scores


def closed_test_note(run: RunFolder, images: int) -> str:
    """The sentence on a test split that a fit has not opened."""
    return (
        f"The test split ({images:,} images) was not predicted and not scored (evaluation.test=false). "
        f"job=evaluate model={run} split=test opens it."
    )


def provenance(environment: dict[str, Any]) -> dict[str, Any]:
    """What the model file says of where it came from."""
    return {key: environment.get(key) for key in ("command", "versions", "commit", "seed", "weights", "data")}
