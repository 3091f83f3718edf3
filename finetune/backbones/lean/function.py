"""The one autograd function: it runs a step and keeps for backward what the step returns, and nothing else."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finetune.backbones.lean.steps import Observed, Step
from finetune.backbones.lean.trees import tree_flatten, tree_of_none, tree_unflatten
from finetune.backbones.maps import channels_last


def apply_step(step: Step[Any, Any], x: Tensor, params: tuple[Any, ...], observed: Observed) -> Tensor:
    """y = step(x; params), with gradients; `observed` receives the batch statistics."""
    return Lean.apply(x, step, observed, tree_of_none(params), *tree_flatten(params))


class Lean(torch.autograd.Function):
    """All kept tensors go through save_for_backward, so that hooks see them and their versions are checked."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Step[Any, Any],
        observed: Observed,
        structure: tuple[Any, ...],
        *leaves: Tensor | None,
    ) -> Tensor:
        with without_autocast(x.device):
            y, saved = step.forward(x, tree_unflatten(structure, iter(leaves)), observed)
        y = channels_last(y)  # no copy where operators keep the layout; otherwise the next function would keep a copy
        ctx.save_for_backward(
            x if step.needs_input else None, y if step.needs_output else None, *leaves, *tree_flatten(saved)
        )
        ctx.step, ctx.params_structure, ctx.saved_structure = step, structure, tree_of_none(saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *leaves = ctx.saved_tensors
        remaining = iter(leaves)
        params, saved = tree_unflatten(ctx.params_structure, remaining), tree_unflatten(ctx.saved_structure, remaining)
        needs_x, _, _, _, *needs_leaves = ctx.needs_input_grad
        needs = tree_unflatten(ctx.params_structure, iter(needs_leaves))
        with without_autocast(dy.device):
            dx, grads = ctx.step.backward(channels_last(dy), x, y, params, saved, needs_x, needs)
        return dx, None, None, None, *tree_flatten(grads)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off: the steps cast for themselves, and backward may run inside the caller's autocast or outside."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which autocast computes a convolution of x."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)
