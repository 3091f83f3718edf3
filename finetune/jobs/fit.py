"""job=fit: from a configuration to a complete run folder. A fit is a training, then an assessment."""

from finetune.config import build
from finetune.config.settings import FitSettings
from finetune.evaluation import wording
from finetune.runs import data_record, known_images
from finetune.runs.environment import data_facts
from finetune.runs.folder import RunFolder
from finetune.steps import assess, prepare, scoring, training
from finetune.steps.training import FitResult
from finetune.training.launch import ranks


def fit(settings: FitSettings, run: RunFolder, words: list[str], *, resumed: bool = False) -> FitResult:
    """Read and check the data, build the network, train, assess the best epoch, and write the run folder.

    The order matters: what can fail without an image being decoded comes first, and leaves no file behind; what the
    audit stops leaves its audit.json; scores.json comes last.
    """
    first = ranks.rank() == 0
    say = prepare.sayer(first)
    if first and not resumed:
        run.check_free()
    if debug := settings.debug_run:
        say(wording.DEBUG)
    if settings.demo:
        prepare.make_demo_images(settings.data, settings.trainer.max_epochs, say)
    table = prepare.table(build.source(settings).table(), settings.data, say, recorded=run if resumed else None)
    recorded = resumed and data_record.table_hash(run) is not None  # what was trained on already
    if recorded:
        data_record.check_samples(run, table)
    prepare.check_trainable(table)
    training.check_batches(settings.trainer, settings.data.batch_size, table)
    assessment = build.assessment(settings)
    assessment.check_columns(table.metadata)
    build.loss(settings, table.kind).weights(table.classes, table.targets()[table.rows("train")])  # refused early
    spec, network, of_weights, source = training.make_network(settings, table, say)
    preprocessing = build.preprocessing(settings, of_weights)
    if first and not resumed:
        run.begin(settings.resolved, words)
    table, images, _ = prepare.images(settings.data, table, preprocessing, say, run if first and not recorded else None)
    if recorded:
        data_record.check_data(run, table, images)
    if first and resumed:
        run.go_on(settings.resolved, words)
        say(f"going on in {run}")
    if first and not (recorded and run.samples.is_file()):
        known_images.write_samples(run, table, images)
    if first and not recorded:
        run.note(weights=source, data=data_facts(table))
    data = prepare.batches(settings.data, settings.seed, table, images, preprocessing, build.augment(settings))
    accelerator = settings.trainer.accelerator
    with ranks.launched(settings.resolved, run.path) as place:
        result = training.train(settings, run, table, network, data, say, place)
        tables = assess.predict_splits(network, data, assessment, accelerator)
    if not first:
        return result
    scores = assess.assess(
        run, network, spec, data, tables, assessment, words, seed=settings.seed, accelerator=accelerator
    )
    if debug:
        say(f"{wording.DEBUG} outputs/latest stays as it was.")
    else:
        run.become_latest()
    scoring.show(scores, table.synthetic, say)
    say(f"report: {run.report}")
    return result
