"""The run folder: the name of every file in it, what begins, continues and completes a run, and outputs/latest."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from finetune.data.audit import audit, near_pairs
from finetune.errors import FinetuneError
from finetune.evaluation import novelty
from finetune.files import (
    LONGER,
    MODEL,
    SAMPLES,
    SCORES,
    is_finished,
    resume_word,
    write_json_atomic,
    write_text_atomic,
)
from finetune.runs import log
from finetune.runs.config_file import CONFIG, read_config_file
from finetune.runs.environment import command, environment_facts, now

if TYPE_CHECKING:
    from finetune.model_file import Model

PARTIAL = re.compile(r"\..+\.\d+")
"""Name of a file that a process was writing when it was killed: .NAME.PID"""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def of_model(cls, model: Model) -> RunFolder | None:
        """The folder that a model file lies in: its run's, unless it was moved away; None for a model in memory."""
        return None if model.path is None else cls(model.path.parent)

    # -- the files ----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def audit(self) -> Path:
        return self.path / audit.FILE

    @property
    def near_copies(self) -> Path:
        return self.path / near_pairs.SHEET

    @property
    def samples(self) -> Path:
        """The images of the fit, with patient, split and digest."""
        return self.path / SAMPLES

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def timm_config(self) -> Path:
        """By which timm and transformers read the model; only of networks that timm can build."""
        return self.path / "config.json"

    @property
    def feature_gaussian(self) -> Path:
        """The Gaussian over the features of the training images."""
        return self.path / novelty.FILE

    @property
    def scores(self) -> Path:
        """Written last: a run without it is unfinished."""
        return self.path / SCORES

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def worst_errors(self) -> Path:
        return self.path / "worst_errors.json"

    @property
    def cases(self) -> Path:
        """Of masks and boxes: what the report shows of single images (`pages/cases.py`)."""
        return self.path / "cases.json"

    @property
    def mean_shape(self) -> Path:
        """Of masks: the mean shape of those of the training images, in the network's square."""
        return self.path / "mean_shape.png"

    @property
    def test_openings(self) -> Path:
        """One line per opening of the test split."""
        return self.path / "test_openings.jsonl"

    def predictions(self, split: str) -> Path:
        return self.path / f"predictions_{split}.csv"

    def predicted_splits(self) -> list[str]:
        """The splits that have a table of predictions."""
        return sorted(path.stem.removeprefix("predictions_") for path in self.path.glob("predictions_*.csv"))

    def calibrated(self, split: str) -> Path:
        """Calibrated probabilities, and those at another prevalence."""
        return self.path / f"calibrated_{split}.csv"

    def novelty(self, split: str) -> Path:
        return self.path / f"novelty_{split}.csv"

    @property
    def explanation(self) -> Path:
        return self.path / "explain.json"

    @property
    def explanation_page(self) -> Path:
        return self.path / "explain.html"

    @property
    def explanation_sheet(self) -> Path:
        return self.path / "explanations.png"

    @property
    def comparison(self) -> Path:
        return self.path / "compare.json"

    @property
    def comparison_page(self) -> Path:
        return self.path / "compare.html"

    @property
    def trials(self) -> Path:
        """Of a search: a run folder per trial."""
        return self.path / "trials"

    @property
    def repeats(self) -> Path:
        """Of a search: a run folder for each of the best trials with each further seed."""
        return self.path / "repeats"

    @property
    def tuning(self) -> Path:
        return self.path / "tuning.json"

    @property
    def tuning_page(self) -> Path:
        return self.path / "tuning.html"

    @property
    def best_experiment(self) -> Path:
        """The best configuration of a search, in a folder for --config-dir."""
        return self.path / "conf" / "experiment" / "best.yaml"

    @property
    def preview(self) -> Path:
        return self.path / "preview.json"

    @property
    def first_batch(self) -> Path:
        return self.path / "batch.png"

    @property
    def answers(self) -> Path:
        """What job=predict writes where no other file is named."""
        return self.path / "predictions.csv"

    # -- reading ------------------------------------------------------------------------------------------------------

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration, as plain values, with current names.

        Raises:
            FinetuneError: no run folder, or a config.yaml that is damaged or still holds interpolations.
        """
        if not self.config.is_file():
            raise FinetuneError(f"{self} is not a run folder: it has no {CONFIG}.")
        return read_config_file(self.config)

    def read_environment(self) -> dict[str, Any]:
        """environment.json; empty where there is none.

        Raises:
            FinetuneError: a file that is damaged.
        """
        path = self.environment
        try:
            facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise FinetuneError(f"{path} cannot be read as JSON: {error}.") from None
        if not isinstance(facts, dict):
            raise FinetuneError(f"{path} is not an object of JSON.")
        return facts

    # -- a run begins, continues and is complete ----------------------------------------------------------------------

    def check_free(self) -> None:
        """Refuse a folder that holds another run; leftovers of a stopped job other than a fit may be overwritten."""
        if not self.config.exists():
            return
        try:
            is_fit = self.read_config().get("job", "fit") == "fit"
        except FinetuneError:
            is_fit = True
        results = (self.scores, self.explanation, self.preview, self.comparison, self.tuning)
        if is_fit or any(path.exists() for path in results):
            way = f"Continue it by {resume_word(self.path)}, or name" if is_fit else "Name"
            raise FinetuneError(f"{self} holds a run already. {way} another folder: hydra.run.dir=DIR.")

    def begin(self, config: dict[str, Any], words: list[str]) -> None:
        """Take the folder for a new run: config.yaml, environment.json and log.txt.

        Raises:
            FinetuneError: the folder holds another run.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self.begin_log(words)
        self.write_config(config)
        self.write_environment(words, seed=config["seed"])

    def go_on(self, config: dict[str, Any], words: list[str]) -> None:
        """Take the folder of a stopped or finished fit again, after all checks: write config.yaml, note the resumption
        in environment.json, remove partial files of killed processes. Results stay unchanged."""
        self.begin_log(words)
        for folder in (self.path, self.checkpoints):
            for partial in folder.glob(".*"):
                if PARTIAL.fullmatch(partial.name):
                    partial.unlink(missing_ok=True)
        if self.scores.is_file() and not self._longer.is_file():
            write_text_atomic(self._longer, "training")
        self.write_config(config)
        resumption = {"when": now(), "command": command(words), **environment_facts()}
        self.note(resumed=[*self.read_environment().get("resumed", []), resumption])

    def begin_log(self, words: list[str]) -> None:
        """Copy all output to log.txt from now on, with all that was printed before."""
        log.begin(self.log, command(words))

    def write_config(self, config: dict[str, Any]) -> None:
        """config.yaml: plain values, in the order they were composed."""
        write_text_atomic(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def write_environment(self, words: list[str], **facts: Any) -> None:
        """environment.json of a job that begins, with further facts."""
        write_json_atomic(self.environment, {"command": command(words), **environment_facts(), **facts})

    def note(self, **facts: Any) -> None:
        """Add facts to environment.json."""
        write_json_atomic(self.environment, {**self.read_environment(), **facts})

    def open_test(self, words: list[str], images: int) -> int:
        """Record an opening of the run's test split in test_openings.jsonl; returns the number of openings. It appends
        a line, so that concurrent processes lose none."""
        line = json.dumps({"when": now(), "command": command(words), "images": images}, ensure_ascii=False)
        with self.test_openings.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return len(self.test_openings.read_text(encoding="utf-8").splitlines())

    def begin_results(self) -> None:
        """Mark the results of a finished fit that trained longer as being replaced, until `complete`: readers ignore
        them."""
        if self.scores.is_file():
            write_text_atomic(self._longer, "results")

    def complete(self, scores: dict[str, Any]) -> None:
        """The results are complete: write scores.json, last of all files."""
        write_json_atomic(self.scores, scores)
        self._longer.unlink(missing_ok=True)

    def become_latest(self) -> None:
        """Make outputs/latest point here, safely if several processes do so."""
        link = Path("outputs", "latest")
        link.parent.mkdir(exist_ok=True)
        partial = link.with_name(f".latest.{secrets.token_hex(3)}.{os.getpid()}")  # other machines may have this pid
        try:
            partial.unlink(missing_ok=True)
            partial.symlink_to(os.path.relpath(self.path.resolve(), link.parent.resolve()), target_is_directory=True)
            os.replace(partial, link)
        except OSError as error:  # a real folder of that name, or a file system without links
            partial.unlink(missing_ok=True)
            print(f"outputs/latest could not be set ({error.strerror}); the run is at {self}.", file=sys.stderr)

    def is_finished(self) -> bool:
        """Whether the results are complete."""
        return is_finished(self.path)

    def is_complete(self) -> bool:
        """Whether nothing is left to do: complete results, and no unfinished longer training."""
        return self.is_finished() and not self._longer.is_file()

    def why_unfinished(self) -> str:
        """The reason that a run is not finished, in words."""
        return "its results are being replaced" if self.scores.is_file() else f"it has no {SCORES}"

    @property
    def _longer(self) -> Path:
        return self.path / LONGER


def runs_in(folder: Path, *, at_any_depth: bool = False) -> list[RunFolder]:
    """The run folders one level below `folder`, or at any depth."""
    return [RunFolder(path.parent) for path in folder.glob(f"{'**' if at_any_depth else '*'}/{CONFIG}")]
