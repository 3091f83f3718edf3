"""Accumulated gradients: a step from k batches of n is the step from one batch of k * n, with unknown labels too."""

import sys
import tempfile
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist

from finetune.data.loading.sampling import EpochBatchSampler
from finetune.plan import Plan
from finetune.training.parts import set_gradients
from finetune.training.schedules import Step
from tests.training import tiny
from tests.two_ranks import run_two

IMAGES, UNKNOWN = 52, 0.4  # 39 for training: batches of 16 are 10, 10, 10 and 9, of which two make one of 32
EPOCHS = 2


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=1e-3)


def make_module():
    """No dropout, norms frozen, a constant rate: so the result depends on the step's images alone."""
    return tiny.module(Plan(norms="frozen"), Step(milestones=[]), dropout=0.0, optimizer=sgd)


def images(batch_size: int):
    return tiny.data(IMAGES, batch_size, unknown=UNKNOWN)


def reference(batch_size: int) -> tuple[dict[str, torch.Tensor], float]:
    """A plain loop in 64 bits: the weights after `EPOCHS`, and the mean loss over the last epoch."""
    module, data = make_module(), images(batch_size)
    module.double().network.eval()
    set_gradients(module.parts, module.plan.at(0, list(module.parts)))
    optimizer = module.configure_optimizers()
    for epoch in range(EPOCHS):
        sampler = EpochBatchSampler(data.rows("train"), batch_size)
        sampler.set_epoch(epoch)
        total, count = 0.0, 0
        for keys in sampler:
            batch = data.train_dataset.__getitems__(keys)
            losses, known = module.objective.loss(module.network(batch["image"].double()), batch["target"].double())
            optimizer.zero_grad()
            (losses / known).backward()
            optimizer.step()
            total, count = total + float(losses.detach()), count + int(known)
    return dict(module.network.named_parameters()), total / count


def fit_with_trainer(batch_size: int, **options) -> tuple[dict[str, torch.Tensor], float]:
    """The same with the trainer."""
    module = make_module()
    with tempfile.TemporaryDirectory() as folder:
        trainer = tiny.trainer(Path(folder), EPOCHS, precision="64-true", **options)
        trainer.fit(module, images(batch_size))
    return dict(module.network.named_parameters()), float(trainer.callback_metrics["train/loss"])


def assert_equal(actual, expected) -> None:
    for name, value in actual[0].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected[0][name], rtol=1e-10, atol=1e-13)
    assert actual[1] == pytest.approx(expected[1], rel=1e-12)


@pytest.mark.parametrize(("k", "size"), [(1, 32), (2, 16), (3, 11)])
def test_accumulated_batches_equal_one_large_batch(k, size):
    assert_equal(fit_with_trainer(size, accumulate_grad_batches=k), reference(k * size))


class CompareGradients(L.Callback):
    """Compares the gradient of each step with that of the mean loss over all labels known in its batches."""

    def __init__(self):
        self.batches, self.steps = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        image, target = (torch.cat([batch[key] for batch in self.batches]).double() for key in ("image", "target"))
        total, count = pl_module.objective.loss(pl_module.network(image), target)
        named = dict(pl_module.network.named_parameters())
        trainable = {name: value for name, value in named.items() if value.requires_grad}
        expected = torch.autograd.grad(total / count.clamp(min=1), list(trainable.values()))
        for (name, value), gradient in zip(trainable.items(), expected, strict=True):
            torch.testing.assert_close(value.grad, gradient, rtol=1e-9, atol=1e-13, msg=name)
        self.steps.append(len(self.batches))
        self.batches = []


def test_the_last_group_of_an_epoch_may_be_short():
    compare = CompareGradients()
    options = {"accumulate_grad_batches": 3, "limit_train_batches": 4, "callbacks": [compare]}
    fit_with_trainer(4, **options)
    assert compare.steps == [3, 1] * EPOCHS


def test_batches_without_a_known_label_have_no_weight():
    """Two images a batch, most labels unknown: a group begins with such a batch, ends with one, or holds no other."""
    compare = CompareGradients()
    module = make_module()
    data = tiny.data(IMAGES, 2, unknown=0.9)
    with tempfile.TemporaryDirectory() as folder:
        tiny.trainer(Path(folder), 1, [compare], precision="64-true", accumulate_grad_batches=2).fit(module, data)
    assert len(compare.steps) == 10


def test_the_gradient_is_clipped_as_that_of_a_large_batch():
    clip = {"gradient_clip_val": 0.05}
    assert_equal(fit_with_trainer(16, accumulate_grad_batches=2, **clip), fit_with_trainer(32, **clip))


def test_two_processes():
    run_two("tests.training.test_accumulation")


if __name__ == "__main__":
    dist.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2)
    assert_equal(fit_with_trainer(16, accumulate_grad_batches=2, devices=2, strategy="ddp"), reference(32))
    dist.barrier()  # a rank that ends first takes the store, or a connection, from the other at work
    dist.destroy_process_group()
