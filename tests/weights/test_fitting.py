"""Every key is used, named as dropped, or an error that shows both sides."""

import re

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.parity import randomise, uninitialised
from finetune.backbones import build
from finetune.errors import FinetuneError
from finetune.weights import fit, read_tensors
from finetune.weights.fitting import depths, fold_channels, looks_like
from finetune.weights.layouts import LAYOUTS

NET = build("resnet20_cifar")
STATE = NET.state_dict()
NAMES = list(STATE)
WORDS = st.sampled_from(["module", "model", "backbone", "network.backbone", "encoder", "net.0", "a.b.c"])


def account_for(tensors, report):
    """No key of the file goes unmentioned, and none of the network."""
    assert len(report.used) + len(report.dropped) == len(tensors)
    assert set(report.dropped) <= set(tensors)
    assert sorted(report.used + report.random_init) == sorted(NAMES)
    assert set(report.adapted) <= set(report.used)


@settings(deadline=None, max_examples=25)
@given(prefix=st.one_of(st.just(""), WORDS.map(lambda w: f"{w}.")), order=st.randoms(), counters=st.booleans())
def test_any_prefix_and_order_fits(prefix, order, counters):
    names = [name for name in NAMES if counters or not name.endswith("num_batches_tracked")]
    order.shuffle(names)
    tensors = {prefix + name: STATE[name] for name in names}
    state, report = fit(tensors, NET)
    assert report.prefix == prefix
    assert all(torch.equal(state[name], STATE[name]) for name in NAMES)
    assert report.dropped == report.adapted == []
    assert all(name.endswith("num_batches_tracked") for name in report.random_init)
    account_for(tensors, report)


SERIOUS = [name for name in NAMES if not name.endswith("num_batches_tracked") and not name.startswith("fc.")]


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(SERIOUS), what=st.sampled_from(["missing", "renamed", "shape", "extra", "doubled"]))
def test_whatever_is_wrong_with_one_tensor_is_an_error_that_names_it(name, what):
    tensors = dict(STATE)
    if what in ("missing", "renamed"):
        value = tensors.pop(name)
    if what == "renamed":
        tensors["strange.weight"] = value
    if what == "extra":
        tensors["strange.weight"] = torch.ones(1)
    if what == "doubled":  # a second file's worth under timm's name of the same tensor
        tensors[f"linear.{name}"] = STATE[name]
    if what == "shape":
        tensors[name] = torch.zeros(*STATE[name].shape, 2)
    with pytest.raises(FinetuneError) as error:
        fit(tensors, NET)
    message = str(error.value)
    assert ("not in the file: " in message) == (what in ("missing", "renamed"))
    assert ("only in the file: " in message) == (what in ("renamed", "extra", "doubled"))
    assert ("of another shape: " in message) == (what == "shape")
    assert (name if what in ("missing", "shape") else "strange" if what != "doubled" else "linear.") in message


def test_what_lies_beside_the_prefix_is_named_as_dropped():
    tensors = {f"network.backbone.{name}": value for name, value in STATE.items()} | {
        "network.head.bias": torch.ones(2)
    }
    _, report = fit(tensors, NET)
    assert (report.prefix, report.dropped) == ("network.backbone.", ["network.head.bias"])
    account_for(tensors, report)


def test_of_two_copies_one_is_taken_and_the_other_named():
    tensors = {f"{p}.{name}": v + i for i, p in enumerate(["ema", "model"]) for name, v in STATE.items()}
    state, report = fit(tensors, NET)
    assert report.prefix == "ema."
    assert torch.equal(state["conv1.weight"], STATE["conv1.weight"])
    assert sorted(report.dropped) == sorted(f"model.{name}" for name in NAMES)


def test_a_classifier_of_another_size_is_dropped_and_stays_as_it_was():
    net = build("resnet20_cifar", num_classes=3)
    state, report = fit({f"module.{name}": value for name, value in STATE.items()}, net)
    assert report.dropped == ["module.fc.weight", "module.fc.bias"]
    assert report.random_init == ["fc.weight", "fc.bias"]
    assert torch.equal(state["fc.weight"], net.fc.weight)

    _, report = fit(STATE, build("resnet20_cifar", num_classes=0))
    assert report.dropped == ["fc.weight", "fc.bias"]
    headless = {name: value for name, value in STATE.items() if not name.startswith("fc.")}
    _, report = fit(headless, NET)
    assert report.random_init == ["fc.weight", "fc.bias"]


def test_profilers_counts_are_dropped_by_name():
    tensors = {**STATE, "total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)}
    _, report = fit(tensors, NET)
    assert report.dropped == ["total_ops", "layer1.0.total_params"]


def test_names_of_the_published_cifar_resnets():
    b = build("resnet20_cifar", shortcut="B")
    theirs = {
        "module." + name.replace("fc.", "linear.").replace(".downsample.", ".shortcut."): value
        for name, value in b.state_dict().items()
    }
    state, report = fit(theirs, b)
    assert (report.prefix, report.layout) == ("module.", "resnet_cifar")
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in state.items())


