"""Resume a stopped fit with its config.yaml; only keys that cannot change its past may be set."""

import contextlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from finetune.config import build, compose
from finetune.config.settings import TrainerSettings, parse
from finetune.errors import FinetuneError
from finetune.jobs import run_job
from finetune.runs.folder import RunFolder, runs_in
from finetune.training import ending

CHANGEABLE_KEYS = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.devices",
    "trainer.accelerator",
    "trainer.enable_progress_bar",
    "data.num_workers",
    "logger",
    "trust",
)
"""Keys that a resume may change."""


def newest_unfinished(outputs: Path = Path("outputs")) -> RunFolder:
    """The unfinished fit that was started last."""
    unfinished = []
    for run in runs_in(outputs, at_any_depth=True):
        with contextlib.suppress(FinetuneError):  # skip a damaged folder
            if not run.is_complete() and run.read_config().get("job") == "fit":
                unfinished.append(run)
    if not unfinished:
        raise FinetuneError(f"resume=auto: there is no unfinished fit below {outputs}/. Name its folder: resume=DIR.")
    return max(unfinished, key=lambda run: run.config.stat().st_mtime)


def resume(argv: list[str]) -> None:
    """Resume the run in the folder of `resume=` with the other words.

    Raises:
        FinetuneError: as `go_on` does.
    """
    values = [word.partition("=")[2] for word in argv if word.startswith("resume=")]
    if len(values) != 1 or not values[0]:
        raise FinetuneError("resume= must be given once: a run folder, or auto for the newest unfinished fit.")
    name = re.sub(r"""^(['"])(.*)\1$""", r"\2", values[0])  # may be quoted, as the values of other keys
    go_on(run_to_resume(name), [word for word in argv if not word.startswith("resume=")])


def run_to_resume(name: str) -> RunFolder:
    """The run of a name: its folder, or auto for the newest unfinished fit."""
    return newest_unfinished() if name == "auto" else RunFolder(Path(name))


def go_on(run: RunFolder, words: list[str]) -> None:
    """Resume a run. Nothing in it changes before everything has been checked.

    Raises:
        FinetuneError: no such run, a finished run (unless it is to train longer), a key that would change the past, or
            data that differ from those of the run.
    """
    config = run.read_config()
    if config.get("job") != "fit":
        raise FinetuneError(f"resume={run}: only a fit can be resumed, this was job={config.get('job')}.")
    try:
        old_settings = parse(config)
    except FinetuneError as error:
        raise FinetuneError(f"{run.config} is not what a fit writes: {error}") from None
    recorded, config["trust"] = config.get("trust") or [], []  # code is trusted where it is typed, not by a folder
    apply_overrides(config, words)
    if missing := [str(module) for module in recorded if module not in config["trust"]]:
        raise FinetuneError(
            f"resume={run}: this fit used code of {', '.join(missing)}, which runs only where it is typed: add "
            f"trust=[{','.join(map(str, recorded))}]."
        )
    new_settings = build.check(config)
    is_longer = trains_longer(old_settings.trainer, new_settings.trainer)
    max_epochs, num_done = new_settings.trainer.max_epochs, trained_epochs(run)
    if max_epochs != (before := old_settings.trainer.max_epochs) and build.has_shares(new_settings):
        raise FinetuneError(
            f"trainer.max_epochs={max_epochs}: phases of finetuning begin at shares of the {before} epochs of this "
            "run, and would move. Train it to its end, or start another run."
        )
    if run.is_complete() and not is_longer:
        raise FinetuneError(
            f"resume={run} is complete already. To train longer, add trainer.max_epochs=N (or max_steps, max_time)."
        )
    last = run.checkpoints / "last.ckpt"
    if last.is_file() and not ending.is_whole(last) and num_done:
        print(f"{last} is cut short: going on after epoch {num_done - 1}, whose checkpoint is whole.", flush=True)
    if max_epochs < num_done:
        raise FinetuneError(
            f"trainer.max_epochs={max_epochs}: {num_done} epochs of {run} are trained already. Give {num_done} or more."
        )
    run_job(config, run.path, ["resume=" + str(run), *words], resumed=True)


def trained_epochs(run: RunFolder) -> int:
    """The number of epochs in the checkpoint that a resume starts from; 0 without one.

    Raises:
        FinetuneError: the checkpoint cannot be read.
    """
    path = ending.resume_point(run.checkpoints)
    if path is None:
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"]) + 1
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise FinetuneError(
            f"{path} cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__}). Without it "
            "the fit starts again: remove it, or put an epoch_*.ckpt of the same folder in its place."
        ) from None


def apply_overrides(config: dict[str, Any], words: list[str]) -> None:
    """Set the typed keys in `config`.

    Raises:
        FinetuneError: a key that would change the past.
    """
    for override in compose.parse(words):
        key = override.key_or_group
        if key not in CHANGEABLE_KEYS or override.is_sweep_override() or override.is_delete():
            raise FinetuneError(
                f"{override.input_line!r} cannot be set in a resume: it would change the training already done. "
                f"Only these can: {', '.join(CHANGEABLE_KEYS)}."
            )
        value = override.value()
        if key == "logger":  # the config group of this name
            value = compose.plain(compose.compose([str(override.input_line)]))[key]
        node = config
        *path, last = key.split(".")
        for name in path:
            node = node[name]
        node[last] = value


def trains_longer(before: TrainerSettings, now: TrainerSettings) -> bool:
    """Whether the trainer's settings `now` end later than those of `before`."""
    return (
        now.max_epochs > before.max_epochs
        or (now.max_steps != before.max_steps and not 0 <= now.max_steps <= before.max_steps)
        or (before.max_time is not None and now.max_time != before.max_time)
    )
