"""Training stopped by steps or time: the last state is validated and saved, and a resume gives the same result."""

import csv
import math
import os

import pytest
import torch
from lightning.pytorch.callbacks import Callback, Timer

from finetune.training import ending
from finetune.training.ending import STOPPED, Ending, resume_point
from tests.training.tiny import data, module, state, trainer

# 36 training images in batches of 12: three steps an epoch


class Constant:
    """A schedule that does not depend on how long the training is."""

    def factor(self, step: int, total: int) -> float:
        return 1.0


def train(folder, max_steps=-1, epochs=3, callbacks=(), max_time=None, **options):
    """Train in `folder`, resuming if possible; returns the network's state, the trainer and the Ending."""
    model = module(schedule=Constant(), max_steps=max_steps)
    end = Ending(max_steps, max_time)
    run = trainer(folder, epochs, [*callbacks, *end.callbacks()], **options)
    start = resume_point(folder / "checkpoints")
    run.fit(model, datamodule=data(), ckpt_path=start, weights_only=True)
    return state(model.network), run, end


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "peak_mib")} for row in csv.DictReader(file)]


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def equal_states(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(("max_steps", "saved"), [(2, []), (5, ["epoch_000.ckpt"]), (8, ["epoch_001.ckpt"])])
def test_a_stop_by_steps_is_validated_and_resumed_without_a_trace(tmp_path, max_steps, saved):
    whole, _, _ = train(tmp_path / "whole")
    stopped, run, end = train(tmp_path / "stopped", max_steps)
    assert run.global_step == max_steps
    assert "val/loss" in rows(tmp_path / "stopped")[-1]
    assert f"trainer.max_steps={max_steps} in the middle of epoch {max_steps // 3}/2." in end.sentence(run)
    assert {"last.ckpt", "best.ckpt", STOPPED, *saved} <= set(names(tmp_path / "stopped"))
    last = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert equal_states(stopped, {k.removeprefix("network."): v for k, v in last.items() if k.startswith("network.")})

    resumed, run, end = train(tmp_path / "stopped")
    assert equal_states(resumed, whole)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert end.sentence(run) is None
    assert names(tmp_path / "stopped") == names(tmp_path / "whole")


def test_steps_that_end_with_an_epoch_leave_a_whole_one(tmp_path):
    _, run, end = train(tmp_path / "a", 6)
    assert STOPPED not in names(tmp_path / "a")
    assert end.sentence(run).startswith("Training was ended by trainer.max_steps=6 after epoch 1/2")
    train(tmp_path / "a", 6)  # nothing to do, and nothing is undone
    assert [row["epoch"] for row in rows(tmp_path / "a")] == ["0", "1"]


def test_a_run_killed_before_its_last_step_does_the_remaining_steps(tmp_path):
    whole, _, _ = train(tmp_path / "a", 8)
    (tmp_path / "a" / "checkpoints" / STOPPED).unlink()
    (tmp_path / "a" / "checkpoints" / "last.ckpt").unlink()
    os.link(tmp_path / "a" / "checkpoints" / "epoch_001.ckpt", tmp_path / "a" / "checkpoints" / "last.ckpt")
    resumed, run, _ = train(tmp_path / "a", 8)
    assert run.global_step == 8
    assert equal_states(resumed, whole)


def test_the_schedule_ends_with_the_steps(tmp_path):
    calls = []

    class Recorder(Constant):
        def factor(self, step, total):
            calls.append((step, total))
            return 1.0

    model = module(schedule=Recorder(), max_steps=4)
    trainer(tmp_path, 3, [Ending(4)]).fit(model, datamodule=data())
    assert calls == [(step, 4) for step in range(4)]


def test_a_stop_by_time_is_validated_too(tmp_path):
    class Slow(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 1:  # the limit is passed in the second step
                next(c for c in trainer.callbacks if isinstance(c, Timer))._offset += 1000

    limits = {"max_time": {"minutes": 10}, "check_val_every_n_epoch": 5}
    _, run, end = train(tmp_path / "a", callbacks=[Slow()], **limits)
    assert "trainer.max_time={'minutes': 10} in the middle of epoch 0/2" in end.sentence(run)
    assert run.global_step == 2
    assert math.isfinite(float(rows(tmp_path / "a")[0]["val/loss"]))
    assert {"last.ckpt", "best.ckpt", STOPPED} == set(names(tmp_path / "a"))


def test_every_epoch_is_saved_and_the_last_is_validated_whatever_the_interval(tmp_path):
    train(tmp_path / "a", check_val_every_n_epoch=2, num_sanity_val_steps=1)
    losses = [row["val/loss"] for row in rows(tmp_path / "a")]
    assert losses[0] == ""  # not the value of another epoch
    assert losses[1] != ""
    assert losses[2] not in ("", losses[1])
    train(tmp_path / "b", epochs=2, check_val_every_n_epoch=10)
    assert "last.ckpt" in names(tmp_path / "b")
    assert [row["val/loss"] != "" for row in rows(tmp_path / "b")] == [False, True]


def test_a_training_resumes_after_an_epoch_without_validation(tmp_path):
    class Killed(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        train(tmp_path / "a", callbacks=[Killed()], check_val_every_n_epoch=10)
    assert names(tmp_path / "a") == ["epoch_000.ckpt", "last.ckpt"]
    resumed, _, _ = train(tmp_path / "a", check_val_every_n_epoch=10)
    assert equal_states(resumed, train(tmp_path / "b", check_val_every_n_epoch=10)[0])


def test_the_checkpoint_that_a_training_resumes_from(tmp_path):
    assert resume_point(tmp_path) is None
    for name in ("epoch_1000.ckpt", "epoch_999.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
    assert resume_point(tmp_path).name == "last.ckpt"
    (tmp_path / STOPPED).touch()
    assert resume_point(tmp_path).name == "epoch_1000.ckpt"


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    assert ending.resume_point(tmp_path) is None
    for epoch in (1, 3):
        torch.save({"epoch": epoch}, tmp_path / f"epoch_{epoch:03d}.ckpt")
    whole = (tmp_path / "epoch_003.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole)
    assert ending.resume_point(tmp_path) == tmp_path / "last.ckpt"
    for name in ("last", "epoch_003"):  # usually one file of two names
        (tmp_path / f"{name}.ckpt").write_bytes(whole[: len(whole) // 2])
    assert ending.resume_point(tmp_path) == tmp_path / "epoch_001.ckpt"
    (tmp_path / "epoch_001.ckpt").unlink()
    assert ending.resume_point(tmp_path) == tmp_path / "last.ckpt"  # a resume says that it cannot be read
