"""How a training ends: its last state is validated whatever ends it, and a stop in the middle of an epoch is marked."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Timer

STOPPED = "stopped.ckpt"
"""The state at a stop in the middle of an epoch. A resume goes on from the whole epoch before it."""


class Ending(Callback):
    """Stops after `max_steps` optimizer steps, and validates the last state whatever ends the training.

    Lightning's own max_steps leaves the last state unvalidated, and a resumed training does nothing in its first epoch
    (2.6). Stands behind its Timer in the list of callbacks, so that it knows of its stop at once.

    Args:
        max_steps: -1 for no limit.
        max_time: wall time after which to stop, in what a Timer takes; None for no limit.
    """

    def __init__(self, max_steps: int = -1, max_time: Any = None):
        self.max_steps, self.max_time = max_steps, max_time
        self.timer = Timer(max_time, verbose=False)
        self.every: int | None = 1

    def used_up(self, trainer: L.Trainer) -> bool:
        """Whether all steps are done."""
        return 0 <= self.max_steps <= trainer.global_step

    def callbacks(self) -> list[Callback]:
        """The Timer and itself, in the order they need."""
        return [self] if self.max_time is None else [self.timer, self]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.every = trainer.check_val_every_n_epoch
        if self.used_up(trainer):  # a run that was stopped later than that
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if last else self.every

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.used_up(trainer):
            trainer.should_stop = True
        if trainer.should_stop:
            trainer.check_val_every_n_epoch = 1  # Lightning validates before it obeys, in an epoch that is validated

    def sentence(self, trainer: L.Trainer) -> str | None:
        """What ended the training before its last epoch did; None where nothing did."""
        if trainer.current_epoch >= (trainer.max_epochs or 0) and not midway(trainer):
            return None
        by = "a callback"
        if self.used_up(trainer):
            by = f"trainer.max_steps={self.max_steps}"
        elif (left := self.timer.time_remaining()) is not None and left <= 0:
            by = f"trainer.max_time={self.max_time}"
        epoch = f"epoch {trainer.current_epoch - 1}/{(trainer.max_epochs or 0) - 1}"  # as EpochLines counts
        where = f"{'in the middle of' if midway(trainer) else 'after'} {epoch}"
        return f"Training was ended by {by} {where}. Its last state was validated and saved."


def midway(trainer: L.Trainer) -> bool:
    """Whether the epoch at work, or the last one, ended before its last batch."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready < trainer.num_training_batches


def whole_epochs(folder: Path) -> list[Path]:
    """The checkpoints of whole epochs that are kept, in their order."""
    return sorted(folder.glob("epoch_*.ckpt"), key=lambda path: int(path.stem.removeprefix("epoch_")))


def resume_point(folder: Path) -> Path | None:
    """The checkpoint that a training goes on from: the last whole epoch's; None to begin at the start."""
    if (folder / STOPPED).is_file():
        kept = whole_epochs(folder)
        return kept[-1] if kept else None
    last = folder / "last.ckpt"
    return last if last.is_file() else None
