"""Seg-Grad-CAM: heat maps of the evidence for a region of pixels.

Paper: "Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping" (Vinogradova et al.,
AAAI 2020). The score is the sum of a region's logits over the pixels that are predicted to be in it, or over all pixels
of the image where none is. The rest is Grad-CAM at the backbone's last map: the channels' weights are means of the
gradient over all places, so heat may also lie at places that did not change this region.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.explanations.maps import at_last_map, enlarged, explaining, prepared
from finetune.network import Maps, Network


class RegionMaps(NamedTuple):
    """Heat maps of a region in each of N images."""

    heat: Tensor
    """(N, H, W) float32, 0 or more, in pixels of the network's input."""
    predicted: Tensor
    """(N, H, W) bool: the pixels predicted to be in the region."""


def seg_grad_cam(
    network: Network,
    images: Tensor,
    regions: Tensor,
    thresholds: Tensor | None = None,
    predicted: Tensor | None = None,
    *,
    shown: Tensor | None = None,
    images_at_once: int = 16,
) -> RegionMaps:
    """Seg-Grad-CAM of one region in each image.

    Args:
        network: its head gives logits (N, K, H, W).
        images: normalised, (N, C, H, W).
        regions: (N,) numbers of the regions among the K outputs.
        thresholds: (K,) probabilities from which a pixel is in each of regions that overlap; None of regions that
            exclude each other, where a pixel is in the most probable one.
        predicted: bool (N, H, W), the pixels whose logits are summed; None predicts them.
        shown: bool (N, H, W), the pixels that show the image; no other is predicted or summed. None for all.

    Raises:
        FinetuneError: shapes that do not fit, or a number that is no output.
    """
    if images.ndim != 4 or tuple(regions.shape) != (len(images),):
        raise FinetuneError(
            f"images must be (N, C, H, W) and regions (N,), not {tuple(images.shape)} and {tuple(regions.shape)}."
        )
    size = (int(images.shape[-2]), int(images.shape[-1]))
    parts = [RegionMaps(torch.zeros(0, *size), torch.zeros(0, *size, dtype=torch.bool))]
    with explaining(network):
        for start in range(0, len(images), images_at_once):
            rows = slice(start, start + images_at_once)
            fixed = None if predicted is None else predicted[rows]
            within = None if shown is None else shown[rows]
            parts.append(_of_batch(network, prepared(network, images[rows]), regions[rows], thresholds, fixed, within))
    return RegionMaps(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _of_batch(
    network: Network,
    images: Tensor,
    regions: Tensor,
    thresholds: Tensor | None,
    predicted: Tensor | None,
    shown: Tensor | None,
) -> RegionMaps:
    device, size = images.device, (images.shape[-2], images.shape[-1])
    within = torch.ones(len(images), *size, dtype=torch.bool, device=device) if shown is None else shown.to(device)
    numbers = torch.tensor(regions.tolist(), dtype=torch.int64, device=device)
    pixels = None if predicted is None else predicted.to(device)

    def score(maps: Maps) -> Tensor:  # -> (N,)
        nonlocal pixels
        logits = network.run(maps, start=network.new_parts[0], size=size)
        assert isinstance(logits, Tensor)  # a head of regions
        if pixels is None:
            pixels = predicted_pixels(logits.detach(), numbers, thresholds) & within
        counted = pixels | (within & ~pixels.any(dim=2, keepdim=True).any(dim=1, keepdim=True))  # all where none is
        return (of_region(logits, numbers) * counted).sum((1, 2))

    maps, gradient = at_last_map(network, images, score)
    heat = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu()
    assert pixels is not None  # score has run
    return RegionMaps(enlarged(heat, images).cpu(), pixels.cpu())


def predicted_pixels(logits: Tensor, numbers: Tensor, thresholds: Tensor | None) -> Tensor:  # (N, K, H, W) -> (N, H, W)
    """The pixels that are in the region of each image; `thresholds` as those of `seg_grad_cam`."""
    if thresholds is None:
        return logits.argmax(dim=1) == numbers[:, None, None]
    limits = thresholds.to(logits.device, torch.float32)[numbers]
    return of_region(logits, numbers).sigmoid() >= limits[:, None, None]


def of_region(logits: Tensor, numbers: Tensor) -> Tensor:  # (N, K, H, W), (N,) -> (N, H, W)
    """The logits of the region of each image.

    Raises:
        FinetuneError: a number that is no output.
    """
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < logits.shape[1]:
        raise FinetuneError(f"regions={numbers.tolist()} must be numbers from 0 to {logits.shape[1] - 1}.")
    return logits[torch.arange(len(logits), device=logits.device), numbers]
