"""Lean training computes what standard training computes: in float64 to the last digits, in float32 as exactly."""

import statistics

import pytest
import torch
from torch import nn

from finetune.backbones import apply_memory, blocks, build, cifar, densenet, lean, list_models, native
from finetune.backbones.structure import in_order
from tests.backbones.lean_cases import NETS, assert_same, batch, make, relative_error, saved_bytes, step

MEMORY = ("lean", "minimal")


@pytest.mark.parametrize("case", NETS)
def test_a_step_is_that_of_standard_training(case):
    x, target = batch()
    wanted = step(make(case).double(), x, target)
    for memory in MEMORY:
        assert_same(step(make(case, memory).double(), x, target), wanted)


@pytest.mark.parametrize("case", ["bottleneck", "preact_d", "dense", "dense_plain", "plain"])
def test_norms_may_be_fixed_and_parameters_frozen(case):
    """A frozen prefix, norms in eval mode with weights that learn, single frozen parameters in between."""
    x, target = batch()

    def frozen(memory: str) -> nn.Module:
        net = make(case, memory).double()
        for number, (name, module) in enumerate(net.named_modules()):
            if isinstance(module, nn.BatchNorm2d) and number % 3:
                module.eval()
            if isinstance(module, nn.Conv2d) and number % 4 == 0 and "fc" not in name:
                module.requires_grad_(False)
        for module in net.parts()["stem"]:
            module.requires_grad_(False).eval()
        return net

    wanted = step(frozen("standard"), x, target)
    for memory in MEMORY:
        assert_same(step(frozen(memory), x, target), wanted)


@pytest.mark.parametrize("case", ["bottleneck", "preact", "dense"])
def test_the_image_may_want_a_gradient(case):
    x, target = batch()
    gradients = []
    for memory in ("standard", *MEMORY):
        image = x.clone().requires_grad_()
        net = make(case, memory).double().requires_grad_(False)  # nothing else does
        nn.functional.cross_entropy(net(image), target).backward()
        gradients.append(image.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("memory", MEMORY)
def test_gradients_are_as_exact_as_in_standard_training(memory):
    """Against float64. The median of several networks: where a ReLU's input is all but zero, the last digit decides."""
    x, target = batch(4, 64)
    ratios = []
    for case in ("basic", "bottleneck", "preact", "dense", "dense_plain", "cifar_a", "plain"):
        truth = step(make(case).double(), x, target)
        errors = [relative_error(step(make(case, m), x.float(), target), truth) for m in ("standard", memory)]
        ratios.append(errors[1] / errors[0])
    assert statistics.median(ratios) <= 1.5


@pytest.mark.parametrize("case", ["bottleneck", "preact", "dense"])
def test_gradients_in_bfloat16_autocast_are_as_exact_as_in_standard_training(case):
    x, target = batch(8, 64)
    truth = step(make(case).double(), x, target)
    errors = {}
    for memory in ("standard", *MEMORY):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = step(make(case, memory), x.float(), target)
        assert result["logits"].dtype == torch.bfloat16
        assert all(value.dtype == torch.float32 for name, value in result.items() if name.startswith("d"))
        errors[memory] = relative_error(result, truth)
    assert max(errors.values()) <= 1.2 * errors["standard"]


@pytest.mark.parametrize("memory", MEMORY)
def test_buffers_in_bfloat16_autocast(memory):
    """The blurring filter is a float32 buffer; the map that it meets is in bfloat16."""
    torch.manual_seed(0)
    modules = [nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, stride=1, padding=1), blocks.BlurPool(8)]
    x = torch.randn(4, 3, 16, 16)
    outputs, gradients = [], []
    for run in (in_order, lambda modules, x: lean.run(modules, x, memory)):
        image = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = run(modules, image)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        outputs.append(y.float())
        gradients.append(image.grad)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0.02, atol=0.02)
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


@pytest.mark.parametrize("case", ["bottleneck", "dense"])
@pytest.mark.parametrize("memory", MEMORY)
def test_memory_layout_of_image_and_weights_does_not_matter(case, memory):
    x, target = batch()
    wanted = step(make(case, memory).double(), x, target)
    net = make(case, memory).double().to(memory_format=torch.channels_last)
    assert_same(step(net, x.contiguous(memory_format=torch.channels_last), target), wanted)
    assert_same(step(make(case, memory).double(), x.mT.contiguous().mT, target), wanted)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("momentum", [None, 0.0, 0.3])
def test_running_statistics_with_every_momentum(memory, momentum):
    x, target = batch()
    nets = [make("dense").double(), make("dense", memory).double()]
    for net in nets:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
        step(net, x, target)
    assert_same(step(nets[1], 2 * x + 1, target), step(nets[0], 2 * x + 1, target))


def test_running_statistics_agree_to_1e_6_in_float32():
    x, target = batch(dtype=torch.float32)
    for case in ("bottleneck", "dense"):
        standard = make(case)
        step(standard, x, target)
        wanted = dict(standard.named_buffers())
        for memory in MEMORY:
            net = make(case, memory)
            step(net, x, target)
            for name, value in net.named_buffers():
                torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-6)


def test_the_mode_of_a_relu_alone_is_no_training():
    assert not lean.in_train_mode([nn.BatchNorm2d(2).eval(), nn.ReLU()])
    assert lean.in_train_mode([nn.BatchNorm2d(2), nn.ReLU().eval()])


