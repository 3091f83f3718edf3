"""The one autograd function: it runs a step, and keeps for backward what the step names and nothing else."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finetune.backbones.lean.steps import Observed, Step, Tree
from finetune.backbones.maps import channels_last


class Lean(torch.autograd.Function):
    """y = step(x; params). What is kept goes through save_for_backward: hooks see it, and its versions are checked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Step, observed: Observed, form: Tree, *params: Tensor | None) -> Tensor:
        with without_autocast(x.device):
            y, kept = step.forward(x, grow(form, iter(params)), observed)
        y = channels_last(y)  # as it is, where operators keep the layout; else the next function would keep a copy
        leaves = flatten(kept)
        ctx.save_for_backward(x if step.needs_input else None, y if step.needs_output else None, *params, *leaves)
        ctx.step, ctx.params_form, ctx.kept_form = step, form, form_of(kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *leaves = ctx.saved_tensors
        saved = iter(leaves)
        params, kept = grow(ctx.params_form, saved), grow(ctx.kept_form, saved)
        needs_x, _, _, _, *needs_params = ctx.needs_input_grad
        needs = grow(ctx.params_form, iter(needs_params))
        with without_autocast(dy.device):
            dx, grads = ctx.step.backward(channels_last(dy), x, y, params, kept, needs_x, needs)
        return dx, None, None, None, *flatten(grads)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The steps cast for themselves; backward may run inside the caller's autocast or outside of it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast wants a convolution of x to be computed in."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def flatten(tree: Tree) -> list[Any]:
    return [leaf for branch in tree for leaf in (flatten(branch) if isinstance(branch, list) else [branch])]


def form_of(tree: Tree) -> Tree:
    return [form_of(branch) if isinstance(branch, list) else None for branch in tree]


def grow(form: Tree, leaves: Any) -> Tree:
    """A tree of the given form, its leaves taken in order."""
    return [grow(branch, leaves) if isinstance(branch, list) else next(leaves) for branch in form]
