"""Weights given as files: what images they want, and what an error says."""

import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.parity import uninitialised
from finetune.backbones import build
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from finetune.weights import load_into


def saved(tmp_path, name, **options):
    with uninitialised():
        net = build(name, **options)
    path = tmp_path / f"{name}.pth"
    torch.save({key: torch.ones_like(value) for key, value in net.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "mean", "std", "size"),
    [
        ("resnet20_cifar", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32),
        ("densenet_40_12", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 32),
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224),
        ("resnetv2_50", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224),
    ],
)
def test_a_file_of_unknown_origin_wants_what_is_usual_for_the_model(tmp_path, name, mean, std, size):
    with uninitialised():
        net = build(name)
    preprocessing = load_into(net, name, saved(tmp_path, name)).preprocessing
    assert (preprocessing.mean, preprocessing.std, preprocessing.image_size) == (mean, std, size)


@pytest.mark.parametrize("thresholds", [True, False])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_torchxrayvisions_densenets_keep_their_range(tmp_path, thresholds, in_channels):
    path = saved(tmp_path, "densenet121", in_channels=1, num_classes=18 if not thresholds else 14)
    if thresholds:
        torch.save({**torch.load(path), "op_threshs": torch.zeros(14)}, path)
    with uninitialised():
        net = build("densenet121", in_channels=in_channels, num_classes=2)
    report = load_into(net, "densenet121", path)
    assert report.adapted == (["features.conv0.weight"] if in_channels == 3 else [])
    assert report.dropped == ["classifier.weight", "classifier.bias", *(["op_threshs"] if thresholds else [])]
    preprocessing = report.preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * in_channels, (1 / 2048,) * in_channels)
    x = torch.tensor([0.0, 0.5, 1.0])  # black, middle gray, white, as torchxrayvision scales them
    assert ((x - preprocessing.mean[0]) / preprocessing.std[0]).tolist() == [-1024.0, 0.0, 1024.0]


def test_one_channel_alone_does_not_make_it_torchxrayvision(tmp_path):
    path = saved(tmp_path, "densenet121", in_channels=1, num_classes=14)
    with uninitialised():
        net = build("densenet121", in_channels=1, num_classes=0)
    assert load_into(net, "densenet121", path).preprocessing.std == pytest.approx((0.226,), abs=1e-3)


def test_a_model_file_of_this_project_brings_its_own_preprocessing(tmp_path):
    net, mine = build("resnet20_cifar", in_channels=1), Preprocessing(48, 1, (0.3,), (0.2,), fit="pad")
    tensors = {f"backbone.{key}": value for key, value in net.state_dict().items() if not key.startswith("fc.")}
    tensors["head.fc.weight"] = torch.zeros(2, 64)
    header = json.dumps({"preprocessing": mine.to_dict()})
    save_file(tensors, tmp_path / "model.safetensors", metadata={"finetune": header})
    report = load_into(
        build("resnet20_cifar", in_channels=1, num_classes=0), "resnet20_cifar", tmp_path / "model.safetensors"
    )
    assert report.preprocessing == mine
    assert (report.prefix, report.dropped) == ("backbone.", ["head.fc.weight"])


@pytest.mark.parametrize("beside", [False, True])
def test_radimagenets_children_want_their_own_range(tmp_path, beside):
    """Numbered children under `backbone.` with nothing beside them; with a projection head they are somebody else's."""
    number = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    with uninitialised():
        net = build("resnet18", num_classes=0)
    tensors = {}
    for key, value in net.state_dict().items():
        first, _, rest = key.partition(".")
        tensors[f"backbone.{number[first]}.{rest}"] = torch.ones_like(value)
    if beside:
        tensors["projection_head.0.weight"] = torch.ones(1)
    torch.save(tensors, tmp_path / "ResNet.pt")
    preprocessing = load_into(net, "resnet18", tmp_path / "ResNet.pt").preprocessing
    assert (preprocessing.mean == (0.5,) * 3) == (preprocessing.std == (0.5,) * 3) == (not beside)
    assert (preprocessing.fit, preprocessing.image_size) == ("crop" if beside else "squash", 224)


def test_other_numbers_of_channels_have_no_preprocessing_to_give(tmp_path):
    path = saved(tmp_path, "resnet20_cifar")
    assert load_into(build("resnet20_cifar", in_channels=4), "resnet20_cifar", path).preprocessing is None


def test_weights_of_another_model_are_an_error_that_names_both(tmp_path):
    path = saved(tmp_path, "resnet56_cifar")
    net = build("resnet20_cifar")
    before = net.conv1.weight.clone()
    with pytest.raises(FinetuneError) as error:
        load_into(net, "resnet20_cifar", path)
    message = str(error.value)
    assert message.startswith(f"weights={path} do not fit resnet20_cifar: only in the file: layer1.3.conv1.weight, ")
    assert message.endswith("They look like those of resnet56_cifar.")
    assert torch.equal(net.conv1.weight, before)  # nothing was half-loaded


def test_half_precision_weights_are_loaded_as_what_the_network_is(tmp_path):
    path = saved(tmp_path, "resnet20_cifar")
    halves = {key: v.half() if v.is_floating_point() else v for key, v in torch.load(path).items()}
    torch.save(halves, path)
    net = build("resnet20_cifar")
    load_into(net, "resnet20_cifar", path)
    assert net.conv1.weight.dtype == torch.float32
    assert net.conv1.weight.eq(1).all()
