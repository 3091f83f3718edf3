"""job=fit: from a configuration to a complete run folder. A fit is a training, then an assessment."""

from typing import Any

from finetune.config import build
from finetune.evaluation import wording
from finetune.runs import data_record, known_images
from finetune.runs.environment import data_facts
from finetune.runs.folder import RunFolder
from finetune.steps import assess, prepare, scoring, training
from finetune.steps.training import FitResult
from finetune.training.launch import ranks


def fit(config: dict[str, Any], run: RunFolder, words: list[str], *, resumed: bool = False) -> FitResult:
    """Read and check the data, build the network, train, assess the best epoch, and write the run folder.

    The order matters: what can fail without an image being decoded comes first, and leaves no file behind; what the
    audit stops leaves its audit.json; scores.json comes last.
    """
    first = ranks.rank() == 0
    say = prepare.sayer(first)
    if first and not resumed:
        run.check_free()
    if debug := bool(config.get("debug_run")):
        say(wording.DEBUG)
    prepare.demo(config, say)
    table = prepare.table(config, say, recorded=run if resumed else None)
    recorded = resumed and data_record.table_hash(run) is not None  # what was trained on already
    if recorded:
        data_record.check_samples(run, table)
    prepare.check_trainable(table)
    training.check_batches(config, table)
    assessment = build.assessment(config)
    assessment.check_columns(table.metadata)
    build.loss(config, table.kind).weights(table.classes, table.targets()[table.rows("train")])  # refused early
    spec, network, of_weights, source = training.make_network(config, table, say)
    preprocessing = build.preprocessing(config, of_weights)
    if first and not resumed:
        run.begin(config, words)
    table, pictures, _ = prepare.pictures(config, table, preprocessing, say, run if first and not recorded else None)
    if recorded:
        data_record.check_data(run, table, pictures)
    if first and resumed:
        run.go_on(config, words)
        say(f"going on in {run}")
    if first and not (recorded and run.samples.is_file()):
        known_images.keep(run, table, pictures)
    if first and not recorded:
        run.note(weights=source, data=data_facts(table))
    data = prepare.batches(config, table, pictures, preprocessing, build.augment(config))
    accelerator = config["trainer"]["accelerator"]
    with ranks.launched(config, run.path) as place:
        result = training.train(config, run, table, network, data, say, place)
        tables = assess.predict_splits(network, data, assessment, accelerator)
    if not first:
        return result
    scores = assess.assess(
        run, network, spec, data, tables, assessment, words, seed=config["seed"], accelerator=accelerator
    )
    if debug:
        say(f"{wording.DEBUG} outputs/latest stays as it was.")
    else:
        run.become_latest()
    scoring.show(scores, table.synthetic, say)
    say(f"report: {run.report}")
    return result
