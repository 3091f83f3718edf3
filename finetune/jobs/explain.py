"""job=explain: heat maps of a finished model, its most confident errors, and tests of the maps."""

from finetune import model_file
from finetune.config import build
from finetune.config.settings import ExplainSettings
from finetune.runs.folder import RunFolder
from finetune.steps.task import Task, check_model_task
from finetune.training.launch import ranks


def explain(settings: ExplainSettings, run: RunFolder, words: list[str]) -> None:
    """Explain chosen images, or a split, by the model's task."""
    if ranks.rank() != 0:
        return  # one process does all the work
    task: Task = build.task(settings)
    task.explain(settings, check_model_task(model_file.load(settings.model), task, settings.model), run, words)
