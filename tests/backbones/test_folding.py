"""Folded networks answer as before: to rounding, for every family, with every layout, and refuse to train."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch.plugins import TorchSyncBatchNorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune import FinetuneError, fold_batch_norm
from finetune.backbones import build
from finetune.backbones import folded as folded_modules
from tests.backbones.lean_cases import NETS, batch, make


def trained(case: str) -> nn.Module:
    """In eval mode, with running statistics that have seen something."""
    net = make(case)
    with torch.no_grad():
        net(batch(4, 64, torch.float32)[0])
    return net.eval()


def error(result: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((result.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("case", NETS)
@torch.no_grad()
def test_the_same_logits_maps_and_features(case):
    net = trained(case)
    folded = fold_batch_norm(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x, _ = batch(3, 64, torch.float32)
    truth = copy.deepcopy(net).double()
    wanted = truth(x.double())
    assert error(folded(x), wanted) < 1e-6
    assert error(folded(x.contiguous(memory_format=torch.channels_last)), wanted) < 1e-6
    assert error(fold_batch_norm(truth)(x.double()), wanted) < 1e-14
    for result, ours in zip(folded.forward_stages(x), truth.forward_stages(x.double()), strict=True):
        assert error(result, ours) < 1e-6
    assert error(folded.forward_features(x), truth.forward_features(x.double())) < 1e-6


@pytest.mark.parametrize("case", ["basic_d", "bottleneck", "preact_d", "dense_blur", "plain"])
def test_without_fused_operators_and_with_gradients(case, monkeypatch):
    net = trained(case)
    folded = fold_batch_norm(net)
    x, _ = batch(2, 64, torch.float32)
    images = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for module, image in zip((net, folded), images, strict=True):
        module(image).square().sum().backward()  # saliency
    assert error(images[1].grad, images[0].grad.double()) < 1e-5
    monkeypatch.setattr(folded_modules, "fused_operators_work", lambda: False)
    with torch.no_grad():
        assert error(folded(x), net.double()(x.double())) < 1e-6


@torch.no_grad()
def test_maps_given_out_are_not_written_over():
    """Blocks write their sum over their input, but never over what a caller holds."""
    folded = fold_batch_norm(trained("basic"))
    x, _ = batch(2, 64, torch.float32)
    stem = folded.forward_stem(x)
    before = stem.clone()
    maps = folded.forward_stages(x)
    copies = [m.clone() for m in maps]
    folded.forward_stage(1, stem)
    folded.forward_stage(2, maps[0])
    folded.layer1[1](maps[0])
    assert torch.equal(stem, before)
    assert all(torch.equal(a, b) for a, b in zip(maps, copies, strict=True))


def test_training_is_refused():
    folded = fold_batch_norm(trained("dense"))
    assert folded.eval() is folded
    with pytest.raises(FinetuneError, match="folded copy"):
        folded.train()
    with pytest.raises(FinetuneError, match="folded copy"):
        nn.Sequential(folded).train()
    assert not any(p.requires_grad for p in folded.parameters())


@torch.no_grad()
def test_the_network_itself_stays_as_it_was():
    net = make("dense", "lean").train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    folded = fold_batch_norm(net)
    assert net.training
    assert not folded.training
    assert net.memory == "lean"
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    x, _ = batch(2, 64, torch.float32)
    assert error(folded(x), copy.deepcopy(net).eval().double()(x.double())) < 1e-6


@torch.no_grad()
def test_copies_pickles_and_changed_weights():
    folded = fold_batch_norm(trained("bottleneck"))
    x, _ = batch(2, 64, torch.float32)
    wanted = folded(x)  # packs the weights
    for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(twin(x), wanted)
        with pytest.raises(FinetuneError):
            twin.train()
    other = fold_batch_norm(make("bottleneck", seed=3))
    folded.load_state_dict(other.state_dict())
    torch.testing.assert_close(folded(x), other(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        copy.deepcopy(folded).double()(x.double()).float(), wanted := folded(x), rtol=1e-4, atol=1e-4
    )
    assert wanted.dtype == torch.float32


@torch.no_grad()
def test_a_network_with_a_head_of_its_own():
    backbone = trained("dense")
    head = nn.Sequential(nn.Conv2d(34, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.Flatten())
    head[1].running_var.uniform_(0.5, 2.0)

    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = backbone, head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone.forward_stages(x)[-2][:, :34])

    net = WithHead().eval()
    folded = fold_batch_norm(net)
    x, _ = batch(2, 64, torch.float32)
    assert error(folded(x), net.double()(x.double())) < 1e-6
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 1  # nothing it could join


@torch.no_grad()
def test_a_norm_in_a_sequence_within_a_sequence_is_folded_once():
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten()).eval()
    head[1][0].running_mean.fill_(3.0)
    x = torch.randn(2, 3, 6, 6)
    folded = fold_batch_norm(head)
    torch.testing.assert_close(folded(x), head(x), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@torch.no_grad()
def test_networks_with_synchronised_norms_and_bias():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(trained("bottleneck")).eval()
    net.layer1[0].conv2.bias = nn.Parameter(torch.randn(16))
    x, _ = batch(2, 64, torch.float32)
    wanted = net.double()(x.double())
    assert error(fold_batch_norm(net.float())(x), wanted) < 1e-6


@torch.no_grad()
def test_networks_after_a_training_with_synchronised_norms():
    """What Lightning leaves of trainer.sync_batchnorm=true: norms of a class of its own, with the same names."""
    net = trained("bottleneck")
    names, x = list(net.state_dict()), batch(2, 64, torch.float32)[0]
    sync = TorchSyncBatchNorm()
    converted = sync.apply(net)
    assert list(converted.state_dict()) == names
    after = sync.revert(converted).eval()
    assert list(after.state_dict()) == names
    fresh = trained("bottleneck")
    fresh.load_state_dict(after.state_dict(), strict=True)
    torch.testing.assert_close(after(x), fresh.eval()(x), rtol=0, atol=0)
    folded = fold_batch_norm(after)
    assert not any(isinstance(module, _BatchNorm) for module in folded.modules())
    torch.testing.assert_close(folded(x), fold_batch_norm(fresh)(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "resnetv2_50"])
@torch.no_grad()
def test_names(name):
    net = build(name).eval()
    x, _ = batch(1, 96, torch.float32)
    wanted = copy.deepcopy(net).double()(x.double())
    assert error(fold_batch_norm(net)(x), wanted) < 1e-6


@torch.no_grad()
def test_export_sees_ordinary_operators():
    folded = fold_batch_norm(trained("dense"))
    x, _ = batch(2, 64, torch.float32)
    program = torch.export.export(folded, (x,))
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), folded(x), rtol=1e-5, atol=1e-5)
