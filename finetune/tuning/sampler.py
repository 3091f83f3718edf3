"""Tree-structured Parzen estimator whose draws depend on seed, number of the trial and earlier trials alone."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class NumberedTPE(BaseSampler):
    """Multivariate TPE (Bergstra et al., 2011; Falkner et al., 2018) with a random state of its own for each trial.

    Optuna's sampler draws from one random state per process: two processes with one seed would draw the same first
    trials, and a resumed study would repeat them.

    Args:
        seed: of all draws.
        startup: finished trials before the estimator is fitted; until then draws are independent and random.
    """

    def __init__(self, seed: int, startup: int = 10):
        self.seed, self.startup = seed, startup

    def tpe(self, trial: FrozenTrial, name: str = "") -> TPESampler:
        """The sampler for one trial, and for one parameter where it is drawn alone."""
        state = np.random.SeedSequence([self.seed, trial.number, zlib.crc32(name.encode())]).generate_state(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                seed=int(state[0]),
                n_startup_trials=self.startup,
                multivariate=True,
                constant_liar=True,  # trials that run elsewhere count as bad ones: no two processes try the same place
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.tpe(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.tpe(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.tpe(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.tpe(trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.tpe(trial).after_trial(study, trial, state, values)