def fresh_backbone(name):
    """A net without classifier, as a fit asks for, with nothing in common with a file's values."""
    with uninitialised():
        net = build(name, num_classes=0)
    return net


LAYOUT_FILES = {
    "resnet_cifar": ("resnet20_cifar", {r"^fc\.": "linear.", r"\.downsample\.": ".shortcut."}),
    "torchvision": ("densenet121", {r"(denselayer\d+\.(?:norm|conv))([12])\.": r"\1.\2."}),
    "densenet_cifar": (
        "densenet_40_12",
        {
            r"^features\.conv0\.": "conv1.",
            r"^features\.denseblock(\d)\.denselayer(\d+)\.": lambda m: f"block{m[1]}.layer.{int(m[2]) - 1}.",
            r"\.norm(\d)\.": r".bn\1.",
            r"^features\.transition(\d)\.norm\.": r"trans\1.bn1.",
            r"^features\.transition(\d)\.conv\.": r"trans\1.conv1.",
            r"^features\.bn5\.": "bn1.",
            r"^classifier\.": "fc.",
        },
    ),
    "resnet_children": (
        "resnet18",
        {r"^conv1\.": "0.", r"^bn1\.": "1.", r"^layer(\d)\.": lambda m: f"{int(m[1]) + 3}.", r"^fc\.": "9."},
    ),
    "densenet_children": ("densenet121", {r"^features\.": "0.", r"^classifier\.": "1."}),
    "timm": ("resnet18", {}),
}


def test_every_layout_has_a_file_in_these_tests():
    assert set(LAYOUT_FILES) == set(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUT_FILES)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_of_every_layout_the_classifier_is_dropped_by_name_where_only_the_backbone_is_wanted(layout, prefix):
    name, pairs = LAYOUT_FILES[layout]
    with uninitialised():
        whole = build(name)
    randomise(whole)
    theirs = {}
    for key, value in whole.state_dict().items():
        for pattern, replacement in pairs.items():
            key = re.sub(pattern, replacement, key)
        theirs[prefix + key] = value
    net = fresh_backbone(name)
    state, report = fit(theirs, net)
    assert (report.prefix, report.layout, report.random_init) == (prefix, layout, [])
    assert [key.removeprefix(prefix).partition(".")[2] for key in report.dropped] == ["weight", "bias"]
    assert len(report.used) + 2 == len(theirs)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in state.items())


def test_the_published_cifar_resnet_starts_a_backbone_without_classifier(shared_data):
    tensors = read_tensors(shared_data / "weights" / "resnet20-12fca82f.th")
    state, report = fit(tensors, fresh_backbone("resnet20_cifar"))
    assert (report.prefix, report.layout) == ("module.", "resnet_cifar")
    assert report.dropped == ["module.linear.weight", "module.linear.bias"]
    assert torch.equal(state["layer3.2.bn2.bias"], tensors["module.layer3.2.bn2.bias"])


@pytest.mark.parametrize(("theirs", "name"), [("resnet50", "resnet50"), ("densenet121", "densenet121")])
def test_numbered_children_of_torchvisions_networks_give_their_answers(theirs, name):
    """As RadImageNet's notebook wraps and saves them: `self.backbone = nn.Sequential(*list(net.children())[:9])`."""
    with uninitialised():
        whole, ours = getattr(torchvision.models, theirs)(), build(name, num_classes=0)
    randomise(whole)
    holder = torch.nn.Module()
    holder.backbone = torch.nn.Sequential(*list(whole.children())[:9])
    tensors = holder.state_dict()
    assert {"resnet50": "backbone.4.0.conv1.weight", "densenet121": "backbone.0.conv0.weight"}[name] in tensors
    state, report = fit(tensors, ours)
    assert report.prefix == "backbone."
    assert report.dropped == [key for key in tensors if key.startswith("backbone.1.") and name == "densenet121"]
    ours.load_state_dict(state)
    images = torch.randn(1, 3, 32, 32)
    whole.eval(), ours.eval()
    with torch.inference_mode():
        expected = whole.features(images).relu() if name == "densenet121" else holder.backbone[:8](images)
        assert torch.equal(ours.forward_features(images), expected)


