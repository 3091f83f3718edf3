"""job=tune: a search over hyperparameters. Its trials train and are compared on val; test is never predicted."""

from finetune.config.settings import TuneSettings
from finetune.config.trials import TrialConfigs
from finetune.errors import FinetuneError
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, search, search_results, trial
from finetune.training.launch import ranks
from finetune.tuning import study as studies


def tune(settings: TuneSettings, run: RunFolder, words: list[str]) -> None:
    """Check the space, read and audit the data once, run the trials, repeat the best over seeds, write the results.

    The same command with the same `study=` continues a search, also in several processes at once.
    """
    if ranks.rank() > 0:  # the first rank has sent a trial
        trial.train(settings, run, [], prepare.make_printer(False))
        return
    say = prepare.make_printer(True)
    configs = TrialConfigs(words, settings.space)
    start = configs.check()
    url = settings.storage or f"sqlite:///{run.path.resolve()}/study.db"
    recorded = {**settings.resolved, "storage": settings.storage and studies.hidden(settings.storage)}
    words = [f"storage={recorded['storage']}" if word.startswith("storage=") else word for word in words]
    begin(run, recorded, words)
    with prepare.auditing_once(), studies.open_storage(url) as storage:
        comparison = trial.prepare_search(settings, run, say)
        task = search.Search(settings, run, words, configs, comparison, storage)
        task.run_trials(start)
        if task.repeat_best():
            search_results.write(task)


def begin(run: RunFolder, config: dict[str, object], words: list[str]) -> None:
    """Take the folder for a search, or for more trials of the same one.

    Raises:
        FinetuneError: the folder holds a run of another job.
    """
    if not run.config.is_file():
        run.begin(config, words)
        return
    if (job := run.read_config().get("job")) != "tune":
        raise FinetuneError(f"{run} holds a run of job={job}. Choose another study=NAME, or hydra.run.dir=DIR.")
    run.begin_log(words)
