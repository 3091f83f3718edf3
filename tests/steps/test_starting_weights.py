"""What a fit starts from: backbone.weights=FILE of a whole network fills the neck and the head too, and says so."""

import pytest
import torch
from torchvision.models import segmentation
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from finetune import create_model
from finetune.config import build, compose
from finetune.errors import FinetuneError
from finetune.steps.training import make_network


def started(*words: str, outputs: int):
    """The network, the lines on the console and the report for the run folder."""
    settings = build.check(compose.plain(compose.compose(["data.root=x", *words])))
    lines: list[str] = []
    _, network, preprocessing, report = make_network(settings, outputs, lines.append)
    return network.state_dict(), lines, preprocessing, report


def test_a_detector_starts_from_a_file_of_torchvision(tmp_path):
    theirs = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), 91)
    state, path = theirs.state_dict(), tmp_path / "fasterrcnn.pth"
    torch.save(state, path)
    words = ["task=detect", "data=coco", "backbone=resnet18", f"backbone.weights={path}"]
    ours, lines, preprocessing, report = started(*words, outputs=3)
    assert lines[0].startswith("resnet18 with its neck and head starts from ")
    assert "dropped: roi_heads.box_predictor.cls_score.weight" in lines[0]
    assert "head.anchor_scales=[8.0]; here it is [4.0]" in lines[1]
    assert "trained at 800 px, images are read at data.image_size=512" in lines[2]
    assert report["parts"] == ["backbone", "neck", "head"]
    assert not report["random"]
    assert len(report["random_init"]) == 4  # weights and biases of two layers
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    for name, key in {
        "backbone.layer1.0.conv1.weight": "backbone.body.layer1.0.conv1.weight",
        "neck.layer_blocks.0.0.weight": "backbone.fpn.layer_blocks.0.0.weight",
        "head.rpn.head.bbox_pred.bias": "rpn.head.bbox_pred.bias",
        "head.roi_heads.box_head.fc7.weight": "roi_heads.box_head.fc7.weight",
    }.items():
        assert torch.equal(ours[name], state[key])
    assert len(started(*words, "head.anchor_scales=[8]", outputs=90)[1]) == 2  # COCO's classes: nothing is dropped
    started(*words, "finetuning.phases.full.train=[backbone,head]", outputs=3)  # the file fills the neck
    started(*words, "finetuning.phases.full.train=[backbone]", outputs=90)  # and all of the head
    with pytest.raises(FinetuneError, match=r"train \['neck.*: head would stay at random weights"):
        started(*words, "finetuning.phases.full.train=[backbone,neck]", outputs=3)
    with pytest.raises(FinetuneError, match="neck would stay at random weights"):  # before any data are read
        build.check(compose.plain(compose.compose(
            ["data.root=x", *words[:3], "backbone.weights=none", "finetuning.phases.full.train=[backbone,head]"]
        )))  # fmt: skip


def test_a_file_of_a_backbone_leaves_the_neck_random(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(create_model("resnet18", num_classes=0).state_dict(), path)
    words = ["task=detect", "data=coco", "backbone=resnet18", f"backbone.weights={path}"]
    with pytest.raises(FinetuneError, match="neck would stay at random weights"):
        started(*words, "finetuning.phases.full.train=[backbone,head]", outputs=3)


def test_a_segmenter_starts_from_a_file_of_torchvision(tmp_path):
    theirs = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    state, path = theirs.state_dict(), tmp_path / "deeplabv3.pth"
    torch.save(state, path)
    words = ["task=segment", "data=folder", "head=deeplabv3", "backbone.output_stride=8", f"backbone.weights={path}"]
    ours, lines, _, report = started(*words, outputs=2)
    assert lines[0].startswith("resnet50 with its head starts from ")
    assert report["random_init"] == ["head.layers.4.weight", "head.layers.4.bias"]
    assert torch.equal(ours["head.layers.0.project.0.weight"], state["classifier.0.project.0.weight"])
    _, lines, _, report = started("task=segment", "data=folder", f"backbone.weights={path}", outputs=2)  # head=fpn
    assert lines[0].startswith("resnet50 starts from ")
    assert lines[1].endswith("its other tensors are used with head=deeplabv3 backbone.output_stride=8.")
    assert report["parts"] == ["backbone"]
