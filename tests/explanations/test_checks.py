"""The randomisation test: what it draws, what it counts, and what it says of maps that do not depend on weights."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from scipy.stats import t as student
from torch import nn

from finetune.explanations.checks import correlations, mean, randomisation, randomise, verdict
from finetune.network import NetworkSpec
from tests.explanations.nets import Itself, Pooled, network


def test_rank_correlation_is_spearmans_and_undefined_for_constants():
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 3, 3)), rng.random((4, 3, 3))
    a[1] = 0.0  # constant
    b[2] = -a[2]
    b[3] = np.maximum(a[3], 0.5)  # ties
    result = correlations(a, b)
    assert result[0] == pytest.approx(spearmanr(a[0].ravel(), b[0].ravel()).statistic)
    assert np.isnan(result[1])
    assert result[2] == pytest.approx(-1)
    assert result[3] == pytest.approx(spearmanr(a[3].ravel(), b[3].ravel()).statistic)


def test_parts_fall_one_after_the_other_and_the_network_stays():
    torch.manual_seed(0)
    net = NetworkSpec("resnet20_cifar", 2, in_channels=1).build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images, classes = torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 0])
    state = torch.get_rng_state()
    output = randomisation(net, images, classes, seed=3)
    assert [stage["part"] for stage in output["stages"]] == ["head", "stage3", "stage2", "stage1", "stem"]
    assert all(stage["images"] + stage["constant"] == 3 for stage in output["stages"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert randomisation(net, images, classes, seed=3) == output


@pytest.mark.parametrize("name", ["resnet20_cifar", "densenet121", "seresnet18", "resnetv2_50", "legacy_seresnet18"])
def test_randomising_reaches_every_weight(name):
    torch.manual_seed(0)
    net = NetworkSpec(name, 2).build()
    before = {key: value.clone() for key, value in net.named_parameters()}
    for modules in net.parts().values():
        randomise(modules, seed=7)
    assert all(not torch.equal(value, before[key]) for key, value in net.named_parameters() if value.ndim > 1)


class Blind(nn.Module):
    """A head without weights: what it says depends on the image alone."""

    def forward(self, x):
        return x.mean((2, 3)).sum(1, keepdim=True)


def test_maps_that_show_the_image_fail_the_test():
    class Still(Itself):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)  # the identity, and after randomising the same

    net = network(Blind())
    net.backbone = Still()
    few = randomisation(net, torch.rand(19, 1, 4, 4), torch.zeros(19, dtype=torch.long))
    assert few["alike"] is None
    assert few["sentence"].endswith("19 of 19 images vary, with these weights and with random ones; 20 are needed.")
    images, classes = torch.rand(20, 1, 4, 4), torch.zeros(20, dtype=torch.long)
    coarse = randomisation(net, images, classes, positions=4)
    assert coarse["alike"] is None
    assert "they have 4 positions" in coarse["sentence"]
    output = randomisation(net, images, classes, positions=16)
    assert output["alike"] is True
    assert output["stages"][-1]["rho"] == pytest.approx(1)
    assert "do not explain what this network learned" in output["sentence"]


def test_constant_maps_are_counted_and_not_called_anything():
    output = randomisation(network(Pooled([[-1.0]])), torch.rand(2, 1, 4, 4), torch.tensor([0, 0]))
    assert output["alike"] is None
    nothing = {"rho": None, "low": None, "high": None}
    assert output["stages"][-1] == {"part": "stem", **nothing, "images": 0, "constant": 2}
    assert "is unknown: the maps of 0 of 2 images vary" in output["sentence"]


def test_the_verdict_is_that_of_the_interval_over_images():
    rho = np.r_[np.full(10, 0.2), np.full(10, 0.4)]
    result = mean(rho)
    half = student.ppf(0.975, 19) * np.std(rho, ddof=1) / np.sqrt(20)
    assert (result["low"], result["high"]) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    assert verdict(result, None) is False
    assert verdict(mean(rho + 0.2), None) is None  # 0.45 to 0.55
    assert verdict(mean(rho + 0.5), None) is True
    assert verdict(mean(-rho - 0.5), None) is True  # the map turned upside down is the same map
    assert verdict(result, 9) is None
    assert mean(rho[:19])["low"] is None
