"""job=fit: from a configuration to a complete run folder. A fit is a training, then an assessment."""

from finetune.config import build
from finetune.config.settings import FitSettings
from finetune.evaluation import wording
from finetune.runs import data_record, known_images
from finetune.runs.environment import data_facts
from finetune.runs.folder import RunFolder
from finetune.steps import assess, distillation, find, prepare, training
from finetune.steps.beginning import begin
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
    begun = begin(settings, say, recorded=run if resumed else None)
    task, teacher, network, preprocessing = begun.task, begun.teacher, begun.network, begun.preprocessing
    recorded = resumed and data_record.table_hash(run) is not None  # the data of the earlier training
    if teacher is not None:  # fails before decoding
        distillation.make_objective(settings, task, begun.table, begun.table.rows("train"), preprocessing, teacher)
        if resumed:
            distillation.check_same(run, teacher)
    if first and not resumed:
        run.begin(settings.resolved, words)
    table, images, _ = prepare.decode_and_audit(
        settings.data, begun.table, preprocessing, say, run if first and not recorded else None
    )
    if recorded:
        data_record.check_data(run, table, images)
    if first and resumed:
        run.go_on(settings.resolved, words)
        say(f"resuming {run}")
    if settings.find and first:
        settings, record = find.find_values(
            settings,
            task,
            network,
            lambda tried: prepare.make_datamodule(
                tried.data, tried.seed, table, images, preprocessing, build.augment(tried), build.mixing(tried)
            ),
            say,
            teacher,
        )
        training.check_batches(settings.trainer, settings.data.batch_size, table)
        run.write_config(settings.resolved)
        run.note(found=record)
    augment, mixing = build.augment(settings), build.mixing(settings)
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, preprocessing, augment, mixing)
    facts = {}
    if teacher is not None:
        leaks = distillation.check_images(settings, teacher, data)
        for sentence in leaks:
            say(f"WARNING: {sentence}")
        facts["teacher"] = distillation.describe(settings, teacher, leaks)
    if first and not (recorded and run.samples.is_file()):
        known_images.write_samples(run, table, images)
    if first and not recorded:
        run.note(weights=begun.weights, data=data_facts(table), **facts)
    subject = Subject(
        network, data, data.rows("val"), "val", None, settings.trainer.accelerator, settings.seed, task.tta
    )
    with ranks.launch(settings.resolved, run.path) as place:
        result = training.train(settings, run, task, network, data, say, place, teacher)
        tables, fitted = assess.predict_splits(task, subject)
    if not first:
        return result
    scores = assess.assess(run, task, begun.spec, subject, tables, fitted, words, say)
    if debug:
        say(f"{wording.DEBUG} outputs/latest stays as it was.")
    else:
        run.become_latest()
    for line in task.summary(scores, synthetic=table.synthetic):
        say(line)
    say(f"report: {run.report}")
    return result
