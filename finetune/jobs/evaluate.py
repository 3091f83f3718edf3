"""job=evaluate: a finished model on a split of its own data or on another data set."""

from pathlib import Path

import pandas as pd

from finetune import model_file
from finetune.config import build, trainer
from finetune.config.settings import EvaluateSettings
from finetune.errors import FinetuneError
from finetune.evaluation.classification.assessment import FittedOnVal, read_prevalence
from finetune.evaluation.classification.calibration import Calibration, with_prevalence
from finetune.evaluation.classification.predictions import Predictions
from finetune.files import write_text_atomic
from finetune.pages import report
from finetune.runs import known_images
from finetune.runs.environment import data_facts
from finetune.runs.folder import RunFolder
from finetune.steps import novelty, prepare, score_table, scoring
from finetune.steps.worst_errors import worst_errors
from finetune.training.launch import ranks

FITTED = tuple(f"evaluation.{key}" for key in ("calibration", "operating_points", "coverages", "conformal"))


def evaluate(settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
    """Load, read the data as for a fit, predict, and write predictions, scores and a report."""
    if settings.predictions:
        score_table.score_file(settings, run, words)
        return
    first = ranks.rank() == 0
    say = prepare.sayer(first)
    trainer.check(settings.trainer)
    fitted_already(words)
    assessment = build.assessment(settings)
    model = model_file.load(settings.model)
    table, wanted, split = prepare.asked(build.source(settings).table(), settings.split, settings.data, model, say)
    prevalence = read_prevalence(settings.prevalence, table.classes, table.kind)
    assessment.check_columns(table.metadata)
    if first:
        run.begin(settings.resolved, words)
    table, images, _ = prepare.images(settings.data, table, model.preprocessing, say, run if first else None)
    data = prepare.batches(settings.data, settings.seed, table, images, model.preprocessing)
    met = known_images.find(model, table, images, data.rows(wanted))
    too_good = met.stop(split, settings.data.audit.on_leak)
    with ranks.launched(settings.resolved, run.path):
        answers = scoring.answers_of(model, table)
        predictions = scoring.predictions(model.network, data, wanted, settings.trainer.accelerator, answers)
    if not first:
        return
    run.note(model=scoring.about(settings.model, model), data=data_facts(table), notes=table.notes)
    written = scoring.write(run, {split: predictions})[split]
    fitted, notes = scoring.shipped(model, table.kind)
    if split == "val" and ("val" in met.sentences or not met.known):
        fitted, notes = FittedOnVal(), []  # val is what they know
    opened = scoring.count_opening(model, table.name, written, met, words, say)
    told = assessment.score(written, fitted, seed=settings.seed, prevalence=prevalence)
    told["warnings"] = [*too_good, *told["warnings"]]
    if notes:
        told["notes"] = notes
    if assessment.novelty and not met.same_set:
        path, accelerator = run.novelty(split), settings.trainer.accelerator
        comparison = novelty.against_own(
            model, data, data.rows(wanted), path, assessment.novelty, settings.seed, accelerator, say
        )
        if comparison is not None:
            told["novelty"] = comparison
    if prevalence:
        write_calibrated(run.calibrated(split), written, fitted.calibration, prevalence, say)
    of_network = [model.classes.index(name) for name in table.classes]
    points = fitted.operating_points
    worst_errors(run, model.network, data, written, assessment.thumbnails, points, of_network)
    report.write_report(run.path, scores={split: told})
    run.complete({split: told})
    scoring.show({split: told}, table.synthetic, say)
    if opened:
        report.write_report(opened.path)  # it shows how often the test split was opened
    say(f"predictions and scores: {run}")
    say(f"report: {run.report}")


def fitted_already(words: list[str]) -> None:
    """Refuse settings that only a fit reads: the model brings what its fit made of them."""
    for word in words:
        key = word.partition("=")[0]
        if key.lstrip("+~") == "evaluation.test":
            raise FinetuneError(f"{word!r} is for a fit. job=evaluate opens the split that split= names.")
        if word.lstrip("+~").startswith(FITTED):
            raise FinetuneError(
                f"{word!r}: {key} is fitted on val by a fit and travels in the model; job=evaluate applies it."
            )


def write_calibrated(
    path: Path,
    predictions: Predictions,
    calibration: Calibration | None,
    prevalence: dict[str, float],
    say: prepare.Say,
) -> None:
    """Per sample `calibrated_<class>` and, for `prevalence`, `adjusted_<class>`."""
    if calibration is None:
        say("No calibration of the model applies: no probability can be told for another prevalence, only PPV and NPV.")
        return
    calibrated = calibration.probabilities(predictions.logits)
    adjusted = with_prevalence(calibration, calibrated, prevalence)
    table = predictions.frame[["sample", "patient"]].copy()
    for prefix, values in (("calibrated_", calibrated), ("adjusted_", adjusted)):
        block = pd.DataFrame(values, columns=[prefix + name for name in calibration.classes], index=table.index)
        table = pd.concat([table, block[[prefix + name for name in calibration.calibrated]]], axis=1)
    write_text_atomic(path, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    say(f"calibrated probabilities, and adjusted to the prevalence: {path}")
