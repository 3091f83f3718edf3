"""What a fit starts from: backbone.weights=FILE of a whole network fills the neck and the head too, and says so."""

import re

import pytest
import torch
from torchvision.models import segmentation
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from finetune import create_model
from finetune.config import build, compose
from finetune.errors import FinetuneError
from finetune.evaluation.answers import answers_named
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
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


@pytest.mark.parametrize(
    ("backbone", "file", "dropped"),
    [
        ("resnet20_cifar", "resnet20-12fca82f.th", "module.linear"),
        ("resnet56_cifar", "resnet56-4bfd9763.th", "module.linear"),
        ("densenet_bc_100_12", "densenet_bc_100_12_cifar100.pth.tar", "fc"),
    ],
)
def test_a_published_classifier_of_other_names_is_dropped_by_its_own(shared_data, backbone, file, dropped):
    words = ["data=folder", f"backbone={backbone}", f"backbone.weights={shared_data / 'weights' / file}"]
    _, lines, _, report = started(*words, outputs=2)
    assert sorted(report["dropped"]) == [f"{dropped}.bias", f"{dropped}.weight"]
    assert f"dropped: {dropped}.weight, {dropped}.bias" in lines[0]
    assert not [name for name in report["random_init"] if not name.endswith("num_batches_tracked")]


LAYOUT_FILES = {
    "timm": ("resnet18", lambda net: net.state_dict()),
    "torchvision": (
        "densenet121",
        lambda net: {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in net.state_dict().items()
        },
    ),
    "resnet_children": (
        "resnet18",
        lambda net: children(net, "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 pool fc"),
    ),
    "densenet_children": ("densenet121", lambda net: children(net, "features classifier")),
}


def children(net, names):
    number = {name: str(i) for i, name in enumerate(names.split())}
    return {".".join([number[key.split(".")[0]], *key.split(".")[1:]]): v for key, v in net.state_dict().items()}


@pytest.mark.parametrize("layout", LAYOUT_FILES)
def test_a_fit_drops_the_classifier_of_every_layout(tmp_path, layout):
    backbone, names = LAYOUT_FILES[layout]
    path = tmp_path / "weights.pth"
    torch.save({f"module.{key}": value for key, value in names(create_model(backbone, num_classes=10)).items()}, path)
    _, _, _, report = started("data=folder", f"backbone={backbone}", f"backbone.weights={path}", outputs=2)
    assert (report["layout"], len(report["dropped"])) == (layout, 2)
    assert sorted(report["random_init"]) == []


def test_a_run_of_another_task_starts_a_fit(tmp_path):
    """A segmenter from the backbone of a classifier's run; its neck and head stay to be trained."""
    spec = NetworkSpec("resnet18", 2)
    network = spec.build()
    answers = answers_named("classify")(["a", "b"], "multiclass")
    Model(network, spec, Preprocessing(64), answers).save(tmp_path / "model.safetensors")
    (tmp_path / "scores.json").write_text("{}")
    words = ["task=segment", "data=folder", "backbone=resnet18", f"backbone.weights={tmp_path}"]
    ours, _, preprocessing, report = started(*words, outputs=3)
    assert report["dropped"] == ["fc.bias", "fc.weight"]
    assert report["parts"] == ["backbone"]
    assert preprocessing.image_size == 64
    assert torch.equal(ours["backbone.layer4.1.bn2.bias"], network.backbone.layer4[1].bn2.bias)
    with pytest.raises(FinetuneError, match="head would stay at random weights"):  # known before the file is read
        build.check(compose.plain(compose.compose(
            ["data.root=x", *words, "finetuning.phases.full.train=[backbone]"]
        )))  # fmt: skip
