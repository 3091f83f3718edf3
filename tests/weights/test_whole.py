"""torchvision's detectors and segmenters loaded whole: each tensor used, named as dropped, or an error."""

import re

import pytest
import torch
from torch import nn
from torchvision.models import detection, segmentation
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform as AsTheyAre
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from finetune import create_model
from finetune.errors import FinetuneError
from finetune.network import Network, NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.weights import load_into, load_network, sources
from finetune.weights.whole import WHOLE, fit_network, recognise

LAYOUTS = {layout.head: layout for layout in WHOLE}
OLDER = (  # the names of files published before torchvision 0.12
    (r"_blocks\.(\d)\.0\.", r"_blocks.\1."),
    (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"_head\.conv\.(\d)\.0\.", lambda match: f"_head.conv.{2 * int(match[1])}."),
)


def reference(name: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    if name == "faster_rcnn":
        small = {"box_head": TwoMLPHead(256 * 49, 8), "box_predictor": FastRCNNPredictor(8, classes + 1)}
        return FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), **small)
    top = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    return RetinaNet(resnet_fpn_backbone(backbone_name="resnet18", weights=None, **top), classes)


def network_of(name: str, channels: int = 3, **options) -> Network:
    neck = {"extra": "pool"} if name == "faster_rcnn" else {"extra": "p6p7", "finest": 8}
    head = {"hidden": 8, **options} if name == "faster_rcnn" else options
    return NetworkSpec("resnet18", 2, channels, name, {}, head, "pyramid", neck).build()


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
@pytest.mark.parametrize("older", [False, True])
def test_a_detector_of_other_classes_gives_everything_but_these(name, older):
    state = reference(name, 5).state_dict()
    old = dict(state)
    if older:
        for pattern, replacement in OLDER:
            old = {re.sub(pattern, replacement, key): value for key, value in old.items()}
        assert old.keys() != state.keys()
    network = network_of(name)
    layout, prefix = recognise({f"module.{key}": value for key, value in old.items()})
    assert (layout.head, prefix) == (name, "module.")
    fitted, account, parts = fit_network(old, network, layout)
    assert parts == ["backbone", "neck", "head"]
    network.load_state_dict(fitted)
    classes = {"faster_rcnn": ("cls_score", "bbox_pred"), "retinanet": ("cls_logits",)}[name]
    of_classes = [key for key in state if key.split(".")[-2] in classes and not key.startswith("rpn")]
    assert account.dropped == of_classes
    assert len(account.random_init) == len(of_classes)
    assert len(account.used) == len(state) - len(of_classes)
    assert torch.equal(network.backbone.layer4[1].conv2.weight, state["backbone.body.layer4.1.conv2.weight"])
    first = {"faster_rcnn": "rpn.head.conv.0.0.weight", "retinanet": "head.regression_head.conv.2.0.weight"}[name]
    assert torch.equal(network.state_dict()["head." + first.replace("head.reg", "retinanet.head.reg")], state[first])


