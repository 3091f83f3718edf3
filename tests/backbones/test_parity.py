"""Equal to timm to the last bit, and to torchvision: keys, shapes, logits, every gradient, statistics, maps."""

import pytest
import timm
import torch
import torchvision

from benchmarks.parity import differences, randomise, uninitialised
from finetune.backbones import build, list_models

NAMES = [name for name in list_models() if timm.is_model(name)]
SMALL = 64  # px; the deepest map is 2 x 2
LARGE_NETS = ("50", "101", "152", "161", "200", "201", "264", "wide")


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_timm(name):
    with uninitialised():
        ours, theirs = build(name), timm.create_model(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    size = 32 if any(mark in name for mark in LARGE_NETS) else SMALL
    assert differences(ours, theirs, size=size) == {"logits": 0.0, "gradients": 0.0, "statistics": 0.0, "maps": 0.0}
    assert ours.feature_info == theirs.feature_info
    assert ours.num_features == theirs.num_features


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet26d", "seresnet18", "resnetv2_50", "legacy_seresnet18", "densenet121"]
)
def test_the_same_seed_gives_timms_initial_weights(name):
    torch.manual_seed(0)
    ours = build(name).state_dict()
    torch.manual_seed(0)
    theirs = timm.create_model(name).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("name", ["resnet26d", "densenet121", "resnetv2_50", "legacy_seresnet18"])
def test_maps_are_those_of_features_only(name):
    with uninitialised():
        ours, theirs = build(name, num_classes=0).eval(), timm.create_model(name, features_only=True).eval()
    randomise(ours)
    state = ours.state_dict()
    renamed = {key: state[timm_key(key, state)] for key in theirs.state_dict()}
    theirs.load_state_dict(renamed, strict=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = [x for x, cut in zip(theirs(images), theirs.feature_info.reduction(), strict=True) if cut >= 4]
        for a, b in zip(ours.forward_stages(images), wanted, strict=True):
            assert torch.equal(a, b)


def timm_key(key, state):
    """features_only flattens some containers: `features_conv0.weight` for `features.conv0.weight`."""
    if key in state:
        return key
    first, rest = key.split(".", 1)
    return f"{first.replace('_', '.', 1)}.{rest}"


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("resnet18", 16), ("resnet18", 8), ("resnet26d", 8), ("seresnet18", 16), ("resnetv2_50", 16), ("resnetv2_50d", 8)],
)
def test_output_stride_is_timms(name, output_stride):
    with uninitialised():
        ours = build(name, output_stride=output_stride)
        theirs = timm.create_model(name, output_stride=output_stride)
    assert set(differences(ours, theirs, size=48).values()) == {0.0}
    assert ours.feature_info == theirs.feature_info


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50"])
def test_drop_path_is_timms(name):
    with uninitialised():
        ours, theirs = build(name, drop_path=0.5), timm.create_model(name, drop_path_rate=0.5)
    assert set(differences(ours, theirs, size=32).values()) == {0.0}


@pytest.mark.parametrize(("name", "zero"), [("resnet18", False), ("resnetv2_50", True)])
def test_zero_init_last_is_timms(name, zero):
    torch.manual_seed(0)
    ours = build(name, zero_init_last=zero).state_dict()
    torch.manual_seed(0)
    theirs = timm.create_model(name, zero_init_last=zero).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_one_channel_and_few_classes_are_timms():
    with uninitialised():
        ours = build("resnet18", in_channels=1, num_classes=3)
        theirs = timm.create_model("resnet18", in_chans=1, num_classes=3)
    assert set(differences(ours, theirs, in_channels=1).values()) == {0.0}


TORCHVISION = sorted(set(list_models()) & set(torchvision.models.list_models(module=torchvision.models)))


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_and_shapes_are_torchvisions_too(name):
    with torch.device("meta"):
        ours, theirs = build(name).state_dict(), torchvision.models.get_model(name).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "densenet121"])
def test_equal_to_torchvision(name):
    with uninitialised():
        ours, theirs = build(name), torchvision.models.get_model(name)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    for training in (False, True):
        outputs = [net.train(training)(images) for net in (ours, theirs)]
        assert torch.equal(*outputs)
    outputs[0].square().sum().backward()
    outputs[1].square().sum().backward()
    gradients = dict(theirs.named_parameters())
    assert all(torch.equal(p.grad, gradients[key].grad) for key, p in ours.named_parameters())
