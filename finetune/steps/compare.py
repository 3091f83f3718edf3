"""Finished runs side by side: which is better on the same samples, by how much, and is it more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, one_of
from finetune.evaluation.answers import comparable
from finetune.pages import comparison as comparison_report
from finetune.runs import group as finished
from finetune.runs.group import Folds


@dataclass(frozen=True, repr=False)
class Compared:
    """What a comparison found; printed, it is the table and the sentences that job=compare prints."""

    result: dict[str, Any]
    """As in compare.json: {split, n, patients, classes, candidates, pairs, seed_noise, runs, out_of_fold, warnings}."""
    folds: list[Folds]
    """Folds of one table that were put together: label, seed, the pooled predictions and each fold's."""

    def __repr__(self) -> str:
        return comparison_report.text(self.result)


def compare(
    runs: str | Path | Sequence[str | Path], *, split: str = "test", n_boot: int = 1000, seed: int = 0
) -> Compared:
    """Compare finished runs on the same samples: runs that differ in seed alone count as one setting, and folds of one
    table are put together.

    Args:
        runs: run folders, or a folder of them (outputs/multirun/STAMP).
        split: whose predictions, test or val. Choose by val, tell by test.
        n_boot: resamples of the patients.
        seed: of the resamples.

    Raises:
        FinetuneError: a run that was named is not there or not finished, or the runs do not answer the same samples.
            Unfinished runs in a folder of runs are left out, and named in the warnings.

    Example:
        >>> found = finetune.compare(["outputs/A", "outputs/B"], split="val")
        >>> print(found)  # the table, and what can be said of each pair
        >>> found.result["pairs"][0]["scores"]["macro_auroc"]  # a minus b, over the same patients
        {'value': 0.021, 'low': 0.004, 'high': 0.038, 'p': 0.017, 'seed_noise': 0.012, 'p_holm': 0.017}
    """
    if split not in ("test", "val"):
        raise one_of("split", split, ("test", "val"))
    read = [finished.read(path, split) for path in finished.find(runs)]
    if len(tasks := sorted({run.task for run in read})) > 1:
        raise FinetuneError(f"runs={runs} are of different tasks: {', '.join(tasks)}. Compare runs of one task.")
    answers = comparable(tasks[0])
    left_out = finished.unfinished(runs)
    candidates, collected, warnings = finished.group_runs(read)
    warnings = [*left_out, *warnings]
    if len(read) < 2:
        raise FinetuneError(" ".join([f"runs={runs} is a single run. Name two or more: runs=[a,b].", *left_out]))
    out_of_fold = [comparison_report.fold_scores(folds, n_boot, seed) for folds in collected]
    try:
        result = answers.compare(candidates, n_boot, seed)
    except FinetuneError as error:
        differing = finished.differing(read)
        raise FinetuneError(
            f"{error}" + (f" Their settings differ in {'; '.join(differing)}." if differing else "")
        ) from None
    if split == "test" and len(candidates) > 1:
        warnings.append(
            "These are scores on test: what is chosen by them is optimistic. Choose by split=val, report test."
        )
    result |= {
        "split": split,
        "runs": [{"path": str(r.path), "seed": r.seed, "fold": r.fold} for r in read],
        "out_of_fold": out_of_fold,
        "warnings": warnings,
    }
    return Compared(result, collected)