def test_a_file_is_loaded_into_a_gray_network_and_its_backbone_alone(tmp_path):
    state, path = reference("faster_rcnn", 2).state_dict(), tmp_path / "detector.pth"
    torch.save(state, path)
    network = network_of("faster_rcnn", channels=1)
    report = load_network(network, "resnet18", path)
    assert report.adapted == ["backbone.conv1.weight"]
    stem = state["backbone.body.conv1.weight"]
    torch.testing.assert_close(network.backbone.conv1.weight, stem.sum(dim=1, keepdim=True))
    assert report.preprocessing.in_channels == 1
    assert not report.dropped
    backbone = create_model("resnet18", num_classes=0)
    assert load_into(backbone, "resnet18", str(path)).prefix == "backbone.body."
    assert torch.equal(backbone.conv1.weight, stem)


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
@torch.no_grad()
def test_with_the_same_classes_the_detections_are_those_of_torchvision(name, tmp_path):
    theirs, path = reference(name, 2).eval(), tmp_path / "detector.pth"
    last = theirs.roi_heads.box_predictor if name == "faster_rcnn" else theirs.head.classification_head.cls_logits
    nn.init.normal_(last.cls_score.weight if name == "faster_rcnn" else last.weight, std=0.5)
    if name == "retinanet":
        nn.init.zeros_(last.bias)
    torch.save({"model": theirs.state_dict()}, path)
    network = network_of(name, anchor_scales=dict(LAYOUTS[name].settings)["head.anchor_scales"]).eval()
    report = load_network(network, "resnet18", path)
    assert not report.dropped
    assert not report.notes
    assert report.parts == ["backbone", "neck", "head"]
    assert report.preprocessing == Preprocessing(image_size=800)
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    theirs.transform = AsTheyAre(128, 128, [0.0] * 3, [1.0] * 3)
    for mine, expected in zip(network(images), theirs(list(images)), strict=True):
        assert len(mine.boxes) > 5
        torch.testing.assert_close(mine.boxes, expected["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(mine.scores, expected["scores"], rtol=0, atol=1e-5)
        assert torch.equal(mine.labels + network.head.first_label, expected["labels"])


@pytest.mark.parametrize("head", ["deeplabv3", "fcn"])
@torch.no_grad()
def test_a_segmenter_gives_the_logits_of_torchvision_and_other_classes_start_afresh(head, tmp_path):
    torch.manual_seed(0)
    make = {"deeplabv3": segmentation.deeplabv3_resnet50, "fcn": segmentation.fcn_resnet50}[head]
    theirs = make(weights=None, weights_backbone=None, num_classes=4, aux_loss=True).eval()
    state, path = theirs.state_dict(), tmp_path / "segmenter.pth"
    torch.save(state, path)
    network = NetworkSpec("resnet50", 4, head=head, backbone_options={"output_stride": 8}).build().eval()
    report = load_network(network, "resnet50", path)
    assert report.dropped == [key for key in state if key.startswith("aux_classifier.")]
    assert not report.random_init
    assert not report.notes
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), theirs(images)["out"], rtol=0, atol=1e-5)
    other = NetworkSpec("resnet50", 2, 1, head, {"output_stride": 16}).build()
    report = load_network(other, "resnet50", path)
    assert report.random_init == ["head.layers.4.weight", "head.layers.4.bias"]
    assert report.adapted == ["backbone.conv1.weight"]
    assert {"classifier.4.weight", "classifier.4.bias"} < set(report.dropped)
    assert report.notes == ["These weights were trained with backbone.output_stride=8; here it is 16."]
    shared = [key for key in state if key.startswith("classifier.") and not key.startswith("classifier.4.")]
    assert all(torch.equal(other.state_dict()[f"head.layers.{key[11:]}"], state[key]) for key in shared)


def test_another_head_takes_backbone_and_the_neck_that_is_the_same(tmp_path):
    state, path = reference("faster_rcnn", 2).state_dict(), tmp_path / "detector.pth"
    torch.save(state, path)
    segmenter = NetworkSpec("resnet18", 2, head="fpn", neck="pyramid").build()
    report = load_network(segmenter, "resnet18", path)
    assert report.parts == ["backbone", "neck"]
    assert report.dropped == [key for key in state if key.startswith(("rpn.", "roi_heads."))]
    assert all(name.startswith("head.") for name in report.random_init)
    assert report.notes == ["The file holds a whole Faster R-CNN: its other tensors are used with head=faster_rcnn."]
    assert torch.equal(segmenter.neck.layer_blocks[3][0].weight, state["backbone.fpn.layer_blocks.3.0.weight"])
    unet = NetworkSpec("resnet18", 2, head="unet").build()
    report = load_network(unet, "resnet18", path)
    assert report.parts == ["backbone"]
    assert torch.equal(unet.backbone.conv1.weight, state["backbone.body.conv1.weight"])
    assert {key for key in state if not key.startswith("backbone.body.")} == set(report.dropped)
    narrow = NetworkSpec("resnet18", 2, head="fpn", neck="pyramid", neck_options={"channels": 8}).build()
    assert load_network(narrow, "resnet18", path).parts == ["backbone"]


