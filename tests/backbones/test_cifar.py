"""The CIFAR forms: the papers' parameter counts, and the accuracy of the published weights."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.parity import uninitialised
from finetune.backbones import build
from finetune.weights import load_into

PAPERS = {  # millions of parameters, as printed
    "resnet20_cifar": 0.27,
    "resnet32_cifar": 0.46,
    "resnet44_cifar": 0.66,
    "resnet56_cifar": 0.85,
    "resnet110_cifar": 1.7,
    "resnet1202_cifar": 19.4,
    "preact_resnet110_cifar": 1.7,
    "preact_resnet164_cifar": 1.7,
    "preact_resnet1001_cifar": 10.2,
    "densenet_40_12": 1.0,
    "densenet_bc_100_12": 0.8,
    "densenet_bc_250_24": 15.3,
    "densenet_bc_190_40": 25.6,
    "densenet264": 33.3,
}


@pytest.mark.parametrize("name", PAPERS)
def test_parameters_are_the_papers(name):
    with uninitialised():
        net = build(name)
    printed = PAPERS[name]
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(printed, rel=0.04)
    assert net.num_classes == (10 if name != "densenet264" else 1000)


def test_resnet20_has_as_many_parameters_as_by_hand():
    first, norm = 3 * 16 * 9 + 2 * 16, 2
    stage1 = 6 * (16 * 16 * 9 + norm * 16)
    stage2 = 16 * 32 * 9 + norm * 32 + 5 * (32 * 32 * 9 + norm * 32)
    stage3 = 32 * 64 * 9 + norm * 64 + 5 * (64 * 64 * 9 + norm * 64)
    by_hand = first + stage1 + stage2 + stage3 + 64 * 10 + 10
    assert sum(p.numel() for p in build("resnet20_cifar").parameters()) == by_hand == 269_722


def test_option_b_projects_twice():
    a, b = build("resnet20_cifar"), build("resnet20_cifar", shortcut="B")
    new = set(b.state_dict()) - set(a.state_dict())
    assert {key.rsplit(".", 2)[0] for key in new} == {"layer2.0.downsample", "layer3.0.downsample"}


def test_a_plain_net_has_the_residual_nets_parameters_and_other_logits():
    plain, residual = build("plain20_cifar").eval(), build("resnet20_cifar").eval()
    plain.load_state_dict(residual.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(plain(images), residual(images))


def test_with_every_branch_zero_a_residual_net_passes_its_stem_through():
    net = build("resnet20_cifar", zero_init_last=True).eval()
    images = torch.randn(1, 3, 32, 32)
    stem = net.forward_stem(images)
    first, second, third = net.forward_stages(images)
    torch.testing.assert_close(first, stem)
    torch.testing.assert_close(second[:, 8:24], stem[:, :, ::2, ::2])
    torch.testing.assert_close(third[:, 24:40], stem[:, :, ::4, ::4])


EVERY_IMAGE = bool(os.environ.get("FINETUNE_EVERY_IMAGE"))  # takes minutes: all 2,000 images for all three nets

PUBLISHED = [  # on all images (within 0.002 of what is known), and on the first `each` per class
    ("resnet20_cifar", "resnet20-12fca82f.th", 0.9035, 200, 0.9035),
    ("resnet56_cifar", "resnet56-4bfd9763.th", 0.9120, 40, 0.9275),
    ("densenet_bc_100_12", "densenet_bc_100_12_cifar10.pth.tar", 0.9360, 10, 0.9200),
]


@pytest.mark.parametrize(("name", "file", "on_all", "each", "on_first"), PUBLISHED)
def test_published_weights_reach_their_accuracy(shared_data, name, file, on_all, each, on_first):
    net = build(name).eval().to(memory_format=torch.channels_last)
    report = load_into(net, name, shared_data / "weights" / file)
    each, accuracy = (200, on_all) if EVERY_IMAGE else (each, on_first)
    folders = sorted(path for path in (shared_data / "cifar10_test2000").iterdir() if path.is_dir())
    right = 0
    for label, folder in enumerate(folders):
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())[:each]])
        images = report.preprocessing.batch_to_tensor(pixels).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            right += int((net(images).argmax(1) == label).sum())
    assert right / (each * len(folders)) == pytest.approx(accuracy, abs=0.002)
