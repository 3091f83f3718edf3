"""What a study has found: its trials in plain values, which settings mattered, the best of them over several seeds."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from finetune.tuning.space import Entry, shown, values_of
from finetune.tuning.study import PROCESS, REASON, SURPLUS, counts

MIN_FOR_IMPORTANCE = 20  # completed trials; of fewer, the best quarter is too small
BEST_SHARE = 0.25  # of the completed trials, which importance tells from all of them
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
OF, SEED = "of", "seed"
"""Attributes of a repeat: the number of its trial, and its seed."""


def completed(study: optuna.Study, higher_is_better: bool) -> list[FrozenTrial]:
    """The trials that were trained to their end, the best first; of equal ones the earlier."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if higher_is_better else 1
    return sorted(trials, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def describe_trial(trial: FrozenTrial, space: Mapping[str, Entry]) -> dict[str, Any]:
    """A trial in plain values."""
    values = values_of(space, trial.params)
    killed = trial.state == TrialState.FAIL and REASON not in trial.user_attrs
    return {
        "number": trial.number,
        "state": "killed" if killed else STATES[trial.state],
        "score": trial.value if trial.state == TrialState.COMPLETE else None,
        "epoch": trial.user_attrs.get("epoch"),
        "epochs": len(trial.intermediate_values),
        "seconds": trial.user_attrs.get("seconds"),
        "values": values,
        "parameters": dict(trial.params),
        "reason": trial.user_attrs.get(REASON),
        "folder": trial.user_attrs.get("folder"),
    }


def describe_trials(study: optuna.Study, space: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """All trials but the waiting and surplus ones, by their number."""
    trials = study.get_trials(deepcopy=False)
    begun = [t for t in trials if t.state != TrialState.WAITING and SURPLUS not in t.user_attrs]
    return [describe_trial(trial, space) for trial in begun if counts(trial) or PROCESS in trial.user_attrs]


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each searched key in reaching the best quarter of the completed trials, by PED-ANOVA (Watanabe et al.,
    2023); the largest first. Empty with fewer than MIN_FOR_IMPORTANCE trials, or with equal scores."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) < MIN_FOR_IMPORTANCE or len({trial.value for trial in trials}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        shares = optuna.importance.get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        )
    if not all(math.isfinite(share) for share in shares.values()):
        return {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


# -- repeats -----------------------------------------------------------------------------------------------------------


def queue_repeats(repeats: optuna.Study, numbers: Sequence[int], seeds: Sequence[int]) -> None:
    """Add a waiting trial for each (trial number, seed) that has neither ended, nor runs, nor waits."""
    present = {
        (t.user_attrs[OF], t.user_attrs[SEED])
        for t in repeats.get_trials(deepcopy=False)
        if OF in t.user_attrs and (counts(t) or t.state == TrialState.WAITING)
    }
    for number in numbers:
        for seed in seeds:
            if (number, seed) not in present:
                repeats.enqueue_trial({}, user_attrs={OF: number, SEED: seed})


def has_waiting(study: optuna.Study) -> bool:
    """Whether trials wait to be run."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def repeated(repeats: optuna.Study | None, number: int, seeds: Sequence[int]) -> dict[int, FrozenTrial]:
    """Seed -> the completed repeat of a trial, the first where two processes have made one."""
    trials = [] if repeats is None else repeats.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    by_seed: dict[int, FrozenTrial] = {}
    for trial in trials:
        if trial.user_attrs.get(OF) == number and trial.user_attrs[SEED] in seeds:
            by_seed.setdefault(trial.user_attrs[SEED], trial)
    return dict(sorted(by_seed.items()))


def spread(candidates: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The noise floor: {sd, df, single}; None where no candidate has two seeds.

    `sd` is the standard deviation over seeds, pooled over the candidates, with `df` degrees of freedom; two single runs
    of one configuration differ by less than `single` in 95 % of cases.
    """
    groups = [[seed["score"] for seed in candidate["seeds"]] for candidate in candidates]
    groups = [scores for scores in groups if len(scores) > 1]
    df = sum(len(scores) - 1 for scores in groups)
    if not df:
        return None
    squares = sum(statistics.variance(scores) * (len(scores) - 1) for scores in groups)
    sd = math.sqrt(squares / df)
    return {"sd": sd, "df": df, "single": float(stats.t.ppf(0.975, df)) * sd * math.sqrt(2)}


def choose(candidates: Sequence[Mapping[str, Any]], higher_is_better: bool) -> Mapping[str, Any]:
    """The candidate of the best mean over its seeds; where none was repeated, that of the best trial.

    The trial's own score is left out of the mean: it was picked for being high.
    """
    known = [candidate for candidate in candidates if candidate["mean"] is not None]
    sign = 1 if higher_is_better else -1
    return max(known, key=lambda candidate: sign * candidate["mean"]) if known else candidates[0]


def name_of(values: Mapping[str, Any]) -> str:
    """`optimizer.lr=0.0003 loss=focal`"""
    return " ".join(f"{key}={shown(value)}" for key, value in values.items())
