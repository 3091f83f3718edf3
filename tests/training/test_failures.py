"""What ends a training from outside: memory, a full disk, SIGTERM, losses that are not finite."""

import errno
import os
import signal

import lightning as L
import pytest
import torch

from finetune.errors import FinetuneError, Terminated
from finetune.training import ending
from finetune.training.failures import explained
from tests.training import tiny

CONFIG = {
    "data": {"batch_size": 32, "image_size": 224},
    "backbone": {"memory": "auto"},
    "trainer": {"precision": "32-true", "accumulate_grad_batches": 1},
}


class At(L.Callback):
    """Does something at a batch of an epoch."""

    def __init__(self, epoch: int, batch: int, action):
        self.place, self.action = (epoch, batch), action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            self.action(pl_module)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_lack_of_memory_names_the_settings_and_the_ways_out(error):
    with pytest.raises(FinetuneError) as caught, explained(CONFIG, "runs/a", "Resume: x"):
        raise error
    message = str(caught.value)
    assert message.startswith("Out of memory with data.batch_size=32, data.image_size=224, backbone.memory=auto")
    assert "data.batch_size=16 trainer.accumulate_grad_batches=2 (the same steps)" in message
    assert "backbone.memory=lean;" in message


def test_with_minimal_memory_and_one_image_a_smaller_image_is_left():
    config = {**CONFIG, "data": {"batch_size": 1, "image_size": 512}, "backbone": {"memory": "minimal"}}
    with (
        pytest.raises(FinetuneError, match=r"Ways out: a smaller data\.image_size than 512\.$"),
        explained(config, "r"),
    ):
        raise MemoryError


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), explained(CONFIG, "runs/a"):
        raise RuntimeError("shapes do not match")
    with pytest.raises(OSError, match="No such"), explained(CONFIG, "runs/a"):
        raise OSError(errno.ENOENT, "No such file")


def test_a_full_disk_leaves_the_checkpoints_before_whole(tmp_path):
    module, trainer = tiny.module(), tiny.trainer(tmp_path, 4)
    save = trainer.save_checkpoint

    def fill(path, *arguments, **options):
        if trainer.current_epoch < 2:
            return save(path, *arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer.save_checkpoint = fill
    message = r"The disk of .* has no space left .* earlier epochs are whole\. Free some space\. Resume: x"
    with pytest.raises(FinetuneError, match=message), explained(CONFIG, tmp_path, "Resume: x"):
        trainer.fit(module, tiny.data())
    state = torch.load(ending.resume_point(tmp_path / "checkpoints"), weights_only=True)
    assert state["epoch"] == 1


def test_sigterm_ends_the_fit_with_its_exit_status_and_a_resume_gives_the_same(tmp_path):
    tiny.trainer(tmp_path / "whole", 3).fit(whole := tiny.module(), tiny.data())
    stop = At(1, 1, lambda module: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        stopped = tiny.trainer(tmp_path / "run", 3, [*ending.Ending().callbacks(), stop])
        with pytest.raises(Terminated) as caught:
            stopped.fit(tiny.module(), tiny.data())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    point = ending.resume_point(tmp_path / "run" / "checkpoints")
    tiny.trainer(tmp_path / "run", 3).fit(resumed := tiny.module(), tiny.data(), ckpt_path=point, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_loss_that_is_not_finite_names_its_images_and_keeps_the_checkpoints(tmp_path):
    def spoil(module):
        with torch.no_grad():
            module.network.head.fc.bias.fill_(float("inf"))

    batches = []
    module = tiny.module()
    record = L.Callback()
    record.on_train_batch_start = lambda trainer, module, batch, number: batches.append(batch["index"].tolist())
    with pytest.raises(FinetuneError) as caught:
        tiny.trainer(tmp_path, 3, [record, At(1, 2, spoil)]).fit(module, tiny.data())
    names = [f"{row}.png" for row in batches[-1][:8]]
    assert f"in epoch 1, batch 2: {', '.join(names)} and 4 more. Lower optimizer.lr" in str(caught.value)
    assert (tmp_path / "checkpoints" / "epoch_000.ckpt").is_file()


def test_the_first_bad_batch_is_named_where_losses_are_checked_now_and_then():
    module = tiny.module()
    rows = torch.arange(3)
    module.unchecked = [(n, rows + n, torch.tensor(float("nan") if n > 4 else 1.0)) for n in range(8)]
    module._trainer = type("T", (), {"datamodule": None, "current_epoch": 2})()
    with pytest.raises(FinetuneError, match=r"The loss is nan in epoch 2, batch 5: 5, 6, 7\. "):
        module.check_losses()
    module.check_losses()  # each batch is looked at once
