"""Carrying out the plan on a network: gradients, norm modes, parameter groups."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from finetune.errors import FinetuneError
from finetune.plan import NORMS, PartState

NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def check_cover(network: nn.Module, parts: Mapping[str, list[nn.Module]]) -> None:
    """Every parameter and buffer of the network lies in exactly one part, or a plan would silently pass some by."""
    seen: dict[int, str] = {}
    for part, modules in parts.items():
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                if id(tensor) in seen:
                    raise FinetuneError(f"A tensor lies in the parts {seen[id(tensor)]} and {part}.")
                seen[id(tensor)] = part
    missing = [n for n, t in [*network.named_parameters(), *network.named_buffers()] if id(t) not in seen]
    if missing:
        raise FinetuneError(f"No part holds {missing[:5]}.")


def set_gradients(parts: Mapping[str, list[nn.Module]], states: Mapping[str, PartState]) -> None:
    """`requires_grad` of every parameter, as the plan has it."""
    for part, state in states.items():
        _, affine_trainable = NORMS[state.norms]
        for module in parts[part]:
            for child in module.modules():
                trainable = affine_trainable and state.trainable if isinstance(child, NORM_LAYERS) else state.trainable
                for parameter in child.parameters(recurse=False):
                    parameter.requires_grad_(trainable)
                    if not trainable:
                        parameter.grad = None  # an old gradient would let momentum and decay move it once more


@torch.no_grad()
def scale_gradients(network: nn.Module, factor: Tensor) -> None:
    """Multiply every gradient by `factor` (no dimensions), in place."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


def set_modes(parts: Mapping[str, list[nn.Module]], states: Mapping[str, PartState]) -> None:
    """Train or eval mode of every module, for a network that trains; to be called after each `train()`.

    A frozen part is in eval mode altogether, so that it drops nothing out and its output is a function of the image.
    """
    for part, state in states.items():
        norm_mode, _ = NORMS[state.norms]
        for module in parts[part]:
            module.train(state.trainable)
            for child in module.modules():
                if isinstance(child, _NormBase):
                    child.train(norm_mode)


def parameter_groups(parts: Mapping[str, list[nn.Module]], weight_decay: float) -> list[dict]:
    """Two groups per part, with weight decay and without (norms and biases): all of them, from the first step on.

    Groups that came later would find a scheduler without their maximum, and ranks that had not agreed on them.
    """
    groups = []
    for part, modules in parts.items():
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for module in modules:
            for child in module.modules():
                for name, parameter in child.named_parameters(recurse=False):
                    bare = isinstance(child, NORM_LAYERS) or name == "bias" or parameter.ndim <= 1
                    (plain if bare else decayed).append(parameter)
        for parameters, decay in ((decayed, weight_decay), (plain, 0.0)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "part": part})
    return groups
