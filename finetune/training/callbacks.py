"""Callbacks of a run: checkpoints under plain names, one table of metrics, one line per epoch."""

import csv
import io
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase

from finetune.files import write_text_atomic
from finetune.training import ending, memory


def metrics_columns(scores: tuple[str, ...]) -> list[str]:
    """Columns of metrics.csv, with the validation scores of an objective."""
    return ["epoch", "step", "phase", "lr", "train/loss", *scores, "seconds", "peak_mib"]


class Checkpoint(CheckpointBase):
    """Saves each epoch as `epoch_003.ckpt` and keeps the last and the best, also as `last.ckpt` and `best.ckpt`; and,
    until the training ends, the one before the last.

    Saved after validation, at the very end of an epoch, so that a resumed run begins with the next one. Names are
    plain, as Hydra parses a `=` in a path. The extra names are hard links; nothing is written twice. The best epoch has
    the best `monitor`; ties, as of a saturated AUROC, go to the lowest val/loss, then to the earlier epoch.
    """

    def __init__(self, folder: str | Path, monitor: str, *, higher_is_better: bool = True, keep_all: bool = False):
        self.folder = Path(folder)
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.keep_all = keep_all
        self.best_score: float | None = None
        self.best_loss: float | None = None
        self.best_epoch: int | None = None
        self.validated_epoch: int | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated_epoch = None if trainer.sanity_checking else trainer.current_epoch

    def is_better(self, score: float, loss: float) -> bool:
        """Whether an epoch of this `monitor` and val/loss beats the best so far; equal in both is not better."""
        if self.best_score is None:
            return True
        best_loss = math.nan if self.best_loss is None else self.best_loss  # a state of a version without losses
        return self.sort_key(score, loss) > self.sort_key(self.best_score, best_loss)

    def sort_key(self, score: float, loss: float) -> tuple[float, float]:
        """Larger is better; what is undefined (NaN) comes below all numbers."""
        signed = score if self.higher_is_better else -score
        return -math.inf if math.isnan(signed) else signed, -math.inf if math.isnan(loss) else -loss

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """After a restore: best.ckpt is the best epoch known to the restored checkpoint, whatever a killed run left."""
        best = self.folder / f"epoch_{self.best_epoch or 0:03d}.ckpt"
        if trainer.is_global_zero and self.best_epoch is not None and best.is_file():
            link(best, self.folder / "best.ckpt")

    def best(self) -> dict[str, Any]:
        """Which epoch (from 0) is the best so far, and by what."""
        return {
            "epoch": self.best_epoch, "monitor": self.monitor, "score": self.best_score, "val/loss": self.best_loss,
        }  # fmt: skip

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        epoch, stopped = trainer.current_epoch, ending.stopped_midway(trainer)
        improved = False
        if self.validated_epoch == epoch:  # the metrics of an earlier epoch are still there
            score = float(trainer.callback_metrics[self.monitor])
            loss = float(trainer.callback_metrics.get("val/loss", math.nan))
            if improved := self.is_better(score, loss):
                self.best_score, self.best_loss, self.best_epoch = score, loss, epoch
        path = self.folder / (ending.STOPPED if stopped else f"epoch_{epoch:03d}.ckpt")
        trainer.save_checkpoint(path, weights_only=False)  # every rank calls it, the first one writes
        if trainer.is_global_zero:
            if improved:
                link(path, self.folder / "best.ckpt")
            link(
                path, self.folder / "last.ckpt"
            )  # last of all: a run killed before this resumes from the previous epoch
            if stopped:
                return  # a resume starts from the last whole epoch
            (self.folder / ending.STOPPED).unlink(missing_ok=True)  # left by a stop before the resume
            self.remove_others(path, self.folder / f"epoch_{epoch - 1:03d}.ckpt")

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        epochs = ending.whole_epochs(self.folder)
        if trainer.is_global_zero and epochs:
            self.remove_others(epochs[-1])

    def remove_others(self, *kept: Path) -> None:
        """Remove the epochs but the best one and these. (The one before the last serves if the last is damaged.)"""
        names = {f"epoch_{self.best_epoch or 0:03d}.ckpt", *(path.name for path in kept)}
        for old in ending.whole_epochs(self.folder) if not self.keep_all else []:
            if old.name not in names:
                old.unlink()

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_loss": self.best_loss, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self.best_loss = state_dict.get("best_loss")


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically; a copy where the file system has no hard links."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    os.replace(partial, target)
    partial.unlink(missing_ok=True)  # os.replace leaves two names of one file as they are


class MetricsTable(Callback):
    """metrics.csv: one row per epoch, whole at any moment; a resumed run appends to the epochs before it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        self.start_time = 0.0
        self.validated_epoch: int | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated_epoch = None if trainer.sanity_checking else trainer.current_epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.start_time = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # from the module, as callbacks run before it logs at the end of an epoch; on all ranks, as it sums over them
        train_loss = float(pl_module.train_loss.compute())
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()} | {"train/loss": train_loss}
        if self.validated_epoch != trainer.current_epoch:  # the stored values are of an earlier epoch
            values = {name: value for name, value in values.items() if not name.startswith("val/")}
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "phase": pl_module.plan.phase(trainer.current_epoch)[0],
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "seconds": time.monotonic() - self.start_time,
            "peak_mib": memory.peak_mib(),
        }
        row |= {name: value for name, value in values.items() if math.isfinite(value)}
        self.rows = [*(old for old in self.rows if int(old["epoch"]) < trainer.current_epoch), row]
        names = metrics_columns(pl_module.objective.scores)
        names += sorted({name for r in self.rows for name in r} - set(names))
        file = io.StringIO()
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in self.rows)
        write_text_atomic(self.path, file.getvalue())


class PrintEpoch(Callback):
    """One plain line per epoch, counted from 0 as everywhere, readable in a terminal and in a log file."""

    def __init__(self, table: MetricsTable):
        self.table = table

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.table.rows or not trainer.is_global_zero:
            return
        row = self.table.rows[-1]
        names = [name for name in ("train/loss", *pl_module.objective.scores) if name in row]
        numbers = "  ".join(f"{name} {float(row[name]):.3f}" for name in names)
        last = (trainer.max_epochs or 0) - 1
        epoch = f"epoch {row['epoch']:>{len(str(last))}}/{last}"
        rate = f"{row['lr']:.1e}".replace("e-0", "e-")  # 80 columns hold the line
        print(f"{epoch}  {numbers}  lr {rate}  {row['seconds']:.{1 if row['seconds'] < 10 else 0}f} s", flush=True)


class EpochReport(Callback):
    """Reports the score of each validated epoch, and ends the training early where the answer is true, on all ranks.

    Args:
        report: takes (epoch, score of the objective's `monitor`) on the first rank; whether to stop. None elsewhere.
    """

    def __init__(self, report: Callable[[int, float], bool] | None):
        self.report = report
        self.stopped = False
        self.validated_epoch: int | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated_epoch = None if trainer.sanity_checking else trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch
        if self.validated_epoch != epoch:
            return
        score = float(trainer.callback_metrics[pl_module.objective.monitor])
        stop = self.report is not None and math.isfinite(score) and self.report(epoch, score)
        stop = bool(trainer.strategy.broadcast(stop))  # the first rank decides
        if stop and epoch + 1 < (trainer.max_epochs or 0):
            self.stopped = trainer.should_stop = True
