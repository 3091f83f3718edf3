"""job=evaluate: a finished model on a split of its own data or on another data set."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from finetune import build, package
from finetune.errors import FinetuneError, one_of
from finetune.evaluation import report
from finetune.evaluation.assessment import Fitted, read_prevalence
from finetune.evaluation.calibration import Calibration, with_prevalence
from finetune.evaluation.files import write_json_atomic, write_text_atomic
from finetune.evaluation.predictions import Predictions
from finetune.jobs import novelty, prepare, published, run_folder, scoring, seen
from finetune.training import ranks

SPLITS = ("train", "val", "test", "all")
FITTED = tuple(f"evaluation.{key}" for key in ("calibration", "operating_points", "coverages", "conformal"))


def evaluate(config: dict[str, Any], run: Path, words: list[str]) -> None:
    """Load, read the data as for a fit, predict, and write predictions and scores."""
    if config["predictions"]:
        published.score_file(config, run, words)
        return
    first = ranks.rank() == 0
    say = prepare.sayer(first)
    split = config["split"]
    if split not in SPLITS:
        raise one_of("split", split, SPLITS)
    build.check_data(config["data"])
    build.check_trainer(config["trainer"])
    fitted_already(words)
    assessment = build.assessment(config)
    model = package.load(config["model"])
    prevalence = read_prevalence(config["prevalence"], model.classes, model.kind)
    if first:
        run_folder.begin(run, config, words)
    table, wanted = prepare.asked(config, model, say)
    assessment.check_columns(table.metadata)
    table, pictures, _ = prepare.pictures(config, table, model.preprocessing, say, run if first else None)
    data = prepare.batches(config, table, pictures, model.preprocessing)
    met = seen.again(model, table, pictures, data.rows(wanted))
    too_good = met.stop(split, config["data"]["audit"]["on_leak"])
    with ranks.launched(config, run):
        found = scoring.predictions(model.network, data, wanted, config["trainer"]["accelerator"])
    if not first:
        return
    run_folder.note(run, model={"path": str(config["model"]), "weights_hash": model.weights_hash}, notes=table.notes)
    written = scoring.write(run, {split: found})
    fitted = Fitted(model.calibration, model.operating_points, model.selective, model.conformal)
    if split == "val" and ("val" in met.pictures or not met.known):
        fitted = Fitted()  # val is what they know
    opened = count_opening(model, table.name, written[split], words, say)
    scores = {split: assessment.told(written[split], fitted, seed=config["seed"], prevalence=prevalence)}
    scores[split]["warnings"] = [*too_good, *scores[split]["warnings"]]
    path = run / f"novelty_{split}.csv"
    args = (written[split], path, config, say)
    if strange := None if met.same_set else novelty.against_own(model, data, data.rows(wanted), *args):
        scores[split]["novelty"] = strange
    if prevalence:
        write_calibrated(run / f"calibrated_{split}.csv", written[split], model.calibration, prevalence, say)
    write_json_atomic(run / "scores.json", scores)
    scoring.show(scores, table.synthetic, say)
    if opened:
        report.write_report(opened)  # it shows how often the test split was opened
    say(f"predictions and scores: {run}")


def fitted_already(words: list[str]) -> None:
    """Refuse settings that only a fit reads: the model brings what its fit made of them."""
    for word in words:
        if word.lstrip("+~").startswith(FITTED):
            key = word.partition("=")[0]
            raise FinetuneError(
                f"{word!r}: {key} is fitted on val by a fit and travels in the model; job=evaluate applies it."
            )


def count_opening(
    model: package.Model, name: str, predictions: Predictions, words: list[str], say: prepare.Say
) -> Path | None:
    """The model's own run folder, if images of its test split are among those evaluated: an opening that is counted."""
    own = model.path.parent if model.path else Path()
    if not all((own / file).is_file() for file in ("scores.json", "predictions_test.csv", "environment.json")):
        return None
    if (json.loads((own / "environment.json").read_text(encoding="utf-8")).get("data") or {}).get("name") != name:
        return None
    test = pd.read_csv(own / "predictions_test.csv", usecols=["sample"], dtype=str)["sample"]
    if not (images := int(predictions.frame["sample"].isin(test).sum())):
        return None
    try:
        times = run_folder.open_test(own, words, images)
    except OSError as error:
        say(f"{own} cannot be written ({error.strerror}): this opening of its test split is not counted.")
        return None
    say(f"This is opening {times} of the test split of {own}. Choose nothing by it.")
    return own


def write_calibrated(
    path: Path,
    predictions: Predictions,
    calibration: Calibration | None,
    prevalence: dict[str, float],
    say: prepare.Say,
) -> None:
    """Per sample `calibrated_<class>` and, for `prevalence`, `adjusted_<class>`."""
    if calibration is None:
        say("The model ships no calibration: no probability can be told for another prevalence, only PPV and NPV.")
        return
    calibrated = calibration.probabilities(predictions.logits)
    adjusted = with_prevalence(calibration, calibrated, prevalence)
    table = predictions.frame[["sample", "patient"]].copy()
    for prefix, values in (("calibrated_", calibrated), ("adjusted_", adjusted)):
        block = pd.DataFrame(values, columns=[prefix + name for name in calibration.classes], index=table.index)
        table = pd.concat([table, block[[prefix + name for name in calibration.calibrated]]], axis=1)
    write_text_atomic(path, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    say(f"calibrated probabilities, and adjusted to the prevalence: {path}")
