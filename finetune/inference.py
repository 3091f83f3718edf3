"""Running a trained network over images: the one loop behind evaluate, predict and the end of a fit."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune import views
from finetune.evaluation.novelty import FeatureGaussian
from finetune.network import Network


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode, every module's own mode restored afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield network
    finally:
        for module, mode in modes.items():
            module.training = mode


def best_device(accelerator: str = "auto") -> torch.device:
    """The device a single process computes on: `cpu`, `gpu`/`cuda`, `mps`, or `auto` for the fastest there is."""
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        return torch.device("mps")
    return torch.device("cpu")


Forward = Callable[[Tensor], Any]
"""Computed with a network: images (N, C, H, W) on its device -> tensors, or tuples, lists, mappings of these."""


@torch.inference_mode()
def run(
    network: nn.Module, batches: Iterable[dict[str, Any]], device: torch.device, forward: Forward | None = None
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each batch with the network's outputs as arrays, floating-point ones in 32 bits.

    Full precision whatever the training used, so that an image has the same outputs in every job.

    Args:
        batches: {image (N, C, H, W), ...}; one whose image is None has the outputs None.
        forward: what is computed instead of the network's outputs, such as `network.features`.
    """
    network = network.to(device)
    with eval_mode(network):
        for batch in on_device(batches, device):
            if batch["image"] is None:
                yield batch, None
                continue
            images: Tensor = batch["image"].to(device, non_blocking=True)
            yield batch, as_arrays((forward or network)(images.contiguous(memory_format=torch.channels_last)))


def on_device(batches: Iterable[dict[str, Any]], device: torch.device) -> Iterable[dict[str, Any]]:
    """The batches as their loader brings them to the device, if it has a way of its own (`EpochLoader.on_device`)."""
    return batches.on_device(device) if hasattr(batches, "on_device") else batches


def as_arrays(output: Any) -> Any:
    """Tensors as arrays, floating-point ones in 32 bits; tuples, lists and mappings keep their form."""
    if isinstance(output, Tensor):
        return (output.float() if output.is_floating_point() else output).cpu().numpy()
    if isinstance(output, Mapping):
        return {key: as_arrays(value) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(as_arrays, output))
    return type(output)(map(as_arrays, output)) if isinstance(output, list | tuple) else output


def predict(
    network: nn.Module, batches: Iterable[dict[str, Any]], device: torch.device, forward: Forward | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Batches {image (N, C, H, W), index (N,)} -> index (M,) and logits (M, K) in float32, in the order they came."""
    results = [(np.asarray(batch["index"]), output) for batch, output in run(network, batches, device, forward)]
    if not results:
        return np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
    indices, outputs = zip(*results, strict=True)
    return np.concatenate(indices), np.concatenate(outputs)


def mean_of_views(network: nn.Module, tta: Sequence[str] = ()) -> Forward:
    """A function of images that gives the mean output of `network` over the views `tta`; see `finetune.views`."""
    return (lambda images: views.averaged(network, images, tta)) if tta else network


def with_distances(network: Network, gaussian: FeatureGaussian | None, tta: Sequence[str] = ()) -> Forward:
    """A function of images that gives the outputs of `network` and the distances of its features (N,) from those of the
    training images. The distances are None where `gaussian` is. Outputs are the mean over the views `tta`, features are
    of the images as they are."""

    def forward(images: Tensor) -> tuple[Any, Tensor | None]:
        last = network.run(images, stop="head")
        size = (images.shape[-2], images.shape[-1])
        output: Any = network.run(last, start="head", size=size)
        if tta:
            output = views.averaged(network, images, tta, output)
        if gaussian is None:
            return output, None
        features = network.head_features(last, size).float().cpu().numpy()
        return output, torch.from_numpy(gaussian.distance(features)).float()

    return forward


def by_index(indices: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each index once, ascending: a sample repeated in a rank's last batch occurs twice."""
    unique, first = np.unique(indices, return_index=True)
    return unique, logits[first]
