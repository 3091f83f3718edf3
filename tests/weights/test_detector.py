"""torchvision's detectors loaded whole: every tensor used, named as dropped, or an error; older names too."""

import re

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from finetune import create_model
from finetune.errors import FinetuneError
from finetune.network import Network, NetworkSpec
from finetune.weights import load_detector, load_into
from finetune.weights.detector import fit_detector

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


def network_of(name: str, channels: int = 3) -> Network:
    neck = {"extra": "pool"} if name == "faster_rcnn" else {"extra": "p6p7", "finest": 8}
    head = {"hidden": 8} if name == "faster_rcnn" else {}
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
    fitted, account = fit_detector(old, network)
    network.load_state_dict(fitted)
    classes = {"faster_rcnn": ("cls_score", "bbox_pred"), "retinanet": ("cls_logits",)}[name]
    of_classes = [key for key in state if key.split(".")[-2] in classes and not key.startswith("rpn")]
    assert account.dropped == of_classes
    fresh = [key for key in account.random_init if not key.endswith("num_batches_tracked")]  # frozen norms have none
    assert len(fresh) == len(of_classes)
    assert len(account.used) == len(state) - len(of_classes)
    assert torch.equal(network.backbone.layer4[1].conv2.weight, state["backbone.body.layer4.1.conv2.weight"])
    first = {"faster_rcnn": "rpn.head.conv.0.0.weight", "retinanet": "head.regression_head.conv.2.0.weight"}[name]
    assert torch.equal(network.state_dict()["head." + first.replace("head.reg", "retinanet.head.reg")], state[first])


def test_a_file_is_loaded_into_a_gray_network_and_its_backbone_alone(tmp_path):
    state, path = reference("faster_rcnn", 2).state_dict(), tmp_path / "detector.pth"
    torch.save(state, path)
    network = network_of("faster_rcnn", channels=1)
    report = load_detector(network, path)
    assert report.adapted == ["backbone.conv1.weight"]
    stem = state["backbone.body.conv1.weight"]
    torch.testing.assert_close(network.backbone.conv1.weight, stem.sum(dim=1, keepdim=True))
    assert report.preprocessing.in_channels == 1
    assert not report.dropped
    backbone = create_model("resnet18", num_classes=0)
    assert load_into(backbone, "resnet18", str(path)).prefix == "backbone.body."
    assert torch.equal(backbone.conv1.weight, stem)


def test_what_does_not_fit_shows_both_sides(tmp_path):
    network = network_of("faster_rcnn")
    state = reference("faster_rcnn", 2).state_dict()
    path = tmp_path / "other.pth"
    state["mask_head.weight"] = state.pop("rpn.head.bbox_pred.bias")
    state["backbone.body.bn1.weight"] = torch.zeros(3)
    torch.save(state, path)
    lines = r"other.pth do not fit this detector: not in the file: head.rpn.head.bbox_pred.bias; only in the file: "
    lines += r"mask_head.weight; of another shape: backbone.bn1.weight is \(3,\), not \(64,\)\."
    with pytest.raises(FinetuneError, match=lines):
        load_detector(network, path)
