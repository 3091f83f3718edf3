"""The assessment of a trained network: predictions, what is fitted on val, the model file, scores and the report."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.data.loading.module import ImageData
from finetune.evaluation.classification.assessment import Assessment
from finetune.evaluation.classification.predictions import Predictions
from finetune.model_file import Model
from finetune.network import Network, NetworkSpec
from finetune.pages import report
from finetune.runs.folder import RunFolder
from finetune.steps import novelty, scoring
from finetune.steps.worst_errors import worst_errors


def predict_splits(
    network: Network, data: ImageData, assessment: Assessment, accelerator: str
) -> dict[str, Predictions | None]:
    """The predictions of val, and of test where the fit may open it; None on all ranks but the first."""
    splits = [split for split in ("val", *(["test"] if assessment.test else [])) if len(data.rows(split))]
    return {split: scoring.predictions(network, data, split, accelerator) for split in splits}


def assess(
    run: RunFolder,
    network: Network,
    spec: NetworkSpec,
    data: ImageData,
    tables: Mapping[str, Predictions | None],
    assessment: Assessment,
    words: list[str],
    *,
    seed: int,
    accelerator: str,
) -> dict[str, Any]:
    """Write all that a complete run holds, scores.json last; the scores.

    Everything is fitted on val. The test split is predicted, scored and counted as opened only with
    `evaluation.test=true`.
    """
    run.begin_results()
    written = scoring.write(run, tables)
    fitted = assessment.fit(written.get("val"))  # nothing is ever fitted on test
    closed = len(data.rows("test")) if "test" not in written else 0
    if closed:
        fitted = replace(fitted, notes=[*fitted.notes, closed_test_note(run, closed)])
    model = Model(
        network,
        spec,
        data.table.classes,
        data.table.kind,
        data.preprocessing,
        provenance(run.read_environment()),
        calibration=fitted.calibration,
        operating_points=fitted.operating_points,
        selective=fitted.selective,
        conformal=fitted.conformal,
    )
    model.save(run.model)
    if assessment.novelty:
        novelty.keep(run, network, data, written.get("test"), assessment.novelty, seed, accelerator)
    if "test" in written:
        run.open_test(words, len(written["test"]))
    scores = scoring.scores(written, assessment, fitted, seed)
    reported = written.get("test") or written.get("val")
    if reported is not None:  # before the report, which shows them
        worst_errors(run, network, data, reported, assessment.thumbnails, fitted.operating_points)
    report.write_report(run.path, scores=scores)
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
