"""Running a trained network over pictures: the one loop behind evaluate, predict and the end of a fit."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.evaluation.novelty import FeatureGaussian
from finetune.network import Network


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
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


Ask = Callable[[Tensor], Any]
"""What is asked of a network: images (N, C, H, W), on its device -> tensors, or tuples, lists, mappings of them."""


@torch.inference_mode()
def run(
    network: nn.Module, batches: Iterable[dict[str, Any]], device: torch.device, ask: Ask | None = None
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each batch with what the network answers, as arrays, floating ones in 32 bits.

    Full precision whatever the training used, so that the same image has the same answer wherever it is asked.

    Args:
        batches: {image (N, C, H, W), ...}.
        ask: what is asked of the network instead of its outputs, such as `network.features`.
    """
    network = network.to(device)
    with evaluating(network):
        for batch in batches:
            images: Tensor = batch["image"].to(device, non_blocking=True)
            yield batch, as_arrays((ask or network)(images.contiguous(memory_format=torch.channels_last)))


def as_arrays(output: Any) -> Any:
    """Tensors as arrays, floating ones in 32 bits; tuples, lists and mappings keep their form."""
    if isinstance(output, Tensor):
        return (output.float() if output.is_floating_point() else output).cpu().numpy()
    if isinstance(output, Mapping):
        return {key: as_arrays(value) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(as_arrays, output))
    return type(output)(map(as_arrays, output)) if isinstance(output, list | tuple) else output


def predict(
    network: nn.Module, batches: Iterable[dict[str, Any]], device: torch.device, ask: Ask | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Batches {image (N, C, H, W), index (N,)} -> index (M,) and logits (M, K) in float32, in the order they came."""
    answers = [(np.asarray(batch["index"]), output) for batch, output in run(network, batches, device, ask)]
    if not answers:
        return np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
    indices, outputs = zip(*answers, strict=True)
    return np.concatenate(indices), np.concatenate(outputs)


def with_distances(network: Network, gaussian: FeatureGaussian | None) -> Ask:
    """What to ask `network` for its outputs and the distances of its features from those of the training images (N,),
    None where these are not known."""

    def ask(images: Tensor) -> tuple[Any, Tensor | None]:
        last = network.run(images, stop="head")
        size = (images.shape[-2], images.shape[-1])
        output = network.run(last, start="head", size=size)
        if gaussian is None:
            return output, None
        features = network.head_features(last, size).float().cpu().numpy()
        return output, torch.from_numpy(gaussian.distance(features)).float()

    return ask


def by_index(indices: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each index once, ascending: ranks whose last batch repeats a sample give it twice."""
    unique, first = np.unique(indices, return_index=True)
    return unique, logits[first]
