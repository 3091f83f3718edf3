"""The detection heads: torchvision's losses and detections for its weights, and every backbone."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import box_iou

from finetune.errors import FinetuneError
from finetune.heads import HEADS, FasterRCNNHead, FeatureInfo
from finetune.heads.detection_parts import Anchors, image_list
from finetune.network import NetworkSpec
from finetune.weights.whole import fit_network, recognise
from tests.backbones.lean_cases import saved_bytes

NECKS = {"faster_rcnn": {"extra": "pool"}, "retinanet": {"extra": "p6p7", "finest": 8}}
LOW = 0.005  # RetinaNet's scores are 0.01 before training
LIKE_TORCHVISION = {
    "faster_rcnn": {"anchor_scales": [8.0], "box_batch_size_per_image": 512},
    "retinanet": {"anchor_scales": [4.0, 5.04, 6.35], "score_thresh": LOW},
}
THEIRS = {"faster_rcnn": detection.fasterrcnn_resnet50_fpn, "retinanet": detection.retinanet_resnet50_fpn}
FEATURES = [FeatureInfo(8, 4 * 2**i) for i in range(4)]
SMALL = {"faster_rcnn": {"hidden": 16, "rpn_top_n_train": 50, "rpn_top_n_test": 50}, "retinanet": {}}
BOXES = [torch.tensor([[10.0, 20.0, 60.0, 90.0], [5.0, 5.0, 30.0, 40.0]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)]
both = pytest.mark.parametrize("name", NECKS)


def spec(name: str, backbone: str = "resnet50", memory: str = "standard", **options) -> NetworkSpec:
    classes = 3
    return NetworkSpec(backbone, classes, 3, name, {"memory": memory}, options, "pyramid", NECKS[name])


def theirs(name: str, size: int) -> nn.Module:
    """torchvision's own, whose preprocessing leaves images of this size as they are and draws no random number."""
    torch.manual_seed(0)
    classes = 4 if name == "faster_rcnn" else 3  # the background is a class of the first
    as_is = {"min_size": size, "max_size": size, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if name == "retinanet":
        as_is["score_thresh"] = LOW
    net = THEIRS[name](weights=None, weights_backbone=None, num_classes=classes, **as_is)
    net.transform.torch_choice = lambda sizes: sizes[0]
    return net


def frozen_norms(net: nn.Module) -> None:
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def images_of(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def head_of(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return HEADS[name](FEATURES, 3, **{**SMALL[name], **options})


def maps_of(images: int = 3, side: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(images, 8, side // i.reduction, side // i.reduction, generator=generator) for i in FEATURES]
    return [m.requires_grad_() for m in maps]


@both
def test_losses_and_detections_are_those_of_torchvision(name):
    side = 128
    reference = theirs(name, side)
    network = spec(name, **LIKE_TORCHVISION[name]).build()
    layout, _ = recognise(reference.state_dict())
    state, account, _ = fit_network(reference.state_dict(), network, layout)
    assert not account.random_init + account.dropped
    network.load_state_dict(state)
    images = images_of(side)
    first = 1 if name == "faster_rcnn" else 0
    targets = [{"boxes": b, "labels": n + first} for b, n in zip(BOXES, LABELS, strict=True)]
    frozen_norms(reference), frozen_norms(network)
    torch.manual_seed(1)  # which anchors and proposals are sampled
    wanted = reference(list(images), targets)
    torch.manual_seed(1)
    losses = network.head.losses(network.run(images, stop="head"), BOXES, LABELS)
    assert tuple(losses) == network.head.loss_names == tuple(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-5)
    reference.eval(), network.eval()
    with torch.no_grad():
        expected, detections = reference(list(images)), network(images)
    assert sum(len(d.scores) for d in detections) > 10
    for theirs_, ours in zip(expected, detections, strict=True):
        torch.testing.assert_close(ours.boxes, theirs_["boxes"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.scores, theirs_["scores"], rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.labels, theirs_["labels"] - first)


@both
@pytest.mark.parametrize("backbone", ["densenet121", "resnet20_cifar"])
def test_every_backbone_learns_through_the_head(name, backbone):
    torch.manual_seed(0)
    neck = NECKS[name] | ({"finest": 2} if name == "retinanet" and backbone.endswith("cifar") else {})
    network = NetworkSpec(backbone, 3, 3, name, {}, SMALL[name], "pyramid", neck | {"channels": 8}).build().train()
    maps = network.run(images_of(64), stop="head")
    total, count = network.head.loss(maps, [b / 2 for b in BOXES], LABELS)
    assert total.isfinite()
    assert count == 2
    total.backward()
    parts = network.parts()
    for part in ("stem", "stage1", "neck", "head"):
        assert any(p.grad.abs().sum() > 0 for module in parts[part] for p in module.parameters()), part
    with torch.no_grad():
        for answer in network.eval()(images_of(64)):
            assert len(answer.boxes) == len(answer.scores) == len(answer.labels)
            assert not len(answer.boxes) or (answer.boxes.min() >= 0 and answer.boxes.max() <= 64)


@both
def test_two_images_are_learned(name):
    """A bright square of each image has a box; after some steps the best detection lies on it, with its label."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64) * 0.1
    boxes = [torch.tensor([[8.0, 8.0, 32.0, 32.0]]), torch.tensor([[28.0, 20.0, 60.0, 52.0]])]
    labels = [torch.tensor([0]), torch.tensor([1])]
    for image, box, channel in zip(images, boxes, (0, 1), strict=True):
        left, top, right, bottom = box[0].int().tolist()
        image[channel, top:bottom, left:right] += 2
    options = {"hidden": 64, "rpn_top_n_train": 100} if name == "faster_rcnn" else {}
    neck = {"channels": 32, "finest": 2, "extra": "pool"}
    network = NetworkSpec("resnet20_cifar", 2, 3, name, {}, options, "pyramid", neck).build().train()
    # steps enough and gradients bounded, so that the rounding of another processor does not decide
    optimizer, steps = torch.optim.AdamW(network.parameters(), lr=2e-3), 80 if name == "faster_rcnn" else 150
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        optimizer.zero_grad()
        total, count = network.head.loss(network.run(images, stop="head"), boxes, labels)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        for answer, box, label in zip(network.eval()(images), boxes, labels, strict=True):
            assert answer.labels[0] == label
            assert box_iou(answer.boxes[:1], box).item() > 0.5


def test_sum_and_count_over_parts_of_a_batch_are_those_of_the_batch():
    """RetinaNet's losses are means over images: exact however the batch is split."""
    head, maps = head_of("retinanet"), maps_of()
    boxes, labels = [*BOXES, BOXES[0][:1]], [*LABELS, LABELS[0][:1]]
    total, count = head.loss(maps, boxes, labels)
    parts = [head.loss([m[rows] for m in maps], boxes[rows], labels[rows]) for rows in (slice(0, 2), slice(2, 3))]
    torch.testing.assert_close(sum(t for t, _ in parts), total)
    assert [int(c) for _, c in parts] == [2, 1]
    assert int(count) == 3


def test_faster_rcnn_weighs_images_alike_where_each_gives_as_many_samples(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, **options: torch.arange(n, **options))  # the same samples
    maps, boxes, labels = maps_of(), [*BOXES, BOXES[0][:1]], [*LABELS, LABELS[0][:1]]
    few = {"rpn_batch_size_per_image": 8, "box_batch_size_per_image": 4}
    head = head_of("faster_rcnn", **few)
    total, _ = head.loss(maps, boxes, labels)
    sums = [head.loss([m[i : i + 1] for m in maps], boxes[i : i + 1], labels[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(sum(sums), total)


@both
def test_a_batch_without_boxes_has_a_gradient_for_every_parameter(name):
    """So that ranks agree on what they reduce."""
    head, maps = head_of(name), maps_of(2)
    total, count = head.loss(maps, [BOXES[1]] * 2, [LABELS[1]] * 2)
    total.backward()
    assert int(count) == 2
    assert total.item() > 0
    assert all(p.grad is not None for p in head.parameters())


@both
def test_images_of_unknown_boxes_count_for_nothing(name):
    head, maps = head_of(name), maps_of()
    known = torch.tensor([True, False, True])
    boxes = [BOXES[0], torch.tensor([[9.0, 9.0, 1.0, 1.0]]), BOXES[1]]  # what stands there is not read
    labels = [LABELS[0], torch.tensor([77]), LABELS[1]]
    torch.manual_seed(1)
    total, count = head.loss(maps, boxes, labels, known)
    torch.manual_seed(1)
    wanted, _ = head.loss([m[known] for m in maps], boxes[::2], labels[::2])
    assert torch.equal(total, wanted)
    assert int(count) == 2
    total.backward()
    assert maps[0].grad[1].abs().sum() == 0
    assert maps[0].grad[2].abs().sum() > 0  # an image without boxes is background
    head.zero_grad()
    total, count = head.loss([m * torch.nan for m in maps], boxes, labels, torch.zeros(3, dtype=torch.bool))
    total.backward()
    assert (total.item(), int(count)) == (0.0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@both
def test_the_mode_changes_neither_losses_nor_detections(name):
    head, maps = head_of(name), maps_of(2)
    made = []
    for mode in (True, False):
        head.train(mode)
        torch.manual_seed(0)
        made.append((head.losses(maps, BOXES, LABELS), head(maps)))
        assert all(module.training is mode for module in head.modules())
    assert made[0][0] == made[1][0]
    for a, b in zip(made[0][1], made[1][1], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    none = [m[:0] for m in maps]
    assert head(none) == []
    assert head.loss(none, [], [])[1] == 0


@both
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64"])
def test_boxes_and_losses_have_32_bits_or_more(name, precision):
    head, maps = head_of(name), maps_of(2)
    dtype = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "64": torch.float64}[precision]
    head.to(dtype)
    maps = [m.detach().to(torch.bfloat16 if "bf16" in precision else dtype) for m in maps]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        losses, answer = head.losses(maps, BOXES, LABELS), head(maps)
    assert {x.dtype for x in [*losses.values(), *(y for d in answer for y in d[:2])]} <= {torch.float32, torch.float64}
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()


def test_anchors_have_the_exact_stride_and_size():
    features = [FeatureInfo(8, 32), FeatureInfo(8, 64)]
    maps = [torch.empty(2, 8, 3, 3), torch.empty(2, 8, 2, 2)]  # of 96 px, where 96 // 2 is 48
    anchors = Anchors(features, [0.5], [1.0])(image_list(maps, 96), maps)
    assert len(anchors) == 2
    centres = (anchors[0][:, :2] + anchors[0][:, 2:]) / 2
    assert centres[:9, 0].tolist() == [0, 32, 64] * 3
    assert centres[9:].tolist() == [[0, 0], [64, 0], [0, 64], [64, 64]]
    assert (anchors[0][:, 2] - anchors[0][:, 0]).unique().tolist() == [16, 32]


def test_boxes_are_pooled_from_the_last_map_of_each_stride_up_to_32():
    twice = [FeatureInfo(8, r) for r in (4, 8, 8, 16)]  # as output_stride=8 gives them
    assert FasterRCNNHead(twice, 1, hidden=4).roi_heads.box_roi_pool.featmap_names == ["0", "2", "3"]
    pool = FasterRCNNHead([FeatureInfo(8, 4 * 2**i) for i in range(5)], 1, hidden=4).roi_heads.box_roi_pool
    assert pool.featmap_names == ["0", "1", "2", "3"]
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    sides = torch.tensor([20.0, 112.0, 224.0, 448.0])  # px: 224 is pooled at stride 16 (Lin et al., 2017)
    assert pool.map_levels([torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)]).tolist() == [0, 1, 2, 3]
    with pytest.raises(FinetuneError, match=r"whose reductions double from map to map, not \[4, 16\]"):
        FasterRCNNHead([FeatureInfo(8, 4), FeatureInfo(8, 16)], 1)


def test_lean_training_keeps_less_than_torchvision():
    """Bytes kept for the backward pass of two images of 128 px by ResNet-50 with Faster R-CNN, beside torchvision's
    119 MiB. Of these 50 MiB are what the boxes cover of the maps, which is pooled again here."""
    side, images = 128, images_of(128)
    boxes, labels = [BOXES[0]] * 2, [LABELS[0]] * 2

    def kept(net: nn.Module, losses) -> int:
        call = nn.Module()
        call.net, call.forward = net.train(), losses
        torch.manual_seed(0)
        return saved_bytes(call, images)

    def share(memory: str, **options) -> float:
        net = spec("faster_rcnn", memory=memory, **options).build()
        return kept(net, lambda x: net.head.losses(net.run(x, stop="head"), boxes, labels)) / whole

    reference = theirs("faster_rcnn", side)
    targets = [{"boxes": b, "labels": n + 1} for b, n in zip(boxes, labels, strict=True)]
    whole = kept(reference, lambda x: reference(list(x), targets))
    assert share("lean", **LIKE_TORCHVISION["faster_rcnn"]) < 0.37  # 0.36
    assert share("minimal", **LIKE_TORCHVISION["faster_rcnn"]) < 0.23  # 0.22
    assert share("lean") < 0.33  # 0.31: 128 proposals per image for 512


@both
def test_a_model_file_can_hold_it(name):
    """Built without memory, then filled: the anchors are there too."""
    with torch.device("meta"):
        empty = spec(name, "resnet20_cifar", **SMALL[name])
        empty = NetworkSpec(**{**empty.to_dict(), "neck_options": {"channels": 8}}).build()
    full = NetworkSpec("resnet20_cifar", 3, 3, name, {}, SMALL[name], "pyramid", {"channels": 8}).build().eval()
    empty.load_state_dict(full.state_dict(), assign=True)
    with torch.no_grad():
        for a, b in zip(empty.eval()(images_of(32)), full(images_of(32)), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
