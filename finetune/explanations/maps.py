"""Heat maps of the evidence for a class: four methods from an image to a map of its size.

All take a `Network`, normalised images (N, C, H, W) and the number of a class for each (N,), and give heat (N, H, W) in
float32, 0 or more: evidence for the class, in the units of its logit (before sigmoid or softmax). Maps are not rescaled
per image: heat may be compared between images of the same network, class and method. They run in eval
mode, and leave the network's modes, `requires_grad` and gradients as they were.

A map does not explain why a network predicts what it does; `checks` and `localisation` test how far to trust it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.errors import FinetuneError, one_of
from finetune.inference import eval_mode
from finetune.network import Maps, Network

CHUNK = 32  # images per forward pass of the methods that vary one image many times


def grad_cam(network: Network, images: Tensor, classes: Tensor) -> Tensor:
    """Selvaraju et al., 2017: the last map's channels, weighted by the mean gradient of the logit to each, summed; what
    is left above 0 is enlarged to the image, bilinearly.

    With average pooling and a linear head that is CAM (Zhou et al., 2016) divided by the positions of the map.
    """
    with explaining(network):
        maps, gradient = _of_class(network, *_checked(network, images, classes))
        weights = gradient.mean((2, 3), keepdim=True)  # (N, K, 1, 1)
        return enlarged((weights * maps).sum(1).relu(), images)


def grad_cam_pp(network: Network, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM++, Chattopadhay et al., 2018: as `grad_cam`, but with a weight per position in a channel's mean, so
    that several instances of a finding count as much as one.

    The paper explains exp(logit), which has closed forms for the higher derivatives; its factor exp(logit), one
    positive number per image, is left out here, as it may overflow.
    """
    with explaining(network):
        maps, gradient = _of_class(network, *_checked(network, images, classes))
        below = 2 * gradient**2 + maps.sum((2, 3), keepdim=True) * gradient**3
        alpha = torch.where(below != 0, gradient**2 / torch.where(below != 0, below, 1), 0)
        weights = (alpha * gradient.relu()).sum((2, 3), keepdim=True)  # (N, K, 1, 1)
        return enlarged((weights * maps).sum(1).relu(), images)


