"""Lean training in the places where networks are trained: accumulation, hooks, copies, compilation, two processes."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn

from finetune.backbones import apply_memory, lean
from tests.backbones.lean_cases import assert_same, batch, make, saved_bytes, step

MEMORY = ("lean", "minimal")
both = pytest.mark.parametrize("memory", MEMORY)
families = pytest.mark.parametrize("case", ["bottleneck", "preact", "dense"])


@both
@families
def test_one_backbone_used_twice_in_a_graph(case, memory):
    x, target = batch()

    def siamese(net: nn.Module) -> dict[str, torch.Tensor]:
        loss = nn.functional.cross_entropy(net(x) * net(x.flip(3)), target)
        loss.backward()
        return {f"d{name}": p.grad for name, p in net.named_parameters()} | dict(net.named_buffers())

    assert_same(siamese(make(case, memory).double()), siamese(make(case).double()))


@both
@families
def test_backward_twice_gives_the_same_and_gradients_accumulate(case, memory):
    x, target = batch()
    net = make(case, memory).double()
    loss = nn.functional.cross_entropy(net(x), target)
    once = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward()
    for p, g in zip(net.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g, rtol=1e-12, atol=0)


@both
@families
def test_the_gradient_that_comes_in_is_left_as_it_was(case, memory):
    x, _ = batch()
    y = make(case, memory).double().forward_stages(x.requires_grad_())[-1]
    gradient = torch.randn_like(y)
    before = gradient.clone()
    y.backward(gradient)
    assert torch.equal(gradient, before)


@both
@families
def test_maps_of_all_stages_may_be_read(case, memory):
    """A pyramid reads every stage, and autograd then has a gradient from each reader."""
    x, _ = batch()

    def pyramid(net: nn.Module) -> dict[str, torch.Tensor]:
        sum((m * (n + 1)).square().mean() for n, m in enumerate(net.forward_stages(x))).backward()
        return {f"d{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}

    assert_same(pyramid(make(case, memory).double()), pyramid(make(case).double()))


@both
@families
def test_a_second_derivative_is_refused(case, memory):
    x, target = batch()
    net = make(case, memory).double()
    loss = nn.functional.cross_entropy(net(x), target)
    first = torch.autograd.grad(loss, next(net.parameters()), create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@families
def test_a_changed_parameter_is_noticed(case):
    x, target = batch()
    net = make(case, "lean").double()
    loss = nn.functional.cross_entropy(net(x), target)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@both
@families
def test_eval_mode_and_no_grad_take_the_ordinary_path(case, memory, monkeypatch):
    monkeypatch.setattr(lean, "run_unit", lambda *_: pytest.fail("not the ordinary path"))
    x, _ = batch()
    net = make(case, memory).double()
    with torch.no_grad():
        net(x)
    with torch.inference_mode():
        net.eval()(x)
    net.eval()(x).sum().backward()  # saliency: gradients in eval mode


@both
@families
def test_copies_pickles_and_state_dicts(case, memory):
    x, target = batch()
    net = make(case, memory).double()
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    plain = make(case, seed=5).double()
    plain.load_state_dict(net.state_dict(), strict=True)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    wanted = step(net, x, target)
    for twin in [*twins, apply_memory(plain, memory)]:
        assert twin.memory == memory
        assert_same(step(twin, x, target), wanted)


def test_memory_can_be_changed_back():
    x, target = batch()
    net = make("dense", "lean").double()
    wanted = step(make("dense").double(), x, target)
    assert_same(step(apply_memory(net, "standard"), x, target), wanted)


@both
@pytest.mark.parametrize(
    ("case", "module", "rest"),
    [
        ("bottleneck", "layer2.0.conv2", 0.9),
        ("bottleneck", "layer1", 0.9),
        ("bottleneck", "act1", 0.9),
        ("bottleneck", "layer3.0.act2", 0.9),
        ("bottleneck", "layer2.0.act3", 0.9),
        ("bottleneck", "layer2.0.downsample", 0.9),
        ("preact", "stages.0.blocks.0.norm2", 0.9),
        ("preact", "stages.0.blocks.0.act2", 0.9),
        ("dense", "features.denseblock2.denselayer1.norm2", 0.9),
        ("dense", "features.denseblock2.denselayer1.relu1", 0.9),
        ("dense", "features.denseblock2.denselayer1.conv1", 0.9),
        ("dense", "features.denseblock2", 0.9),
        ("dense", "features.transition1", 0.9),
    ],
)
def test_a_hook_is_called_and_the_rest_stays_lean(case, memory, module, rest):
    x, target = batch()
    wanted = step(make(case).double(), x, target)
    net = make(case, memory).double()
    calls = []
    net.get_submodule(module).register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match=f"memory={memory} does not hold .* hook"):
        assert_same(step(net, x, target), wanted)
    assert len(calls) == 1
    with pytest.warns(UserWarning, match="hook"):
        assert saved_bytes(net, x) < rest * saved_bytes(make(case).double(), x)


@both
def test_global_hooks_are_called(memory):
    x, _ = batch()
    net, calls = make("dense", memory).double(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    try:
        net(x)
    finally:
        handle.remove()
    assert calls.count("BatchNorm2d") == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@both
def test_parameter_hooks_are_called(memory):
    x, target = batch()
    net, seen = make("dense", memory).double(), set()
    for name, p in net.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.add(name))
    step(net, x, target)
    assert seen == {name for name, _ in net.named_parameters()}


@both
def test_a_norm_of_another_kind_is_left_to_standard_training(memory):
    x, target = batch()
    nets = [make("bottleneck").double(), make("bottleneck", memory).double()]
    for net in nets:
        net.layer2[0].bn2 = nn.InstanceNorm2d(32, affine=True).double()
    wanted = step(nets[0], x, target)
    with pytest.warns(UserWarning, match="InstanceNorm2d"):
        assert_same(step(nets[1], x, target), wanted)


@both
def test_a_group_norm_and_its_relu_in_place_are_computed_again(memory):
    x, target = batch()
    nets = [make("bottleneck").double(), make("bottleneck", memory).double()]
    for net in nets:
        net.layer2[0].bn2 = nn.GroupNorm(4, 32).double()
        net.layer1[0].bn1 = nn.Identity()  # a ReLU in place, of what the convolution gives
        assert net.layer1[0].act1.inplace
        assert net.layer2[0].act2.inplace
    assert_same(step(nets[1], x, target), step(nets[0], x, target))


@both
def test_a_reparametrised_weight(memory):
    x, target = batch()
    nets = [make("bottleneck").double(), make("bottleneck", memory).double()]
    for net in nets:
        nn.utils.parametrizations.weight_norm(net.layer1[0].conv2)
    wanted = step(nets[0], x, target)
    with pytest.warns(UserWarning, match="ParametrizedConv2d"):
        assert_same(step(nets[1], x, target), wanted)


@both
def test_threads_do_not_meet(memory):
    x, target = batch()
    nets = [make("dense", memory, seed).double() for seed in range(3)]
    wanted = [step(make("dense", "standard", seed).double(), x, target) for seed in range(3)]
    result: dict[int, dict[str, torch.Tensor]] = {}

    def work(index: int) -> None:
        result[index] = step(nets[index], x, target)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        assert_same(result[index], wanted[index])


@both
def test_nothing_is_held_beside_what_autograd_saves(memory):
    """No tensor hangs on the graph's nodes; after the forward pass only what save_for_backward took is alive."""
    x, _ = batch()
    y = make("dense", memory).double()(x)
    nodes, seen = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        assert not [v for v in getattr(node, "__dict__", {}).values() if isinstance(v, torch.Tensor)]
        nodes += [following for following, _ in node.next_functions]
    assert any(type(node).__name__ == "LeanBackward" for node in seen)
