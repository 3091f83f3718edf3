"""job=explain: where a finished model looks, what it got most wrong, and whether its maps are to be trusted."""

from finetune import model_file
from finetune.config import build
from finetune.config.settings import ExplainSettings
from finetune.runs.folder import RunFolder
from finetune.steps.task import Task, own_model
from finetune.training.launch import ranks


def explain(settings: ExplainSettings, run: RunFolder, words: list[str]) -> None:
    """Explain chosen images, or a split, as the model's task does it."""
    if ranks.rank() != 0:
        return  # what other processes were started for has nothing to share here
    task: Task = build.task(settings)
    task.explain(settings, own_model(model_file.load(settings.model), task, settings.model), run, words)
