"""A multirun: names and outcomes of its runs, and the final table."""

import json
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from omegaconf import OmegaConf

from finetune.config.board import Outcome
from finetune.config.overrides import parse
from finetune.errors import FinetuneError, Terminated
from finetune.files import relative_to_cwd, resume_word
from finetune.runs.brief import brief_scores
from finetune.runs.folder import RunFolder

MAX_NAME_LENGTH = 80  # characters of a folder's name after its number
KILLED = "Its process ended without a message: killed, or short of memory."


@dataclass
class Sweep:
    """The runs of a multirun. `words` is what Hydra reads: those with several values distinguish the runs."""

    words: list[str]
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def total(self) -> int | None:
        """The number of runs; None where a sweeper of the user's chooses them."""
        if any(word.startswith("hydra/sweeper=") for word in self.words):
            return None
        return prod(
            sum(1 for _ in override.sweep_string_iterator())
            for override in parse(self.words)
            if override.is_sweep_override()
        )

    def differing(self, overrides: list[str]) -> list[str]:
        """The words of one run that not all runs have."""
        fixed = {override.get_key_element() for override in parse(self.words) if not override.is_sweep_override()}
        return [word for word in overrides if word.partition("=")[0] not in fixed]

    def folder_name(self, number: int, overrides: list[str]) -> str:
        """`0_seed_1`: the run's number and what distinguishes it, in characters valid in paths and overrides."""
        text = re.sub(r"[^\w.+-]+", "_", "_".join(self.differing(overrides))).strip("_")[:MAX_NAME_LENGTH]
        return f"{number}_{text}" if text else str(number)

    def register(self) -> None:
        """Let conf/config.yaml name the folders."""
        OmegaConf.register_new_resolver(
            "run_name", lambda number, overrides: self.folder_name(number, list(overrides)), replace=True
        )

    def begin(self, number: int, overrides: list[str], folder: Path, job: str) -> Outcome:
        """Record that run `number` (from 1) begins; its outcome is that of a killed process until `run` has ended."""
        outcome = Outcome(number, folder, " ".join(self.differing(overrides)), job, KILLED)
        self.outcomes.append(outcome)
        print(f"\n{self.title(outcome)}", flush=True)
        return outcome

    @staticmethod
    def run(outcome: Outcome, task: Callable[[], None]) -> None:
        """Run one; an error is printed and recorded, and the others continue. Ctrl-C stops them all."""
        try:
            task()
            outcome.error = None
        except FinetuneError as error:
            outcome.error = str(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
        except Exception as error:
            traceback.print_exc()
            outcome.error = traceback.format_exception_only(error)[-1].strip()
        except Terminated:
            outcome.error = f"It was stopped by SIGTERM. Continue it by {resume_word(outcome.folder)}."
            raise
        except BaseException:
            outcome.error = "It was stopped."
            raise

    def title(self, outcome: Outcome) -> str:
        """`run 2 of 4: seed=1`."""
        total = self.total
        text = f"run {outcome.number}" + (f" of {total}" if total else "")
        return text + (f": {outcome.label}" if outcome.label else "")

    def finish(self, stopped: str | None = None) -> None:
        """Print the outcomes and how to compare the runs.

        Args:
            stopped: what ended the sweep before all of its runs; None if nothing did.

        Raises:
            FinetuneError: runs that failed, each with its reason, or a sweep that was ended.
        """
        if self.outcomes:
            print(f"\n{self.table()}", flush=True)
        fits = [o.folder for o in self.outcomes if o.job == "fit" and o.error is None]
        if len(fits) > 1:
            is_whole_folder = len(fits) == len(self.outcomes) and len({path.parent for path in fits}) == 1
            runs = (
                str(relative_to_cwd(fits[0].parent))
                if is_whole_folder
                else f"[{','.join(str(relative_to_cwd(path)) for path in fits)}]"
            )
            print(f"compare them: python -m finetune job=compare {shlex.quote(f'runs={runs}')}", flush=True)
        failed = [o for o in self.outcomes if o.error is not None]
        reasons = "".join(f"\n  {self.title(o)}: {o.error}" for o in failed)
        if stopped is not None:
            total = self.total or "the"
            begun = f"{len(self.outcomes)} of {total} runs had begun."
            raise FinetuneError(f"The sweep ended early: {stopped}\n  {begun}{reasons}")
        if failed:
            raise FinetuneError(f"{len(failed)} of {len(self.outcomes)} runs failed:{reasons}")

    def table(self) -> str:
        """A line per run: its folder, what distinguishes it, and its first scores with intervals."""
        rows = [["run", "set by", *(columns := self.columns() or [""])]]
        for outcome in self.outcomes:
            scores = {} if outcome.error is not None else headline(outcome.folder)
            cells = ["failed"] if outcome.error is not None else [scores.get(column, "-") for column in columns]
            rows.append([str(relative_to_cwd(outcome.folder)), outcome.label or "-", *cells])
        widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def columns(self) -> list[str]:
        """The scores that any of the runs has, in the order they come."""
        names = [name for o in self.outcomes if o.error is None for name in headline(o.folder)]
        return list(dict.fromkeys(names))


def headline(folder: Path) -> dict[str, str]:
    """`val macro AUROC` and the like -> value with its interval, as far as a run has written scores."""
    path = RunFolder(folder).scores
    if not path.is_file():
        return {}
    scores = json.loads(path.read_text(encoding="utf-8"))
    return {f"{split} {name}": text for split, texts in brief_scores(scores).items() for name, text in texts.items()}
