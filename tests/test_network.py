"""Backbone, neck and head as one network: its parts, and any stretch of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from finetune.backbones.folding import fold_batch_norm
from finetune.errors import FinetuneError
from finetune.heads import ClassifyHead, FeatureInfo
from finetune.inference import with_distances
from finetune.network import Network, NetworkSpec, feature_info
from tests import parts
from tests.backbones import lean_cases

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
JOINTS = [(neck, head) for neck in (None, parts.Narrow, parts.TopDown) for head in (ClassifyHead, parts.EveryMap)]


def joined(case: str, neck=None, head=ClassifyHead, memory: str = "standard") -> Network:
    """A small network of that family without classifier, with this neck and head."""
    backbone = lean_cases.make(case, memory)
    backbone.reset_classifier(0)
    infos = feature_info(backbone)
    neck = neck and neck(infos if neck is parts.TopDown else infos[-1:])
    read = infos if neck is None else neck.feature_info
    return Network(backbone, head(read if head is parts.EveryMap else read[-1].num_chs, 3), neck)


def copied(x):
    return [m.clone() for m in x] if isinstance(x, list) else x.clone()


def same(a, b) -> bool:
    a, b = ([x] if isinstance(x, torch.Tensor) else x for x in (a, b))
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_every_cut(network: Network, whole: torch.Tensor, images: torch.Tensor) -> None:
    """Each pair of cuts gives the whole, and the backbone goes on from a cut without changing what lies there."""
    names = list(network.parts())
    for number, first in enumerate(names):
        at_first = network.run(images, stop=first)
        assert same(network.run(copied(at_first), start=first), whole), first
        if first not in network.new_parts:
            before = copied(at_first)
            network.run(at_first, start=first, stop=network.new_parts[0])
            assert same(at_first, before), first
        for second in names[number:]:
            between = network.run(copied(at_first), start=first, stop=second)
            assert same(network.run(between, start=second), whole), (first, second)


@pytest.mark.parametrize("case", lean_cases.NETS)
@torch.no_grad()
def test_stretches_of_every_family_join_to_the_whole(case):
    images = IMAGES
    network = joined(case).eval()
    whole = network.head(network.backbone.forward_features(images))
    assert torch.equal(network(images), whole)
    assert list(network.parts())[-2:] == [f"stage{network.backbone.num_stages}", "head"]
    assert network.new_parts == ("head",)
    check_every_cut(network, whole, images)
    lean = joined(case, memory="lean").eval()
    check_every_cut(lean, lean(images), images)
    folded = fold_batch_norm(network)
    check_every_cut(folded, folded(images), images)


@pytest.mark.parametrize("case", ["basic", "preact", "dense", "cifar_a"])
@pytest.mark.parametrize(("neck", "head"), JOINTS)
@torch.no_grad()
def test_stretches_join_whatever_neck_and_head_read(case, neck, head):
    images = IMAGES
    network = joined(case, neck, head).eval()
    *stages, last = network.backbone.forward_stages(images)
    maps = [*stages, network.backbone.forward_tail(last)]  # worked out without `run`
    made = maps if neck is None else network.neck(maps if neck is parts.TopDown else maps[-1])
    made = [made] if isinstance(made, torch.Tensor) else made
    whole = network.head(made if head is parts.EveryMap else made[-1])
    assert torch.equal(network(images), whole)
    check_every_cut(network, whole, images)
    assert network.new_parts == (("head",) if neck is None else ("neck", "head"))
    assert list(network.parts()) == [*network.backbone.parts(), *network.new_parts]
    assert torch.equal(network.features(images), network.head.features(made if head is parts.EveryMap else made[-1]))
    assert torch.equal(with_distances(network, None)(images)[0], whole)  # what a saved model answers
    folded = fold_batch_norm(network)
    exact = network.double()(images.double())
    torch.testing.assert_close(fold_batch_norm(network)(images.double()), exact)
    check_every_cut(folded, folded(images), images)


def test_a_stretch_in_training_has_the_gradients_of_the_whole():
    images = IMAGES
    grads = []
    for cut in (None, "stage2", "neck", "head"):
        network = joined("preact", parts.TopDown, parts.EveryMap).train()
        logits = network(images) if cut is None else network.run(network.run(images, stop=cut), start=cut)
        logits.square().sum().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    assert all(gradient is not None for gradient in grads[0])  # the tail's norm too: the last map is the one after it
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))


def test_a_network_with_a_neck_is_exported_and_compiled():
    network, images = joined("basic", parts.TopDown).eval(), IMAGES
    with torch.no_grad():
        exported = torch.export.export(network, (images,)).module()
        assert torch.equal(exported(images), network(images))
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        assert torch.equal(compiled(images), network(images))
        plain = joined("dense").eval()
        assert torch.equal(torch.compile(plain, backend="eager", fullgraph=True)(images), plain(images))


def test_a_stretch_that_is_none_is_an_error():
    network = joined("basic")
    images = torch.randn(1, 3, 32, 32)
    assert network.run(images, stop="stem") is images
    with pytest.raises(FinetuneError, match=r"stop=neck is not known.*Choose from stem, stage1.*head"):
        network.run(images, stop="neck")
    with pytest.raises(FinetuneError, match=r"stop=stage1 comes before start=stage3: the parts run in the order"):
        network.run(images, start="stage3", stop="stage1")


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "densenet121", "resnet20_cifar", "densenet_40_12"])
def test_a_neck_and_head_are_made_from_the_maps_that_they_read(name, own_parts):
    with torch.device("meta"):
        network = NetworkSpec(name, 3, head="every_map", neck="top_down", neck_options={"width": 4}).build()
        images = torch.empty(1, 3, 64, 64)
    maps = network.run(images, stop="neck")
    infos = feature_info(network.backbone)
    assert [m.shape[1:] for m in maps] == [(i.num_chs, 64 // i.reduction, 64 // i.reduction) for i in infos]
    assert network(images).shape == (1, 3)
    assert network.head.fc.in_features == 4 * len(infos)
    with torch.device("meta"):
        classify = NetworkSpec(name, 3, neck="narrow").build()
    assert (classify.neck.feature_info, classify.head.fc.in_features) == ([FeatureInfo(8, infos[-1].reduction)], 8)


def test_a_spec_without_a_neck_says_what_it_said(own_parts):
    plain = NetworkSpec("resnet20_cifar", 2)
    assert plain.to_dict() == {
        "backbone": "resnet20_cifar", "num_classes": 2, "in_channels": 3, "head": "classify",
        "backbone_options": {}, "head_options": {},
    }  # fmt: skip
    assert not [name for name in plain.build().state_dict() if "neck" in name]
    with_neck = replace(plain, neck="narrow", neck_options={"width": 4})
    assert NetworkSpec(**with_neck.to_dict()) == with_neck
    with pytest.raises(FinetuneError, match=r"neck=nrrow is not known. Did you mean narrow"):
        replace(plain, neck="nrrow").build()
    with pytest.raises(FinetuneError, match=r"neck_options={'width': 4} are given without a neck"):
        replace(plain, neck_options={"width": 4}).build()


def test_an_unknown_neck_is_an_error_that_names_the_known():
    with pytest.raises(FinetuneError, match=r"neck=fpn is not known. Choose from pyramid"):
        NetworkSpec("resnet20_cifar", 2, neck="fpn").build()


def test_a_part_that_reads_something_else_is_an_error():
    class Wrong(nn.Identity):
        takes = "all"

    with pytest.raises(FinetuneError, match=r"Wrong.takes=all is not known. Choose from map, maps"):
        Network(lean_cases.make("basic"), Wrong())(torch.randn(1, 3, 32, 32))
