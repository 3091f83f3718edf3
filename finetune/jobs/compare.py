"""job=compare: finished runs on the same samples, seeds averaged, folds of one table pooled."""

from finetune.config.settings import CompareSettings
from finetune.files import write_json_atomic
from finetune.pages import comparison as page
from finetune.runs.environment import command
from finetune.runs.folder import RunFolder
from finetune.steps.compare import compare as compare_runs

MAX_RESAMPLES = 1000


def compare(settings: CompareSettings, run: RunFolder, words: list[str]) -> None:
    """Read the runs' predictions, print which is better and by how much, write compare.json and compare.html."""
    n_boot = min(settings.evaluation.get("resamples", MAX_RESAMPLES), MAX_RESAMPLES)
    comparison = compare_runs(settings.runs, split=settings.split, n_boot=n_boot, seed=settings.seed)
    run.begin_log(words)
    for number, folds in enumerate(comparison.folds):
        folds.pooled.write(run.predictions(f"oof_{number}" if len(comparison.folds) > 1 else "oof"))
    write_json_atomic(run.comparison, comparison.result)
    page.write(run.comparison_page, comparison.result, command(words))
    run.write_environment(words)
    print(comparison)
    print(f"comparison: {run.comparison_page}")
