"""Training that keeps little, on a GPU, computes what standard training does: compiled passes and torch's operators."""

import contextlib
import statistics

import pytest
import torch
from torch import nn

from finetune.backbones import apply_memory, build, fused
from tests.backbones.lean_cases import assert_same, batch, make, relative_error, saved_bytes, step

MEMORY = ("lean", "minimal")
CASES = ("basic", "bottleneck_d", "se", "preact", "dense", "dense_plain", "plain")


@pytest.fixture(params=["compiled", "operators"])
def way(request, monkeypatch):
    if request.param == "operators":
        monkeypatch.setattr(fused, "supports", lambda x: False)
    return request.param


def on(device, case, memory, dtype=torch.float32, **sizes):
    """A training step: all it computes."""
    x, target = batch(**sizes)
    net = make(case, memory).to(device, dtype).to(memory_format=torch.channels_last)
    return step(net, x.to(device, dtype), target.to(device))


def test_passes_are_compiled(cuda):
    with torch.no_grad():
        assert fused.supports(torch.zeros(4, 2, device=cuda))


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_standard_training(device, way, case):
    wanted = on(device, case, "standard", torch.float64)
    for memory in MEMORY:
        assert_same(on(device, case, memory, torch.float64), wanted, tolerance=1e-9)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_gradients_and_statistics_are_as_exact_as_in_standard_training(device, way, autocast):
    """The median of several networks: where a ReLU's input is all but zero, the last digit decides."""
    sizes = {"images": 8, "size": 64}
    close = {"rtol": 1e-4, "atol": 1e-5} if autocast is None else {"rtol": 0.05, "atol": 0.02}
    ratios = {memory: [] for memory in MEMORY}
    for case in ("basic", "bottleneck", "preact", "dense", "dense_plain", "cifar_a", "plain"):
        truth = on(device, case, "standard", torch.float64, **sizes)
        errors = {}
        for memory in ("standard", *MEMORY):
            with torch.autocast(device.type, autocast) if autocast else contextlib.nullcontext():
                result = on(device, case, memory, **sizes)
            assert all(v.dtype == torch.float32 for name, v in result.items() if name.startswith("d"))
            errors[memory] = relative_error(result, truth)
            for name in (name for name in truth if name.endswith(("running_mean", "running_var"))):
                torch.testing.assert_close(result[name].double(), truth[name], **close)
        for memory in MEMORY:
            ratios[memory].append(errors[memory] / errors["standard"])
    assert max(statistics.median(values) for values in ratios.values()) <= 1.5


@pytest.mark.parametrize(("name", "most"), [("resnet50", 0.6), ("densenet121", 0.3)])
def test_what_is_kept_is_little(device, way, name, most):
    net = build(name, num_classes=5).to(device).to(memory_format=torch.channels_last).train()
    x = torch.randn(2, 3, 64, 64, device=device)
    sizes = {memory: saved_bytes(apply_memory(net, memory), x) for memory in ("standard", *MEMORY)}
    assert sizes["minimal"] < sizes["lean"] <= most * sizes["standard"]


def test_the_peak_of_a_step_is_lower(cuda, way):
    peaks = {}
    x, target = torch.randn(16, 3, 224, 224, device=cuda), torch.arange(16, device=cuda) % 5
    for memory in ("standard", *MEMORY):
        net = apply_memory(build("densenet121", num_classes=5), memory).to(cuda).train()
        net.to(memory_format=torch.channels_last)
        for _ in range(2):
            net.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                loss = nn.functional.cross_entropy(net(x), target)
            loss.backward()
            del loss
        peaks[memory] = torch.cuda.max_memory_allocated() - before
    assert peaks["minimal"] <= peaks["lean"] <= 0.6 * peaks["standard"]
