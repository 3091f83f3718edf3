"""What every name offers, and what a wrong option is told."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from benchmarks.parity import uninitialised
from finetune.backbones import Backbone, build, list_models
from finetune.backbones.build import MODELS
from finetune.errors import FinetuneError

ONE_OF_EACH = ["resnet18", "resnet26d", "seresnet18", "resnetv2_50d", "legacy_seresnet18", "densenet121"]
ONE_OF_EACH += ["densenetblur121d", "resnet20_cifar", "plain20_cifar", "preact_resnet110_cifar", "densenet_40_12"]
CONF = Path(__file__).resolve().parents[2] / "conf" / "backbone"
HUGE = ("resnet1202_cifar", "preact_resnet1001_cifar")  # of the same class as small ones


@pytest.mark.parametrize("name", [name for name in list_models() if name not in HUGE])
def test_every_name_keeps_what_it_and_its_configuration_promise(name):
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load((CONF / "_base.yaml").read_text(encoding="utf-8")) | yaml.safe_load(text)
    assert config.pop("defaults") == ["_base"]
    assert config.pop("weights") == "default"
    assert f"python -m finetune backbone={name}" in text
    millions = float(re.search(r"([\d.]+) M parameters", text)[1])
    with uninitialised():
        net = build(**config).eval()
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.04)

    assert set(net.parts()) == {"stem", *(f"stage{n}" for n in range(1, net.num_stages + 1))}
    tensors = [t for modules in net.parts().values() for m in modules for t in [*m.parameters(), *m.buffers()]]
    tensors += net.get_classifier().parameters()
    assert len({id(t) for t in tensors}) == len(tensors)
    assert {id(t) for t in tensors} == {id(t) for t in [*net.parameters(), *net.buffers()]}

    with torch.inference_mode():
        maps = net.forward_stages(torch.zeros(1, 3, 32, 32))
    infos = net.feature_info[-net.num_stages :]
    assert [m.shape for m in maps] == [(1, i["num_chs"], 32 // i["reduction"], 32 // i["reduction"]) for i in infos]
    cifar = name.endswith("_cifar") or name.startswith("densenet_")
    assert [i["reduction"] for i in infos] == ([1, 2, 4] if cifar else [4, 8, 16, 32])
    assert len(net.feature_info) == (3 if cifar else 5)
    assert all(net.get_submodule(info["module"]) for info in net.feature_info)
    assert net.num_features == infos[-1]["num_chs"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_pieces_make_up_the_whole(name):
    net = build(name, num_classes=5).double().eval()  # a deep net of random weights gives sums that cancel
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        features = net.forward_features(images)
        assert torch.equal(features, net.forward_tail(net.forward_stages(images)[-1]))
        assert torch.equal(net(images), net.forward_head(features))
        pooled = net.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, net.num_features)
        weight, bias = net.get_classifier().weight, net.get_classifier().bias
        torch.testing.assert_close(net(images), pooled @ weight.flatten(1).T + bias)

        net.reset_classifier(3)
        assert net(images).shape == (2, 3)
        assert net.num_classes == 3
        assert not net.get_classifier().training
        net.reset_classifier(0)
        assert torch.equal(net(images), pooled)
        assert net.get_classifier().state_dict() == {}


@pytest.mark.parametrize("name", ["resnet18", "densenet_40_12"])
def test_no_classes_is_pooled_features_from_the_start(name):
    net = build(name, num_classes=0, in_channels=1).eval()
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, net.num_features)
    assert not any(key.startswith(net.classifier_name) for key in net.state_dict())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_norms_are_plain(name):
    """A norm that held its own ReLU would lose it, without a word, when norms are made synchronised."""
    with uninitialised():
        net = build(name)
    assert {type(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {nn.BatchNorm2d}


def test_a_reset_classifier_stays_where_the_network_is():
    net = build("resnet20_cifar").double()
    net.reset_classifier(4)
    assert net.get_classifier().weight.dtype == torch.float64
    assert net.get_classifier().training


@pytest.mark.parametrize(("name", "stride"), [("densenet121", 32), ("densenet121", 16), ("densenet121", 8)])
def test_a_densenets_later_transitions_keep_the_size_and_the_layers_after_them_dilate(name, stride):
    with uninitialised():
        net = build(name, output_stride=stride).eval()
    with torch.inference_mode():
        maps = net.forward_stages(torch.zeros(1, 3, 64, 64))
    assert [64 // m.shape[-1] for m in maps] == [min(s, stride) for s in (4, 8, 16, 32)]
    assert [i["reduction"] for i in net.feature_info] == [2, *(min(s, stride) for s in (4, 8, 16, 32))]
    dilations = [net.features[f"denseblock{n}"]["denselayer1"].conv2.dilation[0] for n in (1, 2, 3, 4)]
    assert dilations == {32: [1, 1, 1, 1], 16: [1, 1, 1, 2], 8: [1, 1, 2, 4]}[stride]


def test_output_stride_32_changes_nothing():
    torch.manual_seed(0)
    plain = build("densenet121").eval()
    torch.manual_seed(0)
    same = build("densenet121", output_stride=32).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(plain(images), same(images))


def test_legacy_nets_dilate_as_the_others_do():
    with uninitialised():
        net = build("legacy_seresnet50", output_stride=8).eval()
    with torch.inference_mode():
        assert [m.shape[-1] for m in net.forward_stages(torch.zeros(1, 3, 64, 64))] == [16, 8, 8, 8]
    assert net.layer3[0].conv1.stride == (1, 1)
    assert [net.layer4[i].conv2.dilation for i in (0, 1)] == [(2, 2), (4, 4)]


WRONG = [
    ("resnet49", {}, r"backbone=resnet49 .* Did you mean resnet"),
    ("resnet18", {"output_stride": 4}, r"output_stride=4 .* 32, 16, 8"),
    ("resnet18", {"output_stride": "16"}, r"output_stride=16 .* 32, 16, 8"),
    (
        "resnet20_cifar",
        {"output_stride": 16},
        r"resnet20_cifar has no option output_stride=16\. It takes memory, drop_path",
    ),
    ("densenet121", {"drop_path": 0.1}, r"densenet121 has no option drop_path=0\.1\. It takes memory, output_stride"),
    ("densenet121", {"zero_init_last": True}, r"densenet121 has no option zero_init_last=True"),
    ("legacy_seresnet18", {"zero_init_last": True}, r"no option zero_init_last=True"),
    ("plain20_cifar", {"shortcut": "B"}, r"plain20_cifar has no option shortcut=B"),
    ("resnet18", {"shortcut": "B"}, r"no option shortcut=B"),
    ("resnet20_cifar", {"shortcut": "C"}, r"shortcut=C .* A, B"),
    ("resnet18", {"drop_path": 1.0}, r"drop_path=1\.0"),
    ("resnet18", {"drop_path": "often"}, r"drop_path=often"),
    ("resnet18", {"zero_init_last": "no"}, r"zero_init_last=no .* true, false, null"),
    ("resnet18", {"memory": "none"}, r"memory=none .* standard, lean, minimal"),
    ("resnet18", {"in_channels": 0}, r"in_channels=0"),
    ("resnet18", {"num_classes": -1}, r"num_classes=-1"),
    ("resnet18", {"num_classes": 2.5}, r"num_classes=2\.5"),
    ("resnet18", {"dropout": 0.5}, r"no option dropout=0\.5"),
    ("resnet18", {"dropout": 0.0}, r"no option dropout=0\.0"),
    (None, {}, r"backbone=None is not known"),
    (["resnet18"], {}, r"backbone=\['resnet18'\] is not known"),
    # timm's words
    ("resnet18", {"pretrained": True}, r"no option pretrained=True.* weights='default' .* weights='a1_in1k'"),
    ("resnet18", {"pretrained": False}, r"no option pretrained=False.* weights='default'"),
    ("resnet18", {"in_chans": 1}, r"no option in_chans=1.* in_channels=N"),
    ("resnet18", {"features_only": True}, r"features_only=True.* net\.forward_stages\(images\)"),
    ("resnet18", {"out_indices": (1, 2)}, r"out_indices=\(1, 2\).* net\.forward_stages"),
    ("resnet18", {"drop_path_rate": 0.1}, r"drop_path_rate=0\.1.* drop_path=RATE"),
    ("resnet18", {"drop_rate": 0.1}, r"drop_rate=0\.1.* head\.dropout=RATE"),
    ("resnet18", {"global_pool": ""}, r"global_pool=''.* net\.forward_features\(images\)"),
    ("resnet18", {"checkpoint_path": "a.pth"}, r"checkpoint_path='a\.pth'.* weights=PATH"),
    ("resnet50.a1_in1k", {}, r"create_model\('resnet50', weights='a1_in1k'\).* backbone\.weights=a1_in1k"),
    ("hf_hub:timm/resnet50.a1_in1k", {}, r"create_model\('resnet50', weights='a1_in1k'\)"),
    ("timm/densenet121", {}, r"create_model\('densenet121', weights='default'\)"),
    ("resnet49.a1_in1k", {}, r"backbone=resnet49\.a1_in1k is not known"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_an_error_for_a_wrong_option_has_its_name_its_value_and_the_choices(name, options, message):
    with pytest.raises(FinetuneError, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_options_left_off_are_taken_by_every_name(name):
    with uninitialised():
        net = build(name, output_stride=None, drop_path=0.0, zero_init_last=None, memory="standard")
    assert isinstance(net, Backbone)
    assert net.memory == "standard"


def test_names_are_sorted_and_complete():
    names = list_models()
    assert names == sorted(MODELS)
    assert {"resnet50", "resnext50_32x4d", "wide_resnet50_2", "seresnet50", "densenet264", "resnetv2_152d"} <= set(
        names
    )
    assert len(names) == 66


def test_names_are_found_by_a_pattern():
    assert list_models("resnet15*") == ["resnet152", "resnet152d"]
    assert list_models("*_cifar") == [name for name in list_models() if name.endswith("_cifar")]
    assert list_models("vit*") == []


def test_there_is_one_configuration_per_name():
    assert sorted(file.stem for file in CONF.glob("[!_]*.yaml")) == list_models()
