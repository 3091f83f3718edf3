"""job=fit: from a configuration to a complete run folder. A fit is a training, then an assessment."""

from finetune.config import build
from finetune.config.settings import FitSettings
from finetune.evaluation import wording
from finetune.runs import data_record, known_images
from finetune.runs.environment import data_facts
from finetune.runs.folder import RunFolder
from finetune.steps import assess, prepare, training
from finetune.steps.task import Subject
from finetune.steps.training import FitResult
from finetune.training.launch import ranks


def fit(settings: FitSettings, run: RunFolder, words: list[str], *, resumed: bool = False) -> FitResult:
    """Read and check the data, build the network, train, assess the best epoch, and write the run folder.

    The order matters: steps that can fail without decoding an image come first, and leave no file behind; a fit stopped
    by the audit leaves audit.json; scores.json comes last.
    """
    first = ranks.rank() == 0
    say = prepare.make_printer(first)
    if first and not resumed:
        run.check_free()
    if debug := settings.debug_run:
        say(wording.DEBUG)
    if settings.demo:
        prepare.make_demo_images(settings.data, settings.trainer.max_epochs, say)
    table = prepare.load_table(build.source(settings).table(), settings.data, say, recorded=run if resumed else None)
    recorded = resumed and data_record.table_hash(run) is not None  # the data of the earlier training
    if recorded:
        data_record.check_samples(run, table)
    training.check_batches(settings.trainer, settings.data.batch_size, table)
    task = build.task(settings)
    task.check(table)
    spec, network, pretrained, weights_report = training.make_network(settings, task.num_outputs(table), say)
    preprocessing = build.preprocessing(settings, pretrained)
    if first and not resumed:
        run.begin(settings.resolved, words)
    table, images, _ = prepare.decode_and_audit(
        settings.data, table, preprocessing, say, run if first and not recorded else None
    )
    if recorded:
        data_record.check_data(run, table, images)
    if first and resumed:
        run.go_on(settings.resolved, words)
        say(f"resuming {run}")
    if first and not (recorded and run.samples.is_file()):
        known_images.write_samples(run, table, images)
    if first and not recorded:
        run.note(weights=weights_report, data=data_facts(table))
    augment, mixing = build.augment(settings), build.mixing(settings)
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, preprocessing, augment, mixing)
    subject = Subject(
        network, data, data.rows("val"), "val", accelerator=settings.trainer.accelerator, seed=settings.seed
    )
    with ranks.launch(settings.resolved, run.path) as place:
        result = training.train(settings, run, task, network, data, say, place)
        tables, fitted = assess.predict_splits(task, subject)
    if not first:
        return result
    scores = assess.assess(run, task, spec, subject, tables, fitted, words)
    if debug:
        say(f"{wording.DEBUG} outputs/latest stays as it was.")
    else:
        run.become_latest()
    for line in task.summary(scores, synthetic=table.synthetic):
        say(line)
    say(f"report: {run.report}")
    return result
