"""job=compare: finished runs side by side on the same samples, seeds averaged, folds of one table put together."""

from finetune.config.settings import CompareSettings
from finetune.files import write_json_atomic
from finetune.pages import comparison
from finetune.runs.environment import command
from finetune.runs.folder import RunFolder
from finetune.steps.compare import compare as compare_runs

MAX_RESAMPLES = 1000


def compare(settings: CompareSettings, run: RunFolder, words: list[str]) -> None:
    """Read the runs' predictions, say which is better and by how much, write compare.json and compare.html."""
    n_boot = min(settings.evaluation.get("resamples", MAX_RESAMPLES), MAX_RESAMPLES)
    found = compare_runs(settings.runs, split=settings.split, n_boot=n_boot, seed=settings.seed)
    run.begin_log(words)
    for number, folds in enumerate(found.folds):
        folds.pooled.write(run.predictions(f"oof_{number}" if len(found.folds) > 1 else "oof"))
    write_json_atomic(run.comparison, found.result)
    comparison.write(run.comparison_page, found.result, command(words))
    run.write_environment(words)
    print(found)
    print(f"comparison: {run.comparison_page}")
