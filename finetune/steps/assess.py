"""The assessment of a trained network: predictions, the values fitted on val, the model file, scores and the report."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.evaluation.answers import PredictionsTable
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.runs.folder import RunFolder
from finetune.steps import novelty, prediction, scoring
from finetune.steps.task import Subject, Task


def predict_splits(task: Task, subject: Subject) -> tuple[dict[str, PredictionsTable | None], Any]:
    """Predictions of val, and of test with `evaluation.test=true`, on the first rank (None on others); values fitted on
    val, which the predictions of test may need.

    Nothing is ever fitted on test.
    """
    tables: dict[str, PredictionsTable | None] = {}
    if len(subject.data.rows("val")):
        tables["val"] = task.predict(with_split(subject, "val"), task.unfitted())
    fitted = prediction.broadcast_from_first(lambda: task.fit(tables.get("val")))
    if task.test and len(subject.data.rows("test")):
        tables["test"] = task.predict(with_split(subject, "test"), fitted)
    return tables, fitted


def with_split(subject: Subject, split: str) -> Subject:
    """The same network on the readable images of another split."""
    return replace(subject, rows=subject.data.rows(split), split=split)


def assess(
    run: RunFolder,
    task: Task,
    spec: NetworkSpec,
    subject: Subject,
    tables: Mapping[str, PredictionsTable | None],
    fitted: Any,
    words: list[str],
) -> dict[str, Any]:
    """Write all files of a complete run, scores.json last; returns the scores.

    The test split is predicted, scored and counted as opened only with `evaluation.test=true`.
    """
    data = subject.data
    run.begin_results()
    written = scoring.write(run, tables)
    num_closed = len(data.rows("test")) if "test" not in written else 0
    if num_closed:
        fitted = replace(fitted, notes=[*fitted.notes, closed_test_note(run, num_closed)])
    answers = task.answers(data.table, fitted)
    provenance = make_provenance(run.read_environment())
    Model(subject.network, spec, data.preprocessing, answers, provenance, subject.tta).save(run.model)
    if task.novelty:
        novelty.save_reference(run, task, subject, task.novelty, test="test" in written)
    if "test" in written:
        run.open_test(words, len(written["test"]))
    scores = task.score(written, fitted)
    split = next((name for name in ("test", "val") if name in written), None)
    if split is not None:  # before the report, which includes them
        task.add_files(run, with_split(subject, split), written[split], fitted)
    task.report(run.path, scores)
    run.complete(scores)
    return scores


def closed_test_note(run: RunFolder, images: int) -> str:
    """The note on a test split that a fit has not opened."""
    return (
        f"The test split ({images:,} images) was not predicted and not scored (evaluation.test=false). "
        f"job=evaluate model={run} split=test opens it."
    )


def make_provenance(environment: dict[str, Any]) -> dict[str, Any]:
    """The origin of the model, for its file."""
    always = ("command", "versions", "commit", "seed", "weights", "data")
    optional = ("best", "teacher", "soup")
    return {key: environment.get(key) for key in (*always, *(key for key in optional if key in environment))}
