"""The way of a batch to its device: with `BYTES_CROSS_TO` a CPU takes the way of a GPU, to the same bits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.loading import module as loading
from finetune.inference import predict
from finetune.plan import Phase, Plan
from finetune.training.frozen import FrozenActivations
from tests.training import tiny

CPU = torch.device("cpu")


@pytest.fixture
def as_bytes(monkeypatch):
    monkeypatch.setattr(loading, "BYTES_CROSS_TO", {"cpu"})


def fitted(folder: Path, plan: Plan | None = None, mode: str = "off", workers: int = 0, **options) -> dict:
    """State after a fit of two epochs, and the types in which images crossed."""
    module, data = tiny.module(plan), tiny.data(**({"kind": "multilabel"}))
    data.num_workers = workers
    frozen = FrozenActivations(module, data, 3, mode=mode, directory=folder / "cache")
    data.activations = frozen if frozen.ranges else None
    crossed = []
    network_input = data.network_input
    data.network_input = lambda images: crossed.append(images.dtype) or network_input(images)
    tiny.trainer(folder, 3, **options).fit(module, data)
    return tiny.state(module) | {"crossed": set(crossed)}


@pytest.mark.parametrize(
    ("plan", "mode", "options"),
    [
        (None, "off", {}),
        (None, "off", {"precision": "bf16-mixed"}),
        (None, "off", {"precision": "64-true"}),
        (Plan({"head": Phase(0, ["head"])}), "on", {}),
        (Plan({"head": Phase(0, ["head"])}), "on", {"precision": "64-true"}),
    ],
)
def test_a_fit_is_the_same_to_the_last_bit(tmp_path, monkeypatch, plan, mode, options):
    usual = fitted(tmp_path / "usual", plan, mode, **options)
    monkeypatch.setattr(loading, "BYTES_CROSS_TO", {"cpu"})
    as_bytes = fitted(tmp_path / "bytes", plan, mode, **options)
    assert torch.uint8 not in usual.pop("crossed")
    assert torch.uint8 in as_bytes.pop("crossed")
    assert [name for name in usual if not torch.equal(usual[name], as_bytes[name])] == []


def test_predictions_are_the_same_to_the_last_bit(monkeypatch):
    network, data = tiny.module().network, tiny.data()
    index, logits = predict(network, data.eval_loader("val"), CPU)
    monkeypatch.setattr(loading, "BYTES_CROSS_TO", {"cpu"})
    for workers in (0, 1):
        data.num_workers = workers
        again, other = predict(network, data.eval_loader("val"), CPU)
        assert np.array_equal(index, again)
        assert np.array_equal(logits, other)


def test_loaders_without_a_device_still_give_normalised_images(as_bytes):
    data = tiny.data()
    assert next(iter(data.train_dataloader()))["image"].dtype == torch.uint8  # a trainer's, on this device
    evaluated = next(iter(data.eval_loader("val")))
    assert evaluated["image"].dtype == torch.float32
    assert data.eval_dataset[0]["image"].dtype == torch.float32
    [first, *_] = data.eval_loader("val").on_device(CPU)
    assert torch.equal(first["image"], evaluated["image"])
    assert first.keys() == evaluated.keys()


def test_memory_is_pinned_for_cuda_alone():
    loader = tiny.data().eval_loader("val")
    for_cuda = loader.for_device(torch.device("cuda", 0))
    assert (loader.pin_memory, for_cuda.pin_memory) == (False, True)
    assert loader.for_device(CPU) is loader
    assert for_cuda.for_device(torch.device("cuda", 0)) is for_cuda
    assert for_cuda.dataset.__getitems__([0, 1])["image"].shape == (2, tiny.SIZE, tiny.SIZE)
    assert loader.dataset.normalises
