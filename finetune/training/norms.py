"""Running statistics of batch norms, computed again for weights that were averaged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.inference import eval_mode


@torch.no_grad()
def recompute_statistics(
    network: nn.Module, norms: Sequence[_NormBase], batches: Iterable[Mapping[str, Any]], device: torch.device
) -> None:
    """Set the running statistics of `norms` to the mean of those of all batches, each with the same weight.

    All else is in eval mode (Izmailov et al., 2018, section 3.3). With several ranks each passes its own batches, as
    many as the others; afterwards all hold the mean. Without norms or batches nothing changes.

    Args:
        batches: {image (N, C, H, W), ...}.
    """
    norms = [norm for norm in norms if norm.running_mean is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    dtype = next(value.dtype for value in network.parameters() if value.is_floating_point())
    with eval_mode(network):
        for norm in norms:
            norm.train()
        for number, batch in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (number + 1)  # the mean over the batches so far
            images = batch["image"].to(device, dtype, non_blocking=True)
            network(images.contiguous(memory_format=torch.channels_last))
    for norm, momentum, count in zip(norms, momenta, counts, strict=True):
        norm.momentum = momentum
        if count is not None and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.copy_(count)
        for value in (norm.running_mean, norm.running_var):
            if value is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(value)
                value.div_(dist.get_world_size())
