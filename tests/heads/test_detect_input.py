"""What the detection heads refuse: targets and options, each with one line."""

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.heads import FasterRCNNHead, FeatureInfo, RetinaNetHead
from tests.heads.test_detect import BOXES, FEATURES, LABELS, both, head_of, maps_of


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[5.0, 5.0, 5.0, 9.0]], [0], r"Image 1 of the batch has the box \[5.0, 5.0, 5.0, 9.0\]: .* right above left"),
        ([[5.0, 5.0, float("nan"), 9.0]], [0], "must be finite"),
        ([[1.0, 1.0, 5.0, 9.0]], [3], "Image 1 of the batch has box_labels=3: it must be 0 to 2"),
        ([[1.0, 1.0, 5.0, 9.0]], [-1], "box_labels=-1: it must be 0 to 2"),
        ([[1.0, 1.0, 5.0, 9.0]], [0, 1], r"boxes of shape \(1, 4\) and 2 box_labels"),
        ([[1.0, 1.0, 5.0]], [0], r"boxes of shape \(1, 3\)"),
        ([[1.0, 1.0, 5.0, 9.0]], [0.5], "box_labels must be int64, not torch.float32"),
    ],
)
@both
def test_what_is_wrong_with_targets_is_one_line(name, boxes, labels, message):
    head, maps = head_of(name), maps_of(3)
    good, label = BOXES[0], LABELS[0]
    with pytest.raises(FinetuneError, match=message) as caught:
        head.losses(maps, [good, torch.tensor(boxes), good], [label, torch.tensor(labels), label])
    assert "\n" not in str(caught.value)
    with pytest.raises(FinetuneError, match="3 images have 2 entries of boxes and 2 of box_labels"):
        head.losses(maps, [good] * 2, [label] * 2)


def test_what_is_wrong_with_options_is_one_line():
    for make in (FasterRCNNHead, RetinaNetHead):
        with pytest.raises(FinetuneError, match=f"head={make.name} has num_classes=0: it needs one class or more"):
            make(FEATURES, 0)
        with pytest.raises(FinetuneError, match=r"reads maps of one width, these have \[8, 16\] channels. Add neck=p"):
            make([FeatureInfo(8, 4), FeatureInfo(16, 8)], 2)
        with pytest.raises(FinetuneError, match=r"head.anchor_scales=\[\] must list 1 to 16 numbers above 0"):
            make(FEATURES, 2, anchor_scales=[])
        with pytest.raises(FinetuneError, match=r"head.aspect_ratios=\[0, 1\] must list"):
            make(FEATURES, 2, aspect_ratios=[0, 1])
        with pytest.raises(FinetuneError, match="make anchors below one pixel on the map of reduction 4"):
            make(FEATURES, 2, anchor_scales=[0.2])
    with pytest.raises(FinetuneError, match=r"head\.hidden=0 must be a whole number of 1 or more"):
        FasterRCNNHead(FEATURES, 2, hidden=0)
    with pytest.raises(FinetuneError, match=r"head\.nms_thresh=2 must lie between 0 and 1"):
        RetinaNetHead(FEATURES, 2, nms_thresh=2)