@pytest.mark.parametrize(
    ("prefix", "children"),
    [
        ("", False),  # part=model, what exported_models/exported_last.pt holds
        ("_model.", False),  # part=wrapped_model of timm
        ("_features.", False),  # the same of torchvision
        ("model_wrapper._model.", False),  # part=embedding_model
        ("model_wrapper._features.", False),
        ("model_wrapper._features.", True),  # children of a Sequential
    ],
)
def test_exports_of_lightlytrain_give_their_backbone(prefix, children):
    with uninitialised():
        whole = torchvision.models.resnet18()
    randomise(whole)
    body = torch.nn.Sequential(*list(whole.children())[:-2]) if children else whole
    tensors = {
        prefix + key: value for key, value in body.state_dict().items() if "features" not in prefix or key[:3] != "fc."
    }
    classifier = [key for key in tensors if key.startswith(f"{prefix}fc.")]
    if prefix.startswith("model_wrapper."):
        tensors |= {"embed_head.weight": torch.zeros(8, 512, 1, 1), "embed_head.bias": torch.zeros(8)}
    state, report = fit(tensors, fresh_backbone("resnet18"))
    assert (report.prefix, report.random_init) == (prefix, [])
    assert report.dropped == [*classifier, *(key for key in tensors if key.startswith("embed_head."))]
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in state.items())
    assert looks_like(tensors) == "resnet18"


def test_numbered_children_are_recognised_in_an_error():
    with torch.device("meta"):
        state = build("resnet34", num_classes=0).state_dict()
    number = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    numbered = {key.replace(word, str(number[word]), 1): v for key, v in state.items() for word in [key.split(".")[0]]}
    assert looks_like({f"backbone.{key}": value for key, value in numbered.items()}) == "resnet34"


def test_names_of_the_published_cifar_densenets(shared_data):
    net = build("densenet_bc_100_12", num_classes=4)
    tensors = read_tensors(shared_data / "weights" / "densenet_bc_100_12_cifar100.pth.tar")
    state, report = fit(tensors, net)
    assert report.layout == "densenet_cifar"
    assert (report.dropped, report.random_init) == (["fc.weight", "fc.bias"], ["classifier.weight", "classifier.bias"])
    assert torch.equal(state["features.denseblock2.denselayer16.norm2.bias"], tensors["block2.layer.15.bn2.bias"])
    assert torch.equal(state["features.transition1.conv.weight"], tensors["trans1.conv1.weight"])


def test_torchvisions_published_densenets_have_dots():
    with uninitialised():
        theirs, ours = torchvision.models.densenet121(), build("densenet121")
    randomise(theirs)
    published = {
        name.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1").replace("conv2", "conv.2")
        if "denselayer" in name
        else name: value
        for name, value in theirs.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    state, report = fit(published, ours)
    ours.load_state_dict(state)
    images = torch.randn(1, 3, 32, 32)
    assert report.layout == "torchvision"
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_the_first_convolution_is_folded_as_timm_does(tmp_path, channels):
    three = timm.create_model("resnet18", num_classes=2)
    torch.save(three.state_dict(), tmp_path / "three.pth")
    cfg = {"file": str(tmp_path / "three.pth"), "num_classes": 2}
    theirs = timm.create_model(
        "resnet18", pretrained=True, pretrained_cfg_overlay=cfg, num_classes=2, in_chans=channels
    )
    state, report = fit(three.state_dict(), build("resnet18", in_channels=channels, num_classes=2))
    assert report.adapted == ["conv1.weight"]
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())


def test_folding_keeps_what_a_gray_image_gives():
    weight, gray = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 5, 5)
    colour = torch.nn.functional.conv2d(gray.repeat(1, 3, 1, 1), weight)
    torch.testing.assert_close(torch.nn.functional.conv2d(gray, fold_channels(weight, 1)), colour)
    back = fold_channels(fold_channels(weight, 1), 3)  # one channel to three: the answer to gray stays
    torch.testing.assert_close(torch.nn.functional.conv2d(gray.repeat(1, 3, 1, 1), back), colour)
    assert fold_channels(weight.half(), 1).dtype == torch.float16


def test_depths_are_read_from_any_layout():
    with torch.device("meta"):
        assert depths(build("resnet50").state_dict()) == (3, 4, 6, 3)
        assert depths(build("densenet121").state_dict()) == (6, 12, 24, 16)
        assert depths(build("resnetv2_50").state_dict()) == (3, 4, 6, 3)
    assert depths(f"module.{name}" for name in NAMES) == (3, 3, 3)
    assert depths([f"block{b}.layer.{i}.bn1.weight" for b in (1, 2, 3) for i in range(16)]) == (16, 16, 16)


@pytest.mark.parametrize("name", ["resnet34", "legacy_seresnet18", "densenet169", "resnet20_cifar", "resnetv2_101"])
def test_a_model_is_known_by_its_tensors(name):
    with torch.device("meta"):
        state = build(name, num_classes=3, in_channels=1).state_dict()
    assert looks_like({f"module.{key}": value for key, value in state.items()}) == name


def test_tensors_of_no_model_look_like_none():
    assert looks_like({"weight": torch.zeros(2)}) is None
