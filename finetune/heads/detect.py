"""The detection heads, on the maps of a pyramid: Faster R-CNN and RetinaNet, both torchvision's (`detection_parts`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.heads.detection import Candidates, DetectionHead, Targets, check_counts, check_positive, check_shares
from finetune.heads.features import FeatureInfo


class FasterRCNNHead(DetectionHead):
    """Faster R-CNN (Ren et al., 2015) on a pyramid (Lin et al., 2017): anchors propose boxes, each is then classified.

    Options have torchvision's names where torchvision has them, and its values but for the first two:

    Args:
        features: the neck's maps, all of one width; `neck.extra=pool` adds the coarse map that torchvision has.
        num_classes: K, without the background.
        anchor_scales: sides of the anchors, in strides of their map. torchvision has 8 (32 px at stride 4) for images
            of 800 px; 4 goes with images of 100 to 500 px.
        box_batch_size_per_image: proposals sampled per image in training; torchvision has 512.
        aspect_ratios: heights of the anchors over their widths.
        rpn_top_n_train: proposals per map before, and per image after their suppression, in training.
        rpn_top_n_test: the same in evaluation.
        rpn_nms_thresh: IoU above which the lesser of two proposals is left out.
        rpn_batch_size_per_image: anchors sampled per image in training.
        box_score_thresh: least score of a detection.
        box_nms_thresh: IoU above which the lesser of two detections of a class is left out.
        box_detections_per_img: most detections per image.
        hidden: width of the two layers that classify a box.

    Raises:
        FinetuneError: no class, maps of different widths, an option out of its bounds.
    """

    name = "faster_rcnn"
    first_label = 1  # 0 is the background
    loss_names = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_classes: int,
        *,
        anchor_scales: Sequence[float] = (4.0,),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_top_n_train: int = 2000,
        rpn_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_batch_size_per_image: int = 256,
        box_batch_size_per_image: int = 128,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        hidden: int = 1024,
    ):
        super().__init__(features, num_classes)
        check_counts(
            rpn_top_n_train=rpn_top_n_train,
            rpn_top_n_test=rpn_top_n_test,
            rpn_batch_size_per_image=rpn_batch_size_per_image,
            box_batch_size_per_image=box_batch_size_per_image,
            box_detections_per_img=box_detections_per_img,
            hidden=hidden,
        )
        check_positive(anchor_scales=anchor_scales, aspect_ratios=aspect_ratios)
        self.anchor_scales = [float(scale) for scale in anchor_scales]
        check_shares(rpn_nms_thresh=rpn_nms_thresh, box_score_thresh=box_score_thresh, box_nms_thresh=box_nms_thresh)
        from finetune.heads import detection_parts

        self.rpn, self.roi_heads = detection_parts.faster_rcnn(
            features,
            num_classes,
            detection_parts.Anchors(features, anchor_scales, aspect_ratios),
            hidden,
            rpn_pre_nms_top_n_train=rpn_top_n_train,
            rpn_pre_nms_top_n_test=rpn_top_n_test,
            rpn_post_nms_top_n_train=rpn_top_n_train,
            rpn_post_nms_top_n_test=rpn_top_n_test,
            rpn_nms_thresh=rpn_nms_thresh,
            rpn_batch_size_per_image=rpn_batch_size_per_image,
            box_batch_size_per_image=box_batch_size_per_image,
            box_score_thresh=box_score_thresh,
            box_nms_thresh=box_nms_thresh,
            box_detections_per_img=box_detections_per_img,
        )

    @property
    def suppression(self) -> tuple[float, int]:
        return self.roi_heads.nms_thresh, self.roi_heads.detections_per_img

    def _detect(self, maps: list[Tensor], side: int) -> list[dict[str, Tensor]]:
        return self._run(maps, side, None)[0]

    def _losses(self, maps: list[Tensor], targets: Targets, side: int) -> dict[str, Tensor]:
        return self._run(maps, side, targets)[1]

    def _run(self, maps: list[Tensor], side: int, targets: Targets | None) -> tuple[Any, dict[str, Tensor]]:
        from finetune.heads import detection_parts

        images = detection_parts.image_list(maps, side)
        self.roi_heads.box_head.recompute = self.memory in ("lean", "minimal")  # auto is lean where nothing is slower
        named = {str(number): m for number, m in enumerate(maps)}
        with sampling(targets is not None, self.rpn, self.roi_heads):
            proposals, of_anchors = self.rpn(images, named, targets)
            detections, of_boxes = self.roi_heads(named, proposals, images.image_sizes, targets)
        return detections, {**of_boxes, **of_anchors}

    def _classified(self, maps: list[Tensor], boxes: list[Tensor], side: int) -> tuple[Tensor, Tensor]:
        """Logits (B, 1 + K), the background first, and deltas (B, 4 (1 + K)) of the boxes of all images."""
        named, sizes = {str(number): m for number, m in enumerate(maps)}, [(side, side)] * len(boxes)
        pooled = self.roi_heads.box_roi_pool(named, boxes, sizes)
        return self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))

    def _candidates(self, maps: list[Tensor], side: int) -> list[Candidates]:
        from finetune.heads import detection_parts

        with sampling(False, self.rpn):
            named = {str(number): m for number, m in enumerate(maps)}
            proposals, _ = self.rpn(detection_parts.image_list(maps, side), named)
        logits, deltas = self._classified(maps, proposals, side)
        boxes = self.roi_heads.box_coder.decode(deltas, proposals)[:, 1:].clamp(0, side)  # (B, K, 4)
        scores, counts = logits.softmax(-1)[:, 1:], [len(of_image) for of_image in proposals]
        return [Candidates(*parts) for parts in zip(boxes.split(counts), scores.split(counts), proposals, strict=True)]

    def _log_odds(self, maps: list[Tensor], sources: Tensor, labels: Tensor, side: int) -> Tensor:
        logits, _ = self._classified(maps, list(sources.split(1)), side)  # (N, 1 + K)
        of_class = torch.nn.functional.one_hot(labels + self.first_label, logits.shape[1]).bool()
        return logits[of_class] - logits.masked_fill(of_class, -torch.inf).logsumexp(1)


class RetinaNetHead(DetectionHead):
    """RetinaNet (Lin et al., 2017): every anchor is classified at once, with the focal loss.

    Options have torchvision's names where torchvision has them, and its values but for the first:

    Args:
        features: the neck's maps, all of one width; torchvision's come from `neck.first=...` and `neck.extra=p6p7`.
        num_classes: K.
        anchor_scales: sides of the anchors, in strides of their map: an octave in three steps. torchvision has them
            from 4 on (32 px at stride 8) for images of 800 px; from 2 on goes with images of 100 to 500 px.
        aspect_ratios: heights of the anchors over their widths.
        score_thresh: least score of a detection.
        nms_thresh: IoU above which the lesser of two detections of a class is left out.
        detections_per_img: most detections per image.
        topk_candidates: most detections per map before that.

    Raises:
        FinetuneError: no class, maps of different widths, an option out of its bounds.
    """

    name = "retinanet"
    loss_names = ("classification", "bbox_regression")

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_classes: int,
        *,
        anchor_scales: Sequence[float] = (2.0, 2.52, 3.18),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 300,
        topk_candidates: int = 1000,
    ):
        super().__init__(features, num_classes)
        check_counts(detections_per_img=detections_per_img, topk_candidates=topk_candidates)
        check_positive(anchor_scales=anchor_scales, aspect_ratios=aspect_ratios)
        self.anchor_scales = [float(scale) for scale in anchor_scales]
        check_shares(score_thresh=score_thresh, nms_thresh=nms_thresh)
        from finetune.heads import detection_parts

        self.retinanet = detection_parts.retinanet(
            features,
            num_classes,
            detection_parts.Anchors(features, anchor_scales, aspect_ratios),
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            detections_per_img=detections_per_img,
            topk_candidates=topk_candidates,
        )

    def _outputs(self, maps: list[Tensor], side: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Logits (N, A, K) and box deltas (N, A, 4) of all anchors, and of each image the anchors (A, 4)."""
        from finetune.heads import detection_parts

        return self.retinanet.head(maps), self.retinanet.anchor_generator(detection_parts.image_list(maps, side), maps)

    @property
    def suppression(self) -> tuple[float, int]:
        return self.retinanet.nms_thresh, self.retinanet.detections_per_img

    def _detect(self, maps: list[Tensor], side: int) -> list[dict[str, Tensor]]:
        outputs, anchors = self._outputs(maps, side)
        per_place = self.retinanet.anchor_generator.num_anchors_per_location()[0]
        lengths = [m.shape[-2] * m.shape[-1] * per_place for m in maps]
        by_map = {name: list(value.split(lengths, dim=1)) for name, value in outputs.items()}
        anchors_by_map = [list(a.split(lengths)) for a in anchors]
        return self.retinanet.postprocess_detections(by_map, anchors_by_map, [(side, side)] * len(anchors))

    def _losses(self, maps: list[Tensor], targets: Targets, side: int) -> dict[str, Tensor]:
        return self.retinanet.compute_loss(targets, *self._outputs(maps, side))

    def _candidates(self, maps: list[Tensor], side: int) -> list[Candidates]:
        outputs, anchors = self._outputs(maps, side)
        return [
            Candidates(
                self.retinanet.box_coder.decode_single(deltas, of_image).clamp(0, side),
                logits.sigmoid(),
                torch.arange(len(of_image), device=logits.device),
            )
            for logits, deltas, of_image in zip(outputs["cls_logits"], outputs["bbox_regression"], anchors, strict=True)
        ]

    def _log_odds(self, maps: list[Tensor], sources: Tensor, labels: Tensor, side: int) -> Tensor:
        logits = self.retinanet.head(maps)["cls_logits"]  # (N, A, K)
        return logits[torch.arange(len(logits), device=logits.device), sources, labels]


@contextmanager
def sampling(on: bool, *modules: nn.Module) -> Iterator[None]:
    """torchvision's parts return losses or detections by their mode, which has no other effect: set it for a while."""
    modes = [module.training for module in modules]
    for module in modules:
        module.training = on
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
