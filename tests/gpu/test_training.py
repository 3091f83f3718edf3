"""Fits on a GPU: precisions, the way of a batch, frozen activations, resumes, the largest batch, compiled networks."""

import json
from pathlib import Path

import albumentations
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from finetune.data.loading import module as loading
from finetune.data.loading.augment import Augment
from finetune.inference import predict
from finetune.plan import Phase, Plan
from finetune.training.frozen import FrozenActivations
from tests.training import tiny

PROBE = Plan({"head": Phase(0, ["head"])})


@pytest.fixture(autouse=True)
def bytes_cross(device, monkeypatch):
    monkeypatch.setattr(loading, "BYTES_CROSS_TO", {device.type})


def data(workers: int = 0, augment: bool = False):
    turn = Augment(tiny.SIZE, {"turn": albumentations.Rotate(p=1)}) if augment else None
    made = tiny.data(augment=turn)
    made.num_workers = workers
    return made


def fit(folder: Path, accelerator: str, epochs: int = 3, plan=None, callbacks=(), resume=None, **options):
    """The module after a fit on augmented images."""
    module = tiny.module(plan)
    trainer = tiny.trainer(folder, epochs, callbacks, accelerator=accelerator, devices=1, **options)
    trainer.fit(module, data(augment=True), ckpt_path=resume, weights_only=True)
    return module


def assert_equal(module, other) -> None:
    one, two = tiny.state(module), tiny.state(other)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"])
def test_a_fit_learns_in_every_precision(tmp_path, accelerator, precision):
    if accelerator == "cpu" and precision == "16-mixed":
        pytest.skip("for CUDA alone")
    fit(tmp_path, accelerator, 6, precision=precision)
    losses = pd.read_csv(tmp_path / "metrics.csv")["train/loss"].dropna().to_numpy()
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.95 * losses[0]


def test_images_cross_as_bytes_and_have_the_values_of_a_cpu(tmp_path, device, accelerator):
    images = data(workers=1, augment=True)
    module = tiny.module()
    seen = {}

    class Record(tiny.L.Callback):
        def on_train_batch_start(self, trainer, module, batch, number):
            if trainer.current_epoch == 1:
                seen.update(zip(batch["index"].tolist(), batch["image"].cpu(), strict=True))
            assert batch["image"].device == device
            assert batch["image"].dtype == torch.float32
            loader = trainer.train_dataloader
            assert loader.pin_memory is (device.type == "cuda")
            assert not loader.dataset.normalises

    tiny.trainer(tmp_path, 2, [Record()], accelerator=accelerator, devices=1).fit(module, images)
    assert len(seen) == len(images.rows("train"))
    for row, image in seen.items():
        torch.testing.assert_close(image, images.train_dataset[(1, row)]["image"], rtol=0, atol=1e-6)


def test_batches_come_in_pinned_memory(cuda):
    loader = data(workers=1).eval_loader("val").for_device(cuda)
    assert all(batch["image"].is_pinned() and batch["image"].dtype == torch.uint8 for batch in loader)


def test_every_value_of_a_pixel_is_normalised_as_on_a_cpu(device):
    p = loading.Preprocessing(image_size=16)
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for batch in (images, images.unsqueeze(-1).repeat(1, 1, 1, 3)):
        for preprocessing in (p, p.with_channels(1)):
            wanted = preprocessing.batch_to_tensor(batch)
            torch.testing.assert_close(preprocessing.batch_to_tensor(batch.to(device)).cpu(), wanted, rtol=0, atol=1e-6)


def test_predictions_are_those_of_a_cpu(device):
    network, images = tiny.module().network, data()
    index, wanted = predict(network, images.eval_loader("val"), torch.device("cpu"))
    again, logits = predict(network, images.eval_loader("val"), device)
    assert index.tolist() == again.tolist()
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_stored_activations_give_the_bits_of_computed_ones(tmp_path, accelerator, precision):
    modules = []
    for mode in ("on", "off"):
        module, images = tiny.module(PROBE), data()
        frozen = FrozenActivations(module, images, 4, mode=mode, directory=tmp_path / "cache")
        images.activations = frozen if frozen.ranges else None
        options = {"accelerator": accelerator, "devices": 1, "precision": precision, "deterministic": True}
        tiny.trainer(tmp_path / mode, 4, **options).fit(module, images)
        modules.append(module)
        assert (mode == "off") or any(stored is not None for stored in frozen.opened.values())
    assert_equal(*modules)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_fit_has_the_bits_of_one_that_never_stopped(tmp_path, accelerator, precision):
    plan = Plan({"head": Phase(0, ["head"]), "full": Phase(1, ["all"])})
    options = {"deterministic": True, "precision": precision}

    class Stop(tiny.L.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise RuntimeError("power failure")

    whole = fit(tmp_path / "whole", accelerator, 4, plan, **options)
    with pytest.raises(RuntimeError, match="power failure"):
        fit(tmp_path / "part", accelerator, 4, plan, [Stop()], **options)
    last = tmp_path / "part/checkpoints/last.ckpt"
    assert_equal(whole, fit(tmp_path / "part", accelerator, 4, plan, resume=last, **options))


def test_a_compiled_network_is_fitted(tmp_path, cuda, accelerator):
    module = tiny.module()
    module.network.compile()
    tiny.trainer(tmp_path, 2, accelerator=accelerator, devices=1, precision="bf16-mixed").fit(module, data())
    assert all(torch.isfinite(value).all() for value in tiny.state(module).values())


def test_the_largest_batch_is_looked_for(tmp_path, cuda, monkeypatch):
    pytest.importorskip("finetune.steps.find")
    from finetune.__main__ import main
    from tests.jobs.test_resume import FIT, draw

    draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    main([*FIT, "trainer.accelerator=gpu", "find=[batch_size]", "hydra.run.dir=searched"])
    size = json.loads(Path("searched/environment.json").read_text())["found"]["batch_size"]
    assert yaml.safe_load(Path("searched/config.yaml").read_text())["data"]["batch_size"] == size
