"""Compare finished runs on the same samples: which is better, by how much, and is it more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, one_of
from finetune.evaluation.answers import comparable
from finetune.pages import comparison as comparison_report
from finetune.runs import group
from finetune.runs.group import Folds
from finetune.runs.read import Run


@dataclass(frozen=True, repr=False)
class Compared:
    """The result of a comparison; printed, it is the table and the sentences of job=compare."""

    result: dict[str, Any]
    """As in compare.json: {split, n, patients, classes, candidates, pairs, seed_noise, runs, out_of_fold, warnings}."""
    folds: list[Folds]
    """Pooled folds of one table: label, seed, the pooled predictions and each fold's."""

    def __repr__(self) -> str:
        return comparison_report.text(self.result)


def compare(
    runs: str | Path | Sequence[str | Path | Run], *, split: str = "test", n_boot: int = 1000, seed: int = 0
) -> Compared:
    """Compare finished runs on the same samples. Runs that differ only in their seed count as one setting, and folds of
    one table are pooled.

    Args:
        runs: run folders, or runs that were read, or a folder of runs (outputs/multirun/STAMP).
        split: test or val. Choose by val, report test.
        n_boot: number of bootstrap resamples of the patients.
        seed: of the resamples.

    Raises:
        FinetuneError: a named run is missing or unfinished, or the runs have predictions of different samples.
            Unfinished runs in a folder of runs are left out, and named in the warnings.

    Example:
        >>> comparison = finetune.compare(["outputs/A", "outputs/B"], split="val")
        >>> print(comparison)  # the table, and a sentence on each pair
        >>> comparison.result["pairs"][0]["scores"]["macro_auroc"]  # a minus b, on the same patients
        {'value': 0.021, 'low': 0.004, 'high': 0.038, 'p': 0.017, 'seed_noise': 0.012, 'p_holm': 0.017}
    """
    if split not in ("test", "val"):
        raise one_of("split", split, ("test", "val"))
    named = runs if isinstance(runs, str | Path) else [_folder(run) for run in runs]
    finished_runs = [group.read(path, split) for path in group.find(named)]
    if len(tasks := sorted({run.task for run in finished_runs})) > 1:
        raise FinetuneError(f"runs={named} are of different tasks: {', '.join(tasks)}. Compare runs of one task.")
    answers = comparable(tasks[0])
    left_out = group.unfinished(named)
    candidates, folds, warnings = group.group_runs(finished_runs)
    warnings = [*left_out, *warnings]
    if len(finished_runs) < 2:
        raise FinetuneError(" ".join([f"runs={named} is a single run. Name two or more: runs=[a,b].", *left_out]))
    out_of_fold = [comparison_report.fold_scores(fold_group, n_boot, seed) for fold_group in folds]
    try:
        result = answers.compare(candidates, n_boot, seed)
    except FinetuneError as error:
        differing = group.differing(finished_runs)
        raise FinetuneError(
            f"{error}" + (f" Their settings differ in {'; '.join(differing)}." if differing else "")
        ) from None
    if split == "test" and len(candidates) > 1:
        warnings.append("These are scores on test: choosing by them is optimistic. Choose by split=val, report test.")
    result |= {
        "split": split,
        "runs": [{"path": str(r.path), "seed": r.seed, "fold": r.fold} for r in finished_runs],
        "out_of_fold": out_of_fold,
        "warnings": warnings,
    }
    return Compared(result, folds)


def _folder(run: str | Path | Run) -> str | Path:
    """The folder of a run."""
    if not isinstance(run, Run):
        return run
    if run.folder is None:
        raise FinetuneError("A run was not read from a folder: finetune.read_run(FOLDER) reads one.")
    return run.folder
