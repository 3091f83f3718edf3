"""Running a trained network over pictures: the one loop behind evaluate, predict and the end of a fit."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.evaluation.classification.novelty import FeatureGaussian
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


@torch.inference_mode()
def predict(
    network: nn.Module,
    batches: Iterable[dict[str, Any]],
    device: torch.device,
    ask: Callable[[Tensor], Tensor] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Batches {image (N, C, H, W), index (N,)} -> index (M,) and logits (M, K) in float32, in the order they came.

    Full precision whatever the training used, so that the same picture has the same answer wherever it is asked.

    Args:
        ask: what is asked of the network instead of its logits, such as `network.features`.
    """
    network = network.to(device)
    indices: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    with evaluating(network):
        for batch in batches:
            images: Tensor = batch["image"].to(device, non_blocking=True)
            out = (ask or network)(images.contiguous(memory_format=torch.channels_last))
            logits.append(out.float().cpu().numpy())
            indices.append(np.asarray(batch["index"]))
    if not logits:
        return np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
    return np.concatenate(indices), np.concatenate(logits)


def with_distances(network: Network, gaussian: FeatureGaussian | None) -> Callable[[Tensor], Tensor]:
    """What to ask `network` for its logits and, in a last column, how far its features lie from what is typical."""

    def ask(images: Tensor) -> Tensor:  # (N, C, H, W) -> (N, K), or (N, K + 1)
        last = network.run(images, stop="head")
        logits = network.head(last).float().cpu()
        if gaussian is None:
            return logits
        features = network.head.features(last).float().cpu().numpy()  # type: ignore[operator]
        return torch.cat([logits, torch.from_numpy(gaussian.distance(features)).float()[:, None]], dim=1)

    return ask


def by_index(indices: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each index once, ascending: ranks whose last batch repeats a sample give it twice."""
    unique, first = np.unique(indices, return_index=True)
    return unique, logits[first]
