"""How a training ends: its last state is validated whatever ends it; a stop within an epoch is marked."""

import zipfile
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Timer

from finetune.training.failures import end_on_sigterm

STOPPED = "stopped.ckpt"
"""The state at a stop in the middle of an epoch. A resume starts from the last whole epoch before it."""


class Ending(Callback):
    """Stops after `max_steps` optimizer steps, and validates the last state whatever ends the training.

    Lightning's own max_steps leaves the last state unvalidated, and a resumed training does nothing in its first epoch
    (2.6). It comes after the Timer in the list of callbacks, so that it sees the Timer's stop at once.

    Args:
        max_steps: -1 for no limit.
        max_time: wall time after which to stop, in what a Timer takes; None for no limit.
    """

    def __init__(self, max_steps: int = -1, max_time: Any = None):
        self.max_steps, self.max_time = max_steps, max_time
        self.timer = Timer(max_time, verbose=False)
        self.val_interval: int | None = 1

    def steps_done(self, trainer: L.Trainer) -> bool:
        """Whether all steps are done."""
        return 0 <= self.max_steps <= trainer.global_step

    def callbacks(self) -> list[Callback]:
        """The Timer and itself, in the order they need."""
        return [self] if self.max_time is None else [self.timer, self]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        end_on_sigterm()
        self.val_interval = trainer.check_val_every_n_epoch
        if self.steps_done(trainer):  # a resumed run that has done them already
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if last else self.val_interval

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.steps_done(trainer):
            trainer.should_stop = True
        if trainer.should_stop:
            trainer.check_val_every_n_epoch = 1  # Lightning validates before it stops, in epochs that are validated

    def sentence(self, trainer: L.Trainer) -> str | None:
        """What ended the training early; None where it ran to its last epoch."""
        if trainer.current_epoch >= (trainer.max_epochs or 0) and not stopped_midway(trainer):
            return None
        cause = "a callback"
        if self.steps_done(trainer):
            cause = f"trainer.max_steps={self.max_steps}"
        elif (remaining := self.timer.time_remaining()) is not None and remaining <= 0:
            cause = f"trainer.max_time={self.max_time}"
        epoch = f"epoch {trainer.current_epoch - 1}/{(trainer.max_epochs or 0) - 1}"  # as PrintEpoch counts
        position = f"{'in the middle of' if stopped_midway(trainer) else 'after'} {epoch}"
        return f"Training was ended by {cause} {position}. Its last state was validated and saved."


def stopped_midway(trainer: L.Trainer) -> bool:
    """Whether the current epoch, or the last one, ended before its last batch."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready < trainer.num_training_batches


def whole_epochs(folder: Path) -> list[Path]:
    """The checkpoints of whole epochs, in their order."""
    return sorted(folder.glob("epoch_*.ckpt"), key=lambda path: int(path.stem.removeprefix("epoch_")))


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end: its table of contents is what comes last."""
    return zipfile.is_zipfile(path)


def resume_point(folder: Path) -> Path | None:
    """The checkpoint that a resume starts from, of the last epoch whose checkpoint is whole; None for a new training.

    A checkpoint that is cut short is passed over, unless there is no other.
    """
    last = folder / "last.ckpt"
    newest_first = whole_epochs(folder)[::-1]
    if not (folder / STOPPED).is_file() and last.is_file():
        newest_first = [last, *newest_first]
    return next((path for path in newest_first if is_whole(path)), next(iter(newest_first), None))
