"""`create_model` with a neck: the maps of torchvision's BackboneWithFPN, and the programs of EXTENDING.md."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import finetune
from finetune.errors import FinetuneError
from finetune.heads import FeatureInfo
from finetune.network import MapsNetwork
from tests import parts
from tests.backbones.lean_cases import saved_bytes

PAGE = (Path(__file__).resolve().parents[2] / "EXTENDING.md").read_text(encoding="utf-8")


def program(name: str) -> dict[str, object]:
    """The names that the program of EXTENDING.md has at its end."""
    (code,) = re.findall(rf"```python\n# {name}\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, name, "exec"), names)
    return names


def of_torchvision(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a BackboneWithFPN under the names of a MapsNetwork."""
    return {re.sub(r"^body\.", "backbone.", re.sub(r"^fpn\.", "neck.", name)): x for name, x in state.items()}


def test_maps_are_those_of_torchvision():
    torch.manual_seed(0)
    theirs = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d)
    ours = finetune.create_model("resnet18", neck="pyramid", neck_options={"extra": "pool"})
    ours.load_state_dict(of_torchvision(theirs.state_dict()))
    images = torch.randn(2, 3, 70, 64)
    with torch.no_grad():
        maps, wanted = ours.eval()(images), theirs.eval()(images)
    assert isinstance(maps, OrderedDict)
    assert list(maps) == list(wanted) == ["0", "1", "2", "3", "pool"]
    for name, x in maps.items():
        torch.testing.assert_close(x, wanted[name], rtol=0, atol=1e-6)
    assert ours.out_channels == theirs.out_channels == 256
    assert [info.reduction for info in ours.feature_info] == [4, 8, 16, 32, 64]
    assert ours.new_parts == ("neck", "head")
    images = images.contiguous(memory_format=torch.channels_last)
    lean = finetune.create_model("resnet18", neck="pyramid", memory="lean")
    assert saved_bytes(lean.train(), images) < 0.7 * saved_bytes(theirs.train(), images)


def test_it_is_the_backbone_of_torchvisions_detectors():
    names = program("detector.py")
    images = [torch.rand(3, 60, 80), torch.rand(3, 64, 64)]
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    for name in ("detector", "one_stage"):
        detector = names[name]
        detector.transform.min_size, detector.transform.max_size = (64,), 96
        losses = detector.train()(images, [target, target])
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in detector.backbone.backbone.parts()["stem"][0].parameters()), name
        with torch.no_grad():
            found = detector.eval()(images)
        assert [set(f) for f in found] == [{"boxes", "labels", "scores"}] * 2


def test_a_backbone_alone_serves_a_decoder():
    names = program("decoder.py")
    assert names["logits"].shape == (1, 2, 64, 64)
    assert names["channels"] == [256, 512, 1024, 1024]


def test_weights_go_to_the_backbone(tmp_path):
    plain = finetune.create_model("resnet20_cifar", num_classes=7)
    path = tmp_path / "weights.pth"
    torch.save(plain.state_dict(), path)
    made = finetune.create_model("resnet20_cifar", neck="pyramid", neck_options={"channels": 4}, weights=str(path))
    for name, value in made.backbone.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    assert [x.shape for x in made(torch.randn(2, 3, 32, 32)).values()] == [(2, 4, n, n) for n in (32, 16, 8)]


def test_a_neck_of_your_own_names_its_maps_by_number(own_parts):
    made = finetune.create_model("resnet20_cifar", neck="top_down", neck_options={"width": 5})
    assert list(made(torch.randn(1, 3, 32, 32))) == ["0", "1", "2"]
    assert made.out_channels == 5
    last = finetune.create_model("resnet20_cifar", neck="narrow")
    assert {name: x.shape for name, x in last.eval()(torch.randn(1, 3, 32, 32)).items()} == {"0": (1, 8, 8, 8)}
    unequal = parts.TopDown([FeatureInfo(16, 1), FeatureInfo(32, 2), FeatureInfo(64, 4)])
    unequal.feature_info[0] = FeatureInfo(9, 1)
    assert MapsNetwork(made.backbone, unequal).out_channels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neck": "fpn"}, "neck=fpn is not known. Choose from pyramid"),
        ({"neck": "pyramid", "num_classes": 5}, "num_classes=5 does not go with neck=pyramid, which gives maps"),
        ({"neck_options": {"channels": 4}}, "neck_options={'channels': 4} are given without a neck"),
        ({"neck": "pyramid", "neck_options": {"width": 4}}, "neck=pyramid cannot be built with the options"),
        ({"neck": "pyramid", "neck_options": {"channels": 0}}, "neck.channels=0 must be a whole number"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        finetune.create_model("resnet20_cifar", **options)
    assert len(str(caught.value).splitlines()) == 1
