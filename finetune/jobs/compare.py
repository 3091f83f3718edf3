"""job=compare: finished runs side by side on the same samples, seeds averaged, folds of one table put together."""

from pathlib import Path
from typing import Any

from finetune.config import build
from finetune.files import write_json_atomic
from finetune.pages import comparison
from finetune.runs import folder as run_folder
from finetune.runs import log
from finetune.steps.compare import compare as compare_runs

MOST_RESAMPLES = 1000


def compare(config: dict[str, Any], run: Path, words: list[str]) -> None:
    """Read the runs' predictions, say which is better and by how much, write compare.json and compare.html."""
    n_boot = min(build.assessment(config).resamples, MOST_RESAMPLES)
    found = compare_runs(config["runs"], split=config["split"], n_boot=n_boot, seed=config["seed"])
    log.begin(run, run_folder.command(words))
    for number, folds in enumerate(found.folds):
        folds.pooled.write(run / f"predictions_oof{f'_{number}' if len(found.folds) > 1 else ''}.csv")
    write_json_atomic(run / "compare.json", found.result)
    comparison.write(run / "compare.html", found.result, run_folder.command(words))
    write_json_atomic(run / "environment.json", {"command": run_folder.command(words), **run_folder.environment()})
    print(found)
    print(f"comparison: {run / 'compare.html'}")