def test_one_value_per_channel_is_refused_as_in_standard_training():
    net = make("dense", "lean")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.randn(1, 3, 32, 32))


def image(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()


def kept_maps(modules: list[nn.Module], x: torch.Tensor, memory: str) -> float:
    """Kept bytes in maps of 8 x 8 pixels, 16 channels, 2 images; norms keep less than half of one."""
    stage = nn.Sequential(*modules).train()
    stage.forward = lambda x: lean.run(modules, x, memory)
    return saved_bytes(stage, x) / (2 * 16 * 8 * 8 * 4)


def test_what_is_kept_of_residual_blocks():
    x = image(64)  # 4 maps, not counted
    stage = [blocks.Bottleneck(64, 16), blocks.Bottleneck(64, 16)]
    # lean: y1, y2 and the output (4 maps) of either block; minimal: y2 of either block, and the output of the last
    assert kept_maps(stage, x, "lean") == pytest.approx(12, abs=0.4)
    assert kept_maps(stage, x, "minimal") == pytest.approx(6, abs=0.4)
    widens = [blocks.Bottleneck(64, 32, stride=2)]
    # y1 at full size, 2 maps; y2 at a quarter, 1/2; output 128 channels at a quarter, 2; nothing of the shortcut
    assert kept_maps(widens, x, "lean") == pytest.approx(4.5, abs=0.4)
    assert kept_maps(widens, x, "minimal") == pytest.approx(2.5, abs=0.4)
    plain = [cifar.PlainBlock(64, 64), cifar.PlainBlock(64, 64)]
    assert kept_maps(plain, x, "lean") == pytest.approx(16, abs=0.4)  # what the convolutions gave


def test_what_is_kept_of_a_dense_block():
    x = image(16)
    block = [densenet.DenseBlock(3, 16, 16, layer=densenet.DenseLayer)]
    # the buffer: 1 + 3 maps; lean: and the outputs of the 1x1 convolutions, 4 maps each
    assert kept_maps(block, x, "lean") == pytest.approx(16, abs=0.4)
    assert kept_maps(block, x, "minimal") == pytest.approx(4, abs=0.4)


@pytest.mark.parametrize(
    ("name", "standard", "lean", "minimal"), [("densenet121", 124, 27, 10), ("resnet50", 82, 40, 16)]
)
def test_mebibytes_per_image_of_224_pixels(name, standard, lean, minimal):
    net, (x, _) = build(name).train(), batch(2, 224, torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    mebibytes = {memory: saved_bytes(apply_memory(net, memory), x) / 2**20 / len(x) for memory in ("standard", *MEMORY)}
    assert mebibytes["standard"] == pytest.approx(standard, abs=1)
    assert mebibytes["lean"] <= lean
    assert mebibytes["minimal"] <= minimal


@pytest.mark.parametrize("case", ["bottleneck", "preact_d", "dense", "dense_plain", "legacy_basic"])
@pytest.mark.parametrize("memory", MEMORY)
def test_float32_with_and_without_native_passes(case, memory, monkeypatch):
    x, target = batch(4, 64, torch.float32)
    truth = step(make(case).double(), x.double(), target)
    ordinary = relative_error(step(make(case), x, target), truth)
    assert relative_error(step(make(case, memory), x, target), truth) < max(1e-4, 3 * ordinary)
    monkeypatch.setattr(native, "supports", lambda x: False)
    assert relative_error(step(make(case, memory), x, target), truth) < max(1e-4, 3 * ordinary)


@pytest.mark.parametrize("name", list_models())
def test_every_name_is_lean(name, monkeypatch):
    """Every module of every network is known; on the meta device, and nothing is run."""
    rows: list[list[nn.Module]] = []

    def only_assemble(modules: list[nn.Module], x: torch.Tensor, memory: str) -> torch.Tensor:
        lean.assemble_unit(modules, memory)
        rows.append(modules)
        return x

    monkeypatch.setattr(lean, "run_unit", only_assemble)
    with torch.device("meta"):
        net = build(name).train()
    for memory in MEMORY:
        apply_memory(net, memory)
        x = net.forward_stem(torch.empty(1))
        for number in range(1, net.num_stages + 1):
            net.forward_stage(number, x)
        net.forward_tail(x)
    assert len(rows) >= 2 * (net.num_stages + 1)


def test_auto_is_lean_where_that_was_measured_to_be_no_slower(monkeypatch):
    """Of densenet121 with compiled passes; not of resnet18, not without a compiler, never with a warning."""
    monkeypatch.setattr(native, "supports", lambda x: True)
    net, (x, _) = build("densenet121", memory="auto").train(), batch(2, 64, torch.float32)
    assert net.memory == "auto"
    assert build("resnet18", memory="auto").memory == build("seresnet50", memory="auto").memory == "standard"
    monkeypatch.undo()
    sizes = {memory: saved_bytes(apply_memory(net, memory), x) for memory in ("standard", "lean")}
    assert saved_bytes(apply_memory(net, "auto"), x) == sizes["lean" if native.supports(x) else "standard"]
    monkeypatch.setattr(native, "supports", lambda x: False)
    assert saved_bytes(net, x) == sizes["standard"]
