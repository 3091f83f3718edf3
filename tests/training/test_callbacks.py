"""Checkpoints: which epoch is the best, and the model that a run ships after a kill at any moment."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.training import callbacks
from finetune.training.callbacks import Checkpoint


class Killed(BaseException):
    """kill -9: nothing after it is done."""


class Epochs:
    """Stands in for the trainer: epochs with given (val/auroc, val/loss), whose checkpoints are JSON."""

    is_global_zero = True
    sanity_checking = False

    def __init__(self, folder: Path, scores: list[tuple[float, float]], monitor: str = "val/auroc"):
        self.folder, self.scores, self.current_epoch = folder, scores, 0
        folder.mkdir(exist_ok=True)
        self.checkpoint = Checkpoint(folder, monitor, higher_is_better=monitor != "val/loss")
        self.num_training_batches = 2  # both done whenever a checkpoint is written
        progress = SimpleNamespace(current=SimpleNamespace(ready=2))
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        assert weights_only is False  # Lightning logs a line about it where it is left open
        content = {"epoch": self.current_epoch, "state": self.checkpoint.state_dict()}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        os.replace(partial, path)

    def run(self) -> str:
        """Run from last.ckpt if it exists; returns the epoch in best.ckpt."""
        if (last := self.folder / "last.ckpt").exists():
            content = json.loads(last.read_text())
            self.current_epoch = content["epoch"] + 1
            self.checkpoint.load_state_dict(content["state"])
        self.checkpoint.on_fit_start(self, None)
        while self.current_epoch < len(self.scores):
            auroc, loss = self.scores[self.current_epoch]
            self.callback_metrics = {"val/auroc": auroc, "val/loss": loss}
            self.checkpoint.on_validation_end(self, None)
            self.checkpoint.on_train_epoch_end(self, None)
            assert (self.folder / f"epoch_{max(0, self.current_epoch - 1):03d}.ckpt").exists()  # should the last be cut
            self.current_epoch += 1
        self.checkpoint.on_train_end(self, None)
        return json.loads((self.folder / "best.ckpt").read_text())["epoch"]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.8, 0.5), (0.9, 0.6), (0.7, 0.1)], 1),
        ([(1.0, 0.549), (1.0, 0.3), (1.0, 0.071), (1.0, 0.2)], 2),  # a saturated AUROC: the lowest loss
        ([(1.0, 0.5), (0.9, 0.1), (1.0, 0.5)], 0),  # equal in both: the first
        ([(math.nan, 0.5), (0.1, 0.9), (math.nan, 0.1)], 1),
        ([(math.nan, math.nan), (math.nan, 0.4), (math.nan, 0.3)], 2),
        ([(0.9, math.nan), (0.9, 0.7)], 1),
    ],
)
def test_the_best_epoch_has_the_best_auroc_then_the_lowest_loss_then_comes_first(tmp_path, scores, best):
    assert Epochs(tmp_path, scores).run() == best
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", f"epoch_{best:03d}.ckpt", f"epoch_{len(scores) - 1:03d}.ckpt"}


def test_the_best_epoch_by_loss(tmp_path):
    assert Epochs(tmp_path, [(0.9, 0.5), (0.1, 0.4), (0.9, 0.4)], "val/loss").run() == 1


def test_a_state_without_losses_is_read(tmp_path):
    checkpoint = Checkpoint(tmp_path, "val/auroc")
    checkpoint.load_state_dict({"best_score": 0.9, "best_epoch": 2})
    assert not checkpoint.is_better(0.8, 0.1)
    assert checkpoint.is_better(0.9, 0.1)  # the loss of the best is unknown: a known loss is preferred
    assert not checkpoint.is_better(0.9, math.nan)


def kill_at(moment: int, monkeypatch) -> None:
    """The process ends before its operation number `moment` on the disk."""
    calls = 0

    def count_calls(operation):
        def run(*args, **options):
            nonlocal calls
            if calls == moment:
                raise Killed
            calls += 1
            return operation(*args, **options)

        return run

    fake = SimpleNamespace(link=count_calls(os.link), replace=count_calls(os.replace), getpid=lambda: 77)
    monkeypatch.setattr(callbacks, "os", fake)
    monkeypatch.setattr(os, "replace", fake.replace)
    monkeypatch.setattr(Path, "unlink", count_calls(Path.unlink))


@pytest.mark.parametrize("moment", range(40))
def test_a_run_killed_at_any_moment_ships_the_best_of_its_final_epochs(tmp_path, monkeypatch, moment):
    """Also where a repeated epoch scores less than before the kill, as on another machine."""
    scores = [(0.6, 0.5), (0.7, 0.4), (0.7, 0.3), (0.6, 0.3)]
    repeated_scores = [(0.6, 0.5), (0.5, 0.4), (0.4, 0.3), (0.3, 0.3)]
    with monkeypatch.context() as patch:
        kill_at(moment, patch)
        try:
            Epochs(tmp_path, scores).run()
            assert moment > 25  # all operations were done before
        except Killed:
            pass
    last = tmp_path / "last.ckpt"
    num_epochs = json.loads(last.read_text())["epoch"] + 1 if last.exists() else 0
    history = [*scores[:num_epochs], *repeated_scores[num_epochs:]]
    expected = max(range(4), key=lambda epoch: (history[epoch][0], -history[epoch][1]))
    assert Epochs(tmp_path, repeated_scores).run() == expected
