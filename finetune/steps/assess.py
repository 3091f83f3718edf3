"""The assessment of a trained network: predictions, the values fitted on val, the model file, scores and the report."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.data.table import SampleTable
from finetune.evaluation.answers import PredictionsTable
from finetune.files import write_json_atomic
from finetune.model_file import Model
from finetune.model_record import Data, Labels, Record
from finetune.network import NetworkSpec
from finetune.runs.folder import RunFolder
from finetune.steps import novelty, prediction, scoring
from finetune.steps.task import Say, Subject, Task
from finetune.timm_config import timm_config, why_not
from finetune.weights.files import sha256


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
    say: Say,
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
    provenance, record = make_provenance(run.read_environment()), make_record(run, data.table)
    write_model(
        run, Model(subject.network, spec, data.preprocessing, answers, provenance, subject.tta, record=record), say
    )
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


def write_model(run: RunFolder, model: Model, say: Say) -> None:
    """Write the model file, and config.json beside it where timm can build the network; one of an earlier training
    goes first, so that it never stands beside another model."""
    run.timm_config.unlink(missing_ok=True)
    model.save(run.model)
    if reason := why_not(model.spec):
        say(f"No {run.timm_config.name} beside the model, as {reason}: finetune.load reads it, other programs do not.")
    else:
        write_json_atomic(run.timm_config, timm_config(model.network, model.spec, model.preprocessing, model.answers))


def make_record(run: RunFolder, table: SampleTable) -> Record:
    """What the model file says of labels and data."""
    settings = run.read_config().get("data") or {}
    policies = {key: settings[key] for key in ("uncertain", "missing") if settings.get(key) is not None}
    meanings = {"multiclass": "exclusive", "multilabel": "findings"}
    meaning = meanings.get(table.kind) or ", ".join(sorted(set(table.other_targets.values()))) or table.kind
    samples = sha256(run.samples) if run.samples.is_file() else None
    facts = run.read_environment().get("data") or {}
    return Record(labels=Labels(meaning, policies), data=Data(facts.get("hash"), samples))


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
