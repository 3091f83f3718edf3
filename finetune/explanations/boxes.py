"""Heat maps of the evidence for the boxes of a detector.

The score is the log odds of a box's class, of the candidate that became the box before suppression: their sigmoid is
the score of the detection. The candidate is fixed, so that the gradient is exact; how it was proposed is not explained.

Heat is gradient times map at each place of the backbone's last map, summed over the channels, above 0. Grad-CAM's
weights, means over all places, would give the boxes of an image nearly the same map (Zhao and Chan, "ODAM", ICLR 2023,
who besides smooth the gradient). The gradient reaches only the places that pooling and convolutions read: `reach`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.explanations.maps import at_last_map, enlarged, explaining, prepared
from finetune.heads.detection import Detections
from finetune.network import Maps, Network

NOTHING = 1e-6
"""A gradient is 0 below this share of its largest value: fast convolutions round zeros to less."""


class BoxMaps(NamedTuple):
    """Heat maps of one box in each of N images."""

    heat: Tensor
    """(N, S, S) float32, 0 or more, in pixels of the network's input."""
    reach: Tensor
    """(N, S, S) bool: the pixels that the gradient reaches; no heat lies elsewhere."""
    positions: Tensor
    """(N,) int64: places of the last map that it reaches."""
    log_odds: Tensor
    """(N,) of the boxes' classes."""


def detect(network: Network, images: Tensor) -> list[tuple[Detections, Tensor]]:
    """The detections of each image (N, C, S, S), the highest score first, with their sources (`DetectionHead.sources`),
    on the CPU."""
    head = detection_head(network)
    with explaining(network):
        images = prepared(network, images)
        side = int(images.shape[-1])
        maps: Any = network.run(images, stop="head")
        detections = head(maps, side)
        pairs = zip(detections, head.sources(maps, detections, side), strict=True) if len(images) else ()
        return [(Detections(*(part.cpu() for part in of_image)), source.cpu()) for of_image, source in pairs]


def sources_of(network: Network, images: Tensor, detections: list[Detections]) -> list[Tensor]:
    """The sources of detections that are known already, for each image."""
    head = detection_head(network)
    with explaining(network):
        images = prepared(network, images)
        maps: Any = network.run(images, stop="head")
        moved = [Detections(*(part.to(images.device) for part in of_image)) for of_image in detections]
        return [source.cpu() for source in head.sources(maps, moved, int(images.shape[-1]))]


def box_maps(network: Network, images: Tensor, labels: Tensor, sources: Tensor, *, images_at_once: int = 8) -> BoxMaps:
    """The heat map of one box in each image.

    Args:
        network: its head is one of detections.
        images: normalised, (N, C, S, S).
        labels: (N,) numbers of the boxes' classes.
        sources: (N, ...) of the boxes: see `detect`.

    Raises:
        FinetuneError: shapes that do not fit, a number that is no class, or a head that has no `log_odds`.
    """
    if images.ndim != 4 or tuple(labels.shape) != (len(images),) or len(sources) != len(images):
        raise FinetuneError(
            f"images must be (N, C, S, S), labels (N,) and sources (N, ...), not {tuple(images.shape)}, "
            f"{tuple(labels.shape)} and {tuple(sources.shape)}."
        )
    head, side = detection_head(network), int(images.shape[-1])
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < head.num_classes:
        raise FinetuneError(f"labels={labels.tolist()} must be numbers from 0 to {head.num_classes - 1}.")
    empty = torch.zeros(0, side, side)
    parts = [BoxMaps(empty, empty.bool(), torch.zeros(0, dtype=torch.int64), torch.zeros(0))]
    with explaining(network):
        for start in range(0, len(images), images_at_once):
            rows = slice(start, start + images_at_once)
            parts.append(_of_batch(network, prepared(network, images[rows]), labels[rows], sources[rows]))
    return BoxMaps(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _of_batch(network: Network, images: Tensor, labels: Tensor, sources: Tensor) -> BoxMaps:
    head: Any = network.head
    labels, sources, side = labels.to(images.device), sources.to(images.device), int(images.shape[-1])
    values = torch.zeros(0)

    def score(maps: Maps) -> Tensor:  # -> (N,)
        nonlocal values
        of_boxes = head.log_odds(network.run(maps, start=network.new_parts[0], stop="head"), sources, labels, side)
        values = of_boxes.detach().cpu()
        return of_boxes

    maps, gradient = at_last_map(network, images, score)
    strength = gradient.abs().amax(1)  # (N, h, w)
    reached = strength > NOTHING * strength.amax((1, 2), keepdim=True)
    heat = enlarged((gradient * maps).sum(1).relu(), images).cpu()
    reach = enlarged(reached.float(), images).cpu() > 0
    return BoxMaps(heat, reach, reached.sum((1, 2)).cpu(), values.float())


def detection_head(network: Network) -> Any:
    """The head, after checking that the score of a single box can be computed with it.

    Raises:
        FinetuneError: it has no `sources` and `log_odds`.
    """
    head: Any = network.head
    if not (hasattr(head, "sources") and hasattr(head, "log_odds")):
        raise FinetuneError(
            f"head={getattr(head, 'name', type(head).__name__)} cannot be explained: it has no sources and log_odds, "
            "which finetune.heads.detection.DetectionHead describes."
        )
    return head


def as_detections(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Detections:
    """Boxes (M, 4), scores (M,) and labels (M,) as tensors."""
    return Detections(
        torch.from_numpy(np.asarray(boxes, np.float32)).reshape(-1, 4),
        torch.from_numpy(np.asarray(scores, np.float32)),
        torch.from_numpy(np.asarray(labels, np.int64)),
    )
