"""The passes for GPUs on a CPU: in lean training without a compiler, traced, and compiled to C++."""

import shutil
import threading

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from finetune.backbones import fused, native, norms
from finetune.backbones.maps import Normalisation
from finetune.backbones.norms import norm_backward, normalise, statistics
from tests.backbones.lean_cases import assert_same, batch, make, relative_error, step


@pytest.fixture
def on_cpu(monkeypatch):
    """The passes for GPUs, not compiled."""
    monkeypatch.setattr(native, "supports", lambda x: False)
    monkeypatch.setattr(fused, "supports", lambda x: True)
    monkeypatch.setattr(fused, "compiled", lambda function: function)


@pytest.mark.parametrize("case", ["bottleneck_d", "preact", "dense", "dense_plain", "plain"])
def test_a_step_is_that_of_standard_training(on_cpu, case):
    x, target = batch()
    wanted = step(make(case).double(), x, target)
    for memory in ("lean", "minimal"):
        assert_same(step(make(case, memory).double(), x, target), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["bottleneck", "dense"])
def test_gradients_in_16_bits_are_as_exact_as_in_standard_training(on_cpu, case, dtype):
    x, target = batch(8, 64)
    truth = step(make(case).double(), x, target)
    errors = {}
    for memory in ("standard", "lean", "minimal"):
        with torch.autocast("cpu", dtype=dtype):
            net = make(case, memory)
            net.zero_grad()
            loss = nn.functional.cross_entropy(net(x.float()).float(), target)
        loss.backward()
        errors[memory] = relative_error({f"d{n}": p.grad for n, p in net.named_parameters()}, truth)
    assert max(errors.values()) <= 1.2 * errors["standard"]


def one_of_each(x: torch.Tensor, relu: bool = True) -> list[torch.Tensor]:
    """All passes over a map (M, C), in train and eval mode, over x and beside it."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = nn.Parameter(torch.ones(x.shape[1])), nn.Parameter(torch.full((x.shape[1],), 0.1))
    dz = torch.randn(x.shape, generator=generator).to(x.dtype)
    stats = statistics(x)
    norm = Normalisation(stats.mean, stats.var, weight, bias, 1e-5, relu)
    results = [stats.mean, stats.var, normalise(x, norm, torch.empty_like(x)), normalise(x, norm, x.clone(), dz)]
    results.append(normalise(same := x.clone(), norm, same))
    for fixed in (True, False):
        results += norm_backward(dz, x.contiguous(), None, norm, fixed=fixed, needs_x=True)
    overwritten = x.clone()
    results += norm_backward(dz, overwritten, None, norm, fixed=False, needs_x=True, inplace=True)
    sums = norms.ReaderSums(norm, x)
    dx = torch.ones(len(x), 2 * x.shape[1])[:, : x.shape[1]]
    sums.add(dz.clone(), x, normalise(x, norm, torch.empty_like(x)), dx)
    return [*results, sums.sums.float(), dx]


def maps(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    """Ranges of columns of wider matrices, and a whole one."""
    torch.manual_seed(0)
    return [torch.randn(rows, columns + 3)[:, :columns] + 1 for rows, columns in shapes] + [torch.randn(50, 7)]


def a_backward_pass(x: torch.Tensor) -> list[torch.Tensor]:
    """Statistics, normalising, and the backward pass of norm and ReLU over a map (M, C)."""
    stats = statistics(x)
    norm = Normalisation(stats.mean, stats.var, nn.Parameter(torch.ones(x.shape[1])), stats.mean, 1e-5, True)
    z = normalise(x, norm, torch.empty_like(x))
    return [stats.mean, stats.var, z, *norm_backward(x.flip(0), x, None, norm, fixed=False, needs_x=True)]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_passes_give_what_operators_give(monkeypatch):
    """Once in this thread, then in another, as backward on a GPU runs, with sizes that were not compiled for."""
    monkeypatch.setattr(native, "supports", lambda x: False)
    torch.manual_seed(0)
    xs = [torch.randn(300, 16) + 1, torch.randn(200, 24) - 1]
    with torch.no_grad():
        wanted = [a_backward_pass(x) for x in xs]
        monkeypatch.setattr(fused, "DEVICES", {"cpu"})
        fused.available.cache_clear()
        assert fused.supports(xs[0])
        results = [a_backward_pass(xs[0])]
        thread = threading.Thread(target=lambda: results.append(a_backward_pass(xs[1])))
        thread.start()
        thread.join()
    fused.available.cache_clear()
    torch.testing.assert_close(results, wanted, rtol=1e-4, atol=1e-4)


def test_a_pass_is_traced_for_types_of_numbers_and_not_for_sizes(monkeypatch):
    counters = {}

    def compiled(function):
        if function not in counters:
            counter = CompileCounter()
            counters[function] = counter, torch.compile(function, dynamic=True, backend=counter, fullgraph=True)
        return counters[function][1]

    monkeypatch.setattr(native, "supports", lambda x: False)
    monkeypatch.setattr(fused, "supports", lambda x: True)
    monkeypatch.setattr(fused, "compiled", compiled)
    for x in maps((300, 16), (200, 24), (90, 40), (64, 18)):
        one_of_each(x)
        one_of_each(x, relu=False)
    assert len(counters) == 12
    assert max(counter.frame_count for counter, _ in counters.values()) <= 4
    before = {function: counter.frame_count for function, (counter, _) in counters.items()}
    for x in maps((310, 17), (220, 23), (91, 41)):
        one_of_each(x)
    assert {function: counter.frame_count for function, (counter, _) in counters.items()} == before
    one_of_each(maps()[0].bfloat16())
    assert max(counter.frame_count for counter, _ in counters.values()) <= 5


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch, while it traces around lean parts
def test_passes_are_compiled_inside_a_compiled_network_too(monkeypatch):
    """The compiler leaves lean parts out; what runs there may be compiled by itself."""
    counter = CompileCounter()
    monkeypatch.setattr(native, "supports", lambda x: False)
    monkeypatch.setattr(fused, "supports", lambda x: True)
    monkeypatch.setattr(fused, "compiled", lambda function: torch.compile(function, dynamic=True, backend=counter))
    x, target = batch(dtype=torch.float32)
    wanted = step(make("bottleneck", "lean"), x, target)
    torch._dynamo.reset()
    counter.frame_count = 0
    net = make("bottleneck", "lean")
    net.compile(backend="eager")
    assert_same(step(net, x, target), wanted, tolerance=1e-5)
    assert counter.frame_count >= 5
    torch._dynamo.reset()


def test_no_compiler_deterministic_algorithms_or_the_environment_leave_torchs_operators(monkeypatch):
    x = torch.zeros(4, 2)
    monkeypatch.setattr(fused, "DEVICES", {"cpu"})
    monkeypatch.setattr(fused, "check", lambda kind: (_ for _ in ()).throw(RuntimeError("no Triton\nhere")))
    fused.available.cache_clear()
    with pytest.warns(UserWarning, match=r"cannot compile here \(no Triton\)"):
        assert not fused.supports(x)
    monkeypatch.setattr(fused, "check", lambda kind: None)
    fused.available.cache_clear()
    assert fused.supports(x)
    torch.use_deterministic_algorithms(True)
    try:
        assert not fused.supports(x)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("FINETUNE_NATIVE", "0")
    fused.available.cache_clear()
    assert not fused.supports(x)
    fused.available.cache_clear()
