"""job=compare: finished runs side by side on the same samples, seeds averaged, folds of one table put together."""

from pathlib import Path
from typing import Any

from finetune import build
from finetune.errors import FinetuneError, one_of
from finetune.evaluation import comparison, comparison_report, runs
from finetune.evaluation.files import write_json_atomic
from finetune.jobs import run_folder

MOST_RESAMPLES = 1000


def compare(config: dict[str, Any], run: Path, words: list[str]) -> None:
    """Read the runs' predictions, say which is better and by how much, write compare.json and compare.html."""
    split, n_boot = config["split"], min(build.assessment(config).resamples, MOST_RESAMPLES)
    if split not in ("test", "val"):
        raise one_of("split", split, ("test", "val"))
    read = [runs.read(path, split) for path in runs.find(config["runs"])]
    candidates, collected, warnings = runs.grouped(read)
    if len(read) < 2:
        raise FinetuneError(f"runs={config['runs']} is a single run. Name two or more: runs=[a,b].")
    out_of_fold = [comparison_report.told_folds(folds, n_boot, config["seed"]) for folds in collected]
    for number, folds in enumerate(collected):
        folds.pooled.write(run / f"predictions_oof{f'_{number}' if len(collected) > 1 else ''}.csv")
    try:
        told = comparison.compare(candidates, n_boot, config["seed"])
    except FinetuneError as error:
        differing = runs.differing(read)
        raise FinetuneError(
            f"{error}" + (f" Their settings differ in {'; '.join(differing)}." if differing else "")
        ) from None
    if split == "test" and len(candidates) > 1:
        warnings.append(
            "These are scores on test: what is chosen by them is hopeful. Choose by split=val, tell by test."
        )
    told |= {
        "split": split,
        "runs": [{"path": str(r.path), "seed": r.seed, "fold": r.fold} for r in read],
        "out_of_fold": out_of_fold,
        "warnings": warnings,
    }
    write_json_atomic(run / "compare.json", told)
    comparison_report.write(run / "compare.html", told, run_folder.command(words))
    write_json_atomic(run / "environment.json", {"command": run_folder.command(words), **run_folder.environment()})
    print(comparison_report.text(told))
    print(f"comparison: {run / 'compare.html'}")
