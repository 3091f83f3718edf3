"""job=push: a finished run onto the Hugging Face hub, with a model card."""

from finetune.config.settings import PushSettings
from finetune.runs.folder import RunFolder
from finetune.steps.push import push as push_run


def push(settings: PushSettings, run: RunFolder, words: list[str]) -> None:
    """Write the files to upload below the job's own folder, list them, and upload them unless it is a dry run."""
    run.check_free()
    pushed = push_run(
        settings.model,
        settings.to,
        private=settings.private,
        licence=settings.licence,
        dataset=settings.dataset,
        dry_run=settings.dry_run,
        folder=run.path,
    )
    run.begin_log(words)
    run.write_environment(words, push=pushed.to_dict())