def occlusion(
    network: Network, images: Tensor, classes: Tensor, *, patch: int | None = None, stride: int | None = None
) -> Tensor:
    """Zeiler and Fergus, 2014: how far the logit falls where a square is covered with the image's mean.

    A pixel's heat is the mean fall over all squares that cover it, and 0 where the logit rises. It runs the
    network once per position of the square, so it is slow, but it needs no gradient.

    Args:
        patch: side of the square in pixels of the input, by default a seventh of the image.
        stride: its steps in pixels, by default half of it; the last square of a row always ends at the border.
    """
    height, width = images.shape[-2:]
    patch = max(1, min(height, width) // 7) if patch is None else patch
    stride = max(1, patch // 2) if stride is None else stride
    if not 1 <= patch <= min(height, width) or not 1 <= stride <= patch:
        raise FinetuneError(
            f"patch={patch} must be 1 to {min(height, width)} pixels (the side) and stride={stride} 1 to patch."
        )
    positions = [(top, left) for top in _starts(height, patch, stride) for left in _starts(width, patch, stride)]
    with explaining(network), torch.no_grad():
        images, classes = _checked(network, images, classes)
        before = _scores(network, images, classes)
        total_drop, covered = torch.zeros_like(images[:, 0]), torch.zeros_like(images[0, 0])
        for number, image in enumerate(images):
            mean = image.mean((1, 2))[:, None, None]
            for start in range(0, len(positions), CHUNK):
                block = positions[start : start + CHUNK]
                masked_images = image.repeat(len(block), 1, 1, 1)
                for masked, (top, left) in zip(masked_images, block, strict=True):
                    masked[:, top : top + patch, left : left + patch] = mean
                drops = before[number] - _scores(network, masked_images, classes[number].expand(len(block)))
                for (top, left), drop in zip(block, drops, strict=True):
                    total_drop[number, top : top + patch, left : left + patch] += drop
        for top, left in positions:
            covered[top : top + patch, left : left + patch] += 1
        return (total_drop / covered).relu().float()


def integrated_gradients(network: Network, images: Tensor, classes: Tensor, *, steps: int = 32) -> Tensor:
    """Sundararajan et al., 2017: what each pixel adds to the logit between a blank image (the image's mean) and the
    image, summed over its channels; negative evidence is left out.
    """
    return attributions(network, images, classes, steps=steps).sum(1).relu()


def attributions(
    network: Network, images: Tensor, classes: Tensor, *, steps: int = 32, baseline: Tensor | None = None
) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
    """Integrated gradients with their signs: their sum is the logit of the image less that of the baseline, the
    nearer the more `steps` there are (midpoint rule). The baseline is an image batch of the same shape.
    """
    if steps < 1:
        raise FinetuneError(f"steps={steps} must be 1 or more.")
    with explaining(network):
        images, classes = _checked(network, images, classes)
        start = images.mean((2, 3), keepdim=True).expand_as(images) if baseline is None else baseline.to(images)
        total = torch.zeros_like(images)
        for step in range(steps):
            point = (start + (step + 0.5) / steps * (images - start)).detach().requires_grad_()
            with torch.enable_grad():
                score = _scores(network, point, classes).sum()
            total += torch.autograd.grad(score, point)[0]
        return ((images - start) * total / steps).float()


METHODS: dict[str, Callable[..., Tensor]] = {
    "grad_cam": grad_cam,
    "grad_cam_pp": grad_cam_pp,
    "occlusion": occlusion,
    "integrated_gradients": integrated_gradients,
}


def check_method(method: str, options: Sequence[str] = ()) -> Callable[..., Tensor]:
    """The method of that name.

    Raises:
        FinetuneError: an unknown name, or an option that it does not take.
    """
    if method not in METHODS:
        raise one_of("method", method, METHODS)
    accepted = [name for name in inspect.signature(METHODS[method]).parameters if name not in _ALWAYS]
    if unknown := [name for name in options if name not in accepted]:
        raise FinetuneError(f"method={method} takes no {unknown[0]}. It takes {', '.join(accepted) or 'no options'}.")
    return METHODS[method]


_ALWAYS = ("network", "images", "classes")


def heat_of(
    network: Network,
    images: Tensor,
    classes: Tensor,
    method: str = "grad_cam",
    *,
    images_at_once: int = 16,
    **options: Any,
) -> Tensor:
    """Heat (N, H, W) on the CPU by the method of that name, computed in batches of `images_at_once`."""
    method_function = check_method(method, list(options))
    parts = [
        method_function(
            network, images[start : start + images_at_once], classes[start : start + images_at_once], **options
        ).cpu()
        for start in range(0, len(images), images_at_once)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, *images.shape[-2:])


@contextmanager
def explaining(network: Network) -> Iterator[None]:
    """Eval mode, and out of any inference_mode: its tensors would carry no gradient."""
    with eval_mode(network), torch.inference_mode(False), torch.no_grad():
        yield


def _checked(network: Network, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the network's device, images as they were predicted."""
    if images.ndim != 4 or tuple(classes.shape) != (len(images),):
        raise FinetuneError(
            f"images must be (N, C, H, W) and classes (N,), not {tuple(images.shape)} and {tuple(classes.shape)}."
        )
    images = prepared(network, images)
    return images, torch.tensor(classes.tolist(), dtype=torch.int64, device=images.device)


def prepared(network: Network, images: Tensor) -> Tensor:
    """Images as they were predicted: on the network's device, in 32 bits, channels last."""
    device = next(network.parameters()).device
    images = images.clone() if images.is_inference() else images.detach()
    return images.to(device, torch.float32).contiguous(memory_format=torch.channels_last)


def _of_class(network: Network, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The last map, and the gradient of each image's logit to it."""
    new = network.new_parts[0]
    return at_last_map(network, images, lambda maps: _picked(network.run(maps, start=new), classes))  # type: ignore[arg-type]


def at_last_map(network: Network, images: Tensor, score: Callable[[Maps], Tensor]) -> tuple[Tensor, Tensor]:
    """The backbone's last map (N, K, h, w) and the gradient of each image's score to it.

    The gradient goes only through neck and head, so that no tensor of the backbone is kept. Of a pyramid that is what
    reaches it from the coarsest map of the backbone; the finer maps are constants.

    Args:
        score: maps of the backbone, as `network.run` gives them before the neck, or the head -> (N,).
    """
    maps = network.run(images, stop=network.new_parts[0])
    *before, last = maps if isinstance(maps, list) else [maps]
    last = last.detach().requires_grad_()
    with torch.enable_grad():
        total = score([*before, last] if isinstance(maps, list) else last).sum()
    return last.detach(), torch.autograd.grad(total, last)[0]


def _scores(network: Network, images: Tensor, classes: Tensor) -> Tensor:  # -> (N,)
    return _picked(network(images), classes)


def _picked(logits: Tensor, classes: Tensor) -> Tensor:  # (N, K), (N,) -> (N,)
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[1]:
        raise FinetuneError(f"classes={classes.tolist()} must be numbers from 0 to {logits.shape[1] - 1}.")
    return logits.gather(1, classes[:, None])[:, 0]


def enlarged(heat: Tensor, images: Tensor) -> Tensor:  # (N, h, w) -> (N, H, W)
    return F.interpolate(heat[:, None].float(), size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def _starts(length: int, patch: int, stride: int) -> list[int]:
    starts = list(range(0, length - patch + 1, stride))
    return starts if starts[-1] == length - patch else [*starts, length - patch]
