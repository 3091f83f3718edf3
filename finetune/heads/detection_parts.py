"""torchvision's detectors without their backbone and their preprocessing: what the heads of `detect` are made of.

Proposals, matching, sampling, losses and non-maximum suppression are torchvision's. Changed here are five things: the
anchors have the exact stride of their map, boxes and losses are computed in 32 bits whatever the network's precision,
the scale of a map is its reduction instead of a guess from the first batch, what lies in an ignored place of an image
is no background, and boxes are pooled by the layer that reads them (`regions`).

It is imported when a detection head is made: torchvision takes two seconds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_area, box_iou
from torchvision.ops.poolers import initLevelMapper

from finetune.errors import FinetuneError
from finetune.heads.features import FeatureInfo
from finetune.heads.regions import BINS, SAMPLES, Places, Regions, full

COARSEST_POOLED = 32
"""Boxes are pooled from maps up to this reduction; coarser ones only propose (as torchvision's map `pool`)."""


class Anchors(AnchorGenerator):
    """Anchors of `scale * reduction` pixels for every scale and aspect ratio (height / width), by map.

    The stride is the map's reduction. torchvision divides the image's side by the map's, which is another number where
    the side is no multiple of the reduction (96 px at reduction 64: 48 for 64).

    Raises:
        FinetuneError: an anchor has no area after rounding to whole pixels.
    """

    def __init__(self, features: Sequence[FeatureInfo], scales: Sequence[float], ratios: Sequence[float]):
        self.reductions = [info.reduction for info in features]
        sizes = tuple(tuple(int(scale * reduction) for scale in scales) for reduction in self.reductions)
        super().__init__(sizes, (tuple(ratios),) * len(sizes))
        for reduction, cells in zip(self.reductions, self.cell_anchors, strict=True):
            if (cells[:, 2:] <= cells[:, :2]).any():
                raise FinetuneError(
                    f"head.anchor_scales={list(scales)} with head.aspect_ratios={list(ratios)} make anchors below one "
                    f"pixel on the map of reduction {reduction}. Raise anchor_scales."
                )

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        first = feature_maps[0]
        self.set_cell_anchors(torch.float64 if first.dtype == torch.float64 else torch.float32, first.device)
        strides = [[reduction, reduction] for reduction in self.reductions]
        anchors = torch.cat(self.grid_anchors([m.shape[-2:] for m in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class FullRPNHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [full(m) for m in logits], [full(m) for m in deltas]


class FullRoIAlign(MultiScaleRoIAlign):
    """Pools each box from the map that its size asks for (Lin et al., 2017, eq. 1); maps by name, of these reductions.

    Raises:
        FinetuneError: the reductions do not double from map to map.
    """

    def __init__(self, reductions: dict[str, int]):
        super().__init__(list(reductions), output_size=BINS, sampling_ratio=SAMPLES)
        values = list(reductions.values())
        levels = [reduction.bit_length() - 1 for reduction in values]
        if values != [2**level for level in range(levels[0], levels[0] + len(levels))]:
            raise FinetuneError(
                f"head=faster_rcnn pools boxes from maps whose reductions double from map to map, not {values}."
            )
        self.scales = [1 / value for value in values]
        self.map_levels = initLevelMapper(levels[0], levels[-1])

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Regions:
        images = [torch.full((len(of_image),), n, device=of_image.device) for n, of_image in enumerate(boxes)]
        places = Places(torch.cat(boxes), torch.cat(images), self.map_levels(boxes))
        return Regions([x[name] for name in self.featmap_names], places, self.scales)


class BoxHead(TwoMLPHead):
    recompute = False
    """Whether backward pools the boxes again, instead of keeping what they cover."""

    def forward(self, regions: Regions) -> Tensor:  # (boxes, C, 7, 7) -> (boxes, D)
        x = F.relu_(regions.linear(self.fc6.weight, self.fc6.bias, recompute=self.recompute))
        return F.relu_(self.fc7(x))


class FullPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return full(logits), full(deltas)


class FullRetinaNetHead(RetinaNetHead):
    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: full(value) for name, value in super().forward(x).items()}


def is_ignored(boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """(N, 4) -> (N,) bool: at least half of the box lies in a place that the image's target ignores."""
    places = target.get("ignored")
    if places is None or not len(places):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    corner, end = torch.max(boxes[:, None, :2], places[:, :2]), torch.min(boxes[:, None, 2:], places[:, 2:])
    inside = (end - corner).clamp(min=0).prod(dim=2)  # (N, I)
    return (inside >= 0.5 * box_area(boxes)[:, None]).any(dim=1)


def leave_out(labels: Tensor, ignored: Tensor) -> None:
    """Give background (N,) that is ignored the label -1, which torchvision does not sample; in place. One of it stays
    where nothing else would: a loss of no samples is NaN."""
    ignored = ignored & (labels == 0)
    if bool(ignored.all()):
        ignored[:1] = False
    labels[ignored] = -1


class SparingRPN(RegionProposalNetwork):
    """What lies in an ignored place of an image is no background."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            leave_out(label, is_ignored(anchor, target))
        return labels, boxes


class SparingRoIHeads(RoIHeads):
    """What lies in an ignored place of an image is no background."""

    def select_training_samples(self, proposals: list[Tensor], targets: Any) -> Any:
        self._targets = targets
        return super().select_training_samples(proposals, targets)

    def assign_targets_to_proposals(self, proposals: Any, gt_boxes: Any, gt_labels: Any) -> Any:
        numbers, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, boxes, target in zip(labels, proposals, self._targets, strict=True):
            leave_out(label, is_ignored(boxes, target))
        return numbers, labels


class SparingRetinaNet(RetinaNet):
    """What lies in an ignored place of an image is no background."""

    def compute_loss(self, targets: Any, head_outputs: Any, anchors: Any) -> Any:
        numbers = []
        for boxes, target in zip(anchors, targets, strict=True):
            number = torch.full((len(boxes),), self.proposal_matcher.BELOW_LOW_THRESHOLD, device=boxes.device)
            if len(target["boxes"]):
                number = self.proposal_matcher(box_iou(target["boxes"], boxes))
            background = number == self.proposal_matcher.BELOW_LOW_THRESHOLD
            number[background & is_ignored(boxes, target)] = self.proposal_matcher.BETWEEN_THRESHOLDS  # left out
            numbers.append(number)
        return self.head.compute_loss(targets, head_outputs, anchors, numbers)


class NoBackbone(nn.Identity):
    """What torchvision's constructors want to know of a backbone."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels


def pooled(features: Sequence[FeatureInfo]) -> dict[str, int]:
    """Name and reduction of the maps that boxes are pooled from; of several maps of one reduction the last."""
    names = {info.reduction: str(number) for number, info in enumerate(features)}
    chosen = {name: reduction for reduction, name in names.items() if reduction <= COARSEST_POOLED}
    return chosen or {"0": features[0].reduction}


def faster_rcnn(
    features: Sequence[FeatureInfo], num_classes: int, anchors: Anchors, hidden: int, **options: Any
) -> tuple[RegionProposalNetwork, RoIHeads]:
    """The region proposal network and the box heads of Faster R-CNN; `num_classes` does not count the background."""
    channels, pool = features[0].num_chs, FullRoIAlign(pooled(features))
    made = FasterRCNN(
        NoBackbone(channels),
        rpn_anchor_generator=anchors,
        rpn_head=FullRPNHead(channels, anchors.num_anchors_per_location()[0]),
        box_roi_pool=pool,
        box_head=BoxHead(channels * pool.output_size[0] ** 2, hidden),
        box_predictor=FullPredictor(hidden, num_classes + 1),
        **options,
    )
    made.rpn.__class__, made.roi_heads.__class__ = SparingRPN, SparingRoIHeads  # their constructors take other options
    return made.rpn, made.roi_heads


def retinanet(features: Sequence[FeatureInfo], num_classes: int, anchors: Anchors, **options: Any) -> SparingRetinaNet:
    """RetinaNet, of which the head, the matching and the choice of detections are used."""
    channels = features[0].num_chs
    head = FullRetinaNetHead(channels, anchors.num_anchors_per_location()[0], num_classes)
    return SparingRetinaNet(NoBackbone(channels), num_classes, anchor_generator=anchors, head=head, **options)


def image_list(maps: list[Tensor], side: int) -> ImageList:
    """Of square images of `side` pixels: their sizes; torchvision's heads read no pixel."""
    images = len(maps[0])
    return ImageList(maps[0].new_empty(1).expand(images, 1, side, side), [(side, side)] * images)
