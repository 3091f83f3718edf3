"""Carrying out the plan on a network: gradients, norm modes, parameter groups."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.errors import FinetuneError
from finetune.plan import NORMS, PartState

NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def check_cover(network: nn.Module, parts: Mapping[str, list[nn.Module]]) -> None:
    """Check that every parameter and buffer lies in exactly one part, or a plan would silently skip some."""
    part_of: dict[int, str] = {}
    for part, modules in parts.items():
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                if id(tensor) in part_of:
                    raise FinetuneError(f"A tensor lies in the parts {part_of[id(tensor)]} and {part}.")
                part_of[id(tensor)] = part
    missing = [n for n, t in [*network.named_parameters(), *network.named_buffers()] if id(t) not in part_of]
    if missing:
        raise FinetuneError(f"No part holds {missing[:5]}.")


def set_gradients(parts: Mapping[str, list[nn.Module]], states: Mapping[str, PartState]) -> None:
    """`requires_grad` of every parameter, as in the plan."""
    for part, state in states.items():
        _, affine_trainable = NORMS[state.norms]
        for module in parts[part]:
            for child in module.modules():
                trainable = affine_trainable and state.trainable if isinstance(child, NORM_LAYERS) else state.trainable
                for parameter in child.parameters(recurse=False):
                    parameter.requires_grad_(trainable)
                    if not trainable:
                        parameter.grad = None  # with an old gradient, momentum and decay would move it once more


@torch.no_grad()
def scale_gradients(network: nn.Module, factor: Tensor) -> None:
    """Multiply every gradient by `factor` (no dimensions), in place."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


def set_modes(parts: Mapping[str, list[nn.Module]], states: Mapping[str, PartState]) -> None:
    """Train or eval mode of every module, for a network in training; call it after each `train()`.

    A frozen part is in eval mode, so that it has no dropout and its output depends on the image alone.
    """
    for part, state in states.items():
        norm_mode, _ = NORMS[state.norms]
        for module in parts[part]:
            module.train(state.trainable)
            for child in module.modules():
                if isinstance(child, _NormBase):
                    child.train(norm_mode)


def training_norms(parts: Mapping[str, list[nn.Module]], states: Mapping[str, PartState]) -> list[_NormBase]:
    """The batch norms that use and update the statistics of a batch."""
    return [
        child
        for part, state in states.items()
        if NORMS[state.norms][0]
        for module in parts[part]
        for child in module.modules()
        if isinstance(child, _NormBase)
    ]


def parameter_groups(parts: Mapping[str, list[nn.Module]], weight_decay: float) -> list[dict]:
    """Two groups per part, with weight decay and without (norms and biases): all of them, from the first step on.

    Groups added later would have no maximum rate in the scheduler, and could differ between ranks.
    """
    groups = []
    for part, modules in parts.items():
        decayed: list[nn.Parameter] = []
        not_decayed: list[nn.Parameter] = []
        for module in modules:
            for child in module.modules():
                for name, parameter in child.named_parameters(recurse=False):
                    is_norm_or_bias = isinstance(child, NORM_LAYERS) or name == "bias" or parameter.ndim <= 1
                    (not_decayed if is_norm_or_bias else decayed).append(parameter)
        for parameters, decay in ((decayed, weight_decay), (not_decayed, 0.0)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "part": part})
    return groups