def test_heads_that_nothing_here_has_are_dropped_and_other_anchors_named(tmp_path):
    state, path = reference("faster_rcnn", 2).state_dict(), tmp_path / "mask.pth"
    further = {"roi_heads.mask_head.0.0.weight": torch.zeros(2), "roi_heads.mask_predictor.bias": torch.zeros(2)}
    torch.save({**state, **further}, path)
    report = load_network(network_of("faster_rcnn"), "resnet18", path)
    assert report.dropped == list(further)
    assert report.notes == ["These weights were trained with head.anchor_scales=[8.0]; here it is [4.0]."]


def test_a_backbone_alone_is_no_whole_network():
    backbone = create_model("resnet18", num_classes=3)
    assert recognise(backbone.state_dict()) is None
    wrapped = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    assert recognise({**wrapped, "classifier.0.weight": torch.zeros(2, 3)}) is None  # a linear layer, no FCN
    assert recognise({**wrapped, "aux_classifier.0.weight": torch.zeros(2, 3, 1, 1)}) is None


def test_a_name_of_torchvision_is_its_file(tmp_path, monkeypatch):
    state, path = reference("faster_rcnn", 2).state_dict(), tmp_path / "fasterrcnn.pth"
    torch.save(state, path)
    addresses = []
    monkeypatch.setattr("finetune.weights.hub.from_url", lambda url: addresses.append(url) or path)
    report = load_network(network_of("faster_rcnn"), "resnet18", "torchvision/fasterrcnn_resnet50_fpn")
    assert report.tag == "torchvision/fasterrcnn_resnet50_fpn"
    assert addresses[0].endswith("/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    assert all(sources.torchvision_url(name).endswith(".pth") for name in sources.WITH_HEAD)
    with pytest.raises(FinetuneError, match=r"torchvision/ssd is not known. .*torchvision/fcn_resnet50"):
        sources.resolve("resnet18", "torchvision/ssd")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (detection.fasterrcnn_resnet50_fpn_v2, r"Faster R-CNN of the second version \(_v2\), .* head=faster_rcnn"),
        (detection.retinanet_resnet50_fpn_v2, r"RetinaNet of the second version \(_v2\), .* head=retinanet"),
        (detection.fcos_resnet50_fpn, "FCOS, a head that is not here"),
    ],
)
def test_of_other_detectors_the_backbone_alone_is_used_and_it_says_so(make, sentence, tmp_path):
    with torch.device("meta"):
        state = make(weights=None, weights_backbone=None, num_classes=3).state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}
    path = tmp_path / "other.pth"
    for head in ("faster_rcnn", "fpn"):
        spec = NetworkSpec("resnet50", 2, head=head, neck="pyramid", neck_options={"extra": "pool"})
        if head == "fpn":
            spec = NetworkSpec("resnet50", 2, 1, head=head, neck="pyramid")
        torch.save({f"model.{key}": value for key, value in state.items()}, path)
        network = spec.build()
        report = load_network(network, "resnet50", path)
        assert report.parts == ["backbone"]
        assert not network.backbone.conv1.weight.any()
        assert set(report.dropped) >= {f"model.{key}" for key in state if not key.startswith("backbone.body.")}
        assert report.preprocessing.image_size == 800
        assert len(report.notes) == 1
        assert re.fullmatch(rf"The file holds a whole {sentence}: its backbone alone is used\.", report.notes[0])


def test_what_does_not_fit_shows_both_sides(tmp_path):
    network = network_of("faster_rcnn")
    state = reference("faster_rcnn", 2).state_dict()
    path = tmp_path / "other.pth"
    state["mask_head.weight"] = state.pop("rpn.head.bbox_pred.bias")
    state["backbone.body.bn1.weight"] = torch.zeros(3)
    torch.save(state, path)
    lines = r"other.pth hold a whole Faster R-CNN and do not fit backbone=resnet18 with this neck and head: not in the "
    lines += r"file: head.rpn.head.bbox_pred.bias; only in the file: mask_head.weight; of another shape: "
    lines += r"backbone.bn1.weight is \(3,\), not \(64,\)\..*save its tensors"
    with pytest.raises(FinetuneError, match=lines):
        load_network(network, "resnet18", path)
