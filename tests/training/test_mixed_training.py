"""Trainings on mixed, growing and augmented images, of each loss for them: a resumed one is bit-equal."""

import lightning as L
import pytest
import torch

from finetune.data.loading.augment import Augment
from finetune.data.loading.mixing import CutMix, Mixup, MixupOrCutMix
from finetune.data.loading.progressive import Progressive
from finetune.losses import AUCMargin, BinaryCrossEntropy, CrossEntropy
from finetune.tasks.classification.objective import ClassObjective
from tests.training import tiny

albumentations = pytest.importorskip("albumentations")


class Sides(L.Callback):
    """Sides of the images of each epoch."""

    def __init__(self):
        self.train, self.val = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.train.setdefault(trainer.current_epoch, set()).add(batch["image"].shape[-1])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.val.setdefault(trainer.current_epoch, set()).add(batch["image"].shape[-1])


class Stop(L.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise RuntimeError("power failure")


@pytest.mark.parametrize(
    ("loss", "mixing"),
    [
        (BinaryCrossEntropy(label_smoothing=0.1), Mixup()),
        (AUCMargin(), CutMix()),
        (CrossEntropy(0.1), MixupOrCutMix()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_resumed_training_equals_one_that_never_stopped(tmp_path, loss, mixing):
    def train(folder, callbacks=(), resume=None):
        module = tiny.module()
        module.objective = ClassObjective(loss)
        augment = Augment(tiny.SIZE, {"turn": albumentations.Affine(rotate=(-9, 9), p=1)})
        unknown = 0.0 if loss.kind == "multiclass" else 0.1
        data = tiny.data(
            augment=augment, mixing=mixing, progressive=Progressive(3, multiple=4), kind=loss.kind, unknown=unknown
        )
        sides = Sides()
        trainer = tiny.trainer(tmp_path / folder, 4, [sides, *callbacks])
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        return tiny.state(module), sides

    whole, sides = train("a")
    assert sides.train == {0: {8}, 1: {12}, 2: {12}, 3: {16}}  # exactly 8, 10.7, 13.3 and 16
    assert sides.val == {epoch: {16} for epoch in range(4)}
    with pytest.raises(RuntimeError, match="power failure"):
        train("b", [Stop()])
    resumed, sides = train("b", resume=tmp_path / "b/checkpoints/last.ckpt")
    assert sides.train == {2: {12}, 3: {16}}
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
