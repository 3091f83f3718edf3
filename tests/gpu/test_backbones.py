"""Backbones on a GPU: timm's logits and gradients, folded and compiled copies, several processes."""

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune.backbones import build
from finetune.backbones.folding import fold_batch_norm
from finetune.network import NetworkSpec
from finetune.training.launch import ranks

NAMES = ("resnet18", "resnet50", "densenet121")


def images(device: torch.device, number: int = 4, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, side, side, generator=generator).to(device)


def difference(a: Tensor, b: Tensor) -> float:
    """Of b from a, relative to a, as norms."""
    return float((a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-12))


def step(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    logits = net(x)
    nn.functional.cross_entropy(logits, torch.arange(len(x), device=x.device) % 5).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    statistics = {name: b.clone() for name, b in net.named_buffers() if b.is_floating_point()}
    return {"logits": logits.detach(), **gradients, **statistics}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_is_timms(device, name, layout):
    torch.manual_seed(0)
    theirs, ours = timm.create_model(name, num_classes=5), build(name, num_classes=5)
    ours.load_state_dict(theirs.state_dict())
    wanted, result = (
        step(net.to(device).to(memory_format=layout).train(), images(device).contiguous(memory_format=layout))
        for net in (theirs, ours)
    )
    assert difference(wanted.pop("logits"), result.pop("logits")) < 1e-5
    worst = {name: difference(wanted[name], result[name]) for name in wanted}
    assert {name: value for name, value in worst.items() if value > 1e-3} == {}


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_folded_inference(device, name):
    torch.manual_seed(0)
    net = build(name, num_classes=5).to(device).eval()
    x = images(device).contiguous(memory_format=torch.channels_last)
    assert difference(net(x), fold_batch_norm(net)(x)) < 1e-4
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert difference(net(x), fold_batch_norm(net)(x)) < 0.05


def test_a_compiled_network_trains(cuda):
    torch.manual_seed(0)
    net = build("resnet18", num_classes=5).to(cuda).to(memory_format=torch.channels_last).train()
    wanted = step(net, images(cuda))
    net.zero_grad()
    net.compile()
    result = step(net, images(cuda))
    assert difference(wanted["logits"], result["logits"]) < 1e-4
    assert difference(wanted["gradient of conv1.weight"], result["gradient of conv1.weight"]) < 0.01


def test_a_world_of_one_process(device):
    """nccl on a GPU: gradients through DistributedDataParallel are those without it."""
    net = NetworkSpec("resnet20_cifar", 5).build().to(device).train()
    x = images(device, 4, 16)
    wanted = step(net, x)
    net.zero_grad()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        total = torch.ones(3, device=device)
        dist.all_reduce(total)
        assert total.tolist() == [1, 1, 1]
        ranks.assert_ranks_identical(net)
        wrapped = nn.parallel.DistributedDataParallel(net, None if device.type == "cpu" else [device.index])
        result = step(wrapped, x)
    finally:
        dist.destroy_process_group()
    name = "backbone.conv1.weight"
    assert difference(wanted[f"gradient of {name}"], result[f"gradient of module.{name}"]) < 1e-5
