"""A search: its trials, and the best of them over other seeds."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError

from finetune.config.settings import TuneSettings
from finetune.config.trials import TrialConfigs
from finetune.errors import FinetuneError
from finetune.runs import group
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, trial
from finetune.tuning import results, space
from finetune.tuning import study as studies
from finetune.tuning.sampler import NumberedTPE

MAX_NAME_LENGTH = 60  # characters of a trial's folder after its number
OF_MACHINE = ("data.root", "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "storage", "study", "trials")
OF_SEARCH = ("startup", "pruner", "warmup", "top", "repeats", "keep_checkpoints", "search", "hydra")
HINT = "The same command with study={name} continues the search."


class Search:
    """A search in its run folder.

    Args:
        words: the command, for the record.
        configs: makes the configuration of a trial.
        comparison: what all trainings must share.
    """

    def __init__(
        self,
        settings: TuneSettings,
        run: RunFolder,
        words: list[str],
        configs: TrialConfigs,
        comparison: trial.Comparison,
        storage: optuna.storages.RDBStorage,
    ):
        self.settings, self.run, self.words, self.configs = settings, run, words, configs
        self.comparison, self.storage, self.stdout = comparison, storage, sys.stdout
        self.space = settings.space
        self.name = settings.study
        self.higher_is_better = comparison.higher_is_better
        self.seeds = [settings.seed + 1 + i for i in range(settings.repeats)]
        varied = [key for key in self.space if key.split(".")[0] == "loss"]
        if varied and comparison.monitor.endswith("loss"):
            raise FinetuneError(
                f"search.{varied[0]}: {comparison.monitor} compares the trials, and the values of different losses "
                f"cannot be compared. Leave it out: search.{varied[0]}=null."
            )
        pruner = studies.make_pruner(settings.pruner, settings.warmup, settings.trainer.max_epochs)
        sampler = NumberedTPE(settings.seed, settings.startup)
        self.study = studies.open_study(self.name, storage, self.facts(), sampler, pruner)
        self.repeats: optuna.Study | None = None

    def say(self, sentence: str) -> None:
        """Print a sentence, also while the output of a training goes to its log."""
        print(sentence, file=self.stdout, flush=True)

    def facts(self) -> dict[str, Any]:
        """What all trials of the study share, whatever process or machine runs them."""
        left_out = (*OF_MACHINE, *OF_SEARCH, *self.space)
        kept = {
            key: value
            for key, value in group.flat(self.settings.resolved).items()
            if not any(key == name or key.startswith(f"{name}.") for name in left_out)
        }
        return {
            "search": {key: entry.describe() for key, entry in self.space.items()},
            "monitor": self.comparison.monitor,
            "higher_is_better": self.higher_is_better,
            "val images": self.comparison.val,
            "settings": kept,
        }

    # -- trials --------------------------------------------------------------------------------------------------------

    def run_trials(self, start: Mapping[str, Any]) -> None:
        """Run trials until there are `trials`; the typed configuration is the first, if it lies in the space."""
        if not self.study.get_trials(deepcopy=False) and len(start) == len(self.space):
            parameters = {key: entry.parameter_of(start[key]) for key, entry in self.space.items()}
            self.study.enqueue_trial(parameters, user_attrs={"start": True}, skip_if_exists=True)
        done = studies.num_counted(self.study)
        self.say(
            f"search {self.name}: {len(self.space)} settings, {self.comparison.monitor} on val, {self.settings.trials} "
            f"trials" + (f", {done} of them begun before" if done else "")
        )
        studies.run_trials(self.study, self.settings.trials, self.one_trial)

    def one_trial(self, drawn: optuna.Trial) -> float:
        """Train one drawn configuration; its score on val."""
        values = space.draw(self.space, drawn)
        name = results.name_of(values)
        self.say(f"trial {drawn.number}: {name}")
        run = RunFolder(self.run.trials / f"{drawn.number:04d}_{folder_name(name)}")
        score = self.train(drawn, values, run, prune=True)
        best = results.completed(self.study, self.higher_is_better)
        before = f", best before {best[0].value:.4f} (trial {best[0].number})" if best else ""
        self.say(f"  {self.comparison.monitor} {score:.4f}{before}")
        return score

    def train(self, drawn: optuna.Trial, values: Mapping[str, Any], run: RunFolder, *, prune: bool) -> float:
        """Train a configuration with its output in log.txt of its folder; its score.

        Raises:
            optuna.TrialPruned: it was stopped early.
            FinetuneError: it failed.
        """
        drawn.set_user_attr("folder", str(run.path.relative_to(self.run.path)))

        def report(epoch: int, score: float) -> bool:
            self.say(f"  epoch {epoch}: {self.comparison.monitor} {score:.4f}")
            drawn.report(score, epoch)
            return prune and drawn.should_prune()

        try:
            settings = self.configs.settings(values)
            with log_of(run):
                result = trial.train(
                    settings,
                    run,
                    self.configs.words_of(values),
                    prepare.make_printer(True),
                    comparison=self.comparison,
                    report=report,
                    hint=HINT.format(name=self.name),
                    keep_checkpoints=self.settings.keep_checkpoints,
                )
        except FinetuneError as error:
            self.say(f"  failed: {error}")
            raise
        drawn.set_user_attr("epoch", result.fit.epoch)
        if result.stopped:
            self.say("  stopped early: below the earlier trials")
            raise optuna.TrialPruned
        if result.fit.score is None or result.fit.score != result.fit.score:
            raise FinetuneError(f"{self.comparison.monitor} is undefined in every epoch.")
        return result.fit.score

    # -- the best over seeds -------------------------------------------------------------------------------------------

    def top(self) -> list[optuna.trial.FrozenTrial]:
        """The best trials, the best first."""
        return results.completed(self.study, self.higher_is_better)[: self.settings.top]

    def repeat_best(self) -> bool:
        """Train the best trials with other seeds; False where another process still works on the search, which then
        writes the results.

        Raises:
            FinetuneError: no trial was completed.
        """
        if running := studies.running_elsewhere(self.study):
            self.say(f"trial {', '.join(map(str, running))} runs in another process, which will write the results.")
            return False
        best = self.top()
        if not best:
            raise FinetuneError(f"study={self.name} has no completed trial. {self.reasons()}")
        if not self.seeds:
            return True
        self.repeats, is_new = open_repeats(f"{self.name}: repeats", self.storage)
        if is_new or not studies.running_elsewhere(self.repeats):
            results.queue_repeats(self.repeats, [t.number for t in best], self.seeds)
        while results.has_waiting(self.repeats):
            studies.optimize(self.repeats, self.one_repeat)
        if studies.running_elsewhere(self.repeats):
            self.say("the last repeats run in another process, which will write the results.")
            return False
        return True

    def one_repeat(self, drawn: optuna.Trial) -> float:
        """Train a trial's configuration with another seed; its score."""
        drawn.set_user_attr(studies.PROCESS, studies.this_process())
        number, seed = (drawn.user_attrs.get(name) for name in (results.OF, results.SEED))
        original = next((t for t in self.top() if t.number == number), None)
        if original is None or seed not in self.seeds:  # of an earlier end of the search, or taken by another process
            drawn.set_user_attr(studies.SURPLUS, True)
            raise studies.TrialFailed
        values = {**space.values_of(self.space, original.params), "seed": seed}
        self.say(f"trial {number} again: {results.name_of(values)}")
        run = RunFolder(self.run.repeats / f"{number:04d}_seed_{seed}_{drawn.number}")
        return studies.guarded(drawn, lambda drawn: self.train(drawn, values, run, prune=False))

    def reasons(self) -> str:
        """Why no trial was completed."""
        reasons = {t["reason"] for t in results.describe_trials(self.study, self.space) if t["reason"]}
        return "Reasons: " + "; ".join(sorted(reasons)) if reasons else "All were stopped early or killed: pruner=none."


def open_repeats(name: str, storage: optuna.storages.RDBStorage) -> tuple[optuna.Study, bool]:
    """The study of repeats, and whether this process has made it; trials of dead processes are failed."""
    sampler = optuna.samplers.RandomSampler()  # there is nothing to draw
    try:
        return optuna.create_study(storage=storage, study_name=name, sampler=sampler), True
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler)
        studies.fail_dead(study)
        return study, False


def folder_name(name: str) -> str:
    """A trial's name in characters valid in paths and overrides."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")[:MAX_NAME_LENGTH]


@contextlib.contextmanager
def log_of(run: RunFolder) -> Iterator[None]:
    """What is printed within goes to log.txt of the run."""
    run.path.mkdir(parents=True, exist_ok=True)
    path: Path = run.log
    with path.open("a", encoding="utf-8", buffering=1) as file, contextlib.redirect_stdout(file):
        yield
