"""Training that keeps little for backward: `memory="lean"` or `"minimal"`.

Autograd keeps the input of every operator. The output of a norm or a ReLU is cheap to compute again, and a batch norm's
derivative needs only two numbers per channel of a map. So a row of modules is run here as one autograd function that
keeps only outputs of convolutions, and not all of those:

- `lean` keeps what is expensive to recompute: all but the outputs of widening 1x1 convolutions of few channels (the
  last of a bottleneck, the projection of a shortcut). Backward computes these again, or works on their narrow side:
  `projection`;
- `minimal` keeps the outputs of 3x3 convolutions only. The blocks of a residual stage are one function, which computes
  the 1x1 convolutions and the sums of the residual path again from the stage's input;
- both keep one buffer per dense block: `dense`.

What the network computes, its state dict and its running statistics are those of standard training; maps are stored
channels last inside. `steps`, `projection`, `chain` and `dense` know the derivatives, `trees` holds parameters and kept
tensors by name, `function` connects steps to autograd, `assemble` makes steps from modules, by what structure.py says
of a block.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finetune.backbones import native
from finetune.backbones.densenet import DenseBlock
from finetune.backbones.lean.assemble import Assembler, Unsupported, open_unhooked
from finetune.backbones.lean.function import apply_step, autocast_dtype
from finetune.backbones.lean.steps import Observed, Step
from finetune.backbones.maps import channels_last
from finetune.backbones.norms import Statistics
from finetune.backbones.structure import ResidualBlock, in_order

__all__ = ["run"]


def run(modules: Iterable[nn.Module], x: Tensor, memory: str) -> Tensor:
    """x through the modules in order, as `nn.Sequential` would, keeping for backward what `memory` allows.

    Without gradients, in eval mode and under tracing the modules are simply called. Modules with hooks and unknown
    modules are called too, with a warning. `auto` is `lean` where the compiled kernels make it no slower; it never
    warns.
    """
    modules = list(modules)
    observed = torch.jit.is_tracing() or nn.modules.module._has_any_global_hook()
    if not in_train_mode(modules) or not torch.is_grad_enabled() or observed:
        return in_order(modules, x)
    if memory == "auto" and not (native.supports(x) and autocast_dtype(x) == x.dtype):
        return in_order(modules, x)
    if torch.compiler.is_compiling():  # the compiler would choose what autograd keeps: do not compile these parts
        return torch.compiler.disable(run)(modules, x, memory)
    for unit in units(modules, memory):
        x = run_unit(unit, x, memory)
    return x


def in_train_mode(modules: Iterable[nn.Module]) -> bool:
    """Whether anything is in train mode, apart from ReLUs, which do the same in both modes."""
    return any(m.training and not isinstance(m, nn.ReLU) for module in modules for m in module.modules())


def units(modules: Iterable[nn.Module], memory: str) -> list[list[nn.Module]]:
    """The modules in groups, each of which becomes one autograd function.

    Consecutive layers outside of blocks form a unit, a block is a unit of its own; `minimal` joins residual blocks.
    """
    groups: list[list[nn.Module]] = []
    previous = ""
    for module in open_unhooked(modules):
        residual, dense = isinstance(module, ResidualBlock), isinstance(module, DenseBlock)
        kind = "residual" if residual else "dense" if dense else "layer"
        if kind == previous and (kind == "layer" or (kind == "residual" and memory == "minimal")):
            groups[-1].append(module)
        else:
            groups.append([module])
        previous = kind
    return groups


def run_unit(modules: list[nn.Module], x: Tensor, memory: str) -> Tensor:
    if not in_train_mode(modules) or not (
        x.requires_grad or any(p.requires_grad for m in modules for p in m.parameters())
    ):
        return in_order(modules, x)
    try:
        step, params, norms = assemble_unit(modules, "lean" if memory == "auto" else memory)
    except Unsupported as reason:
        if memory == "auto":
            return in_order(modules, x)
        names = ", ".join(sorted({type(module).__name__ for module in modules}))
        warnings.warn(f"memory={memory} does not hold for {len(modules)} modules ({names}): {reason}.", stacklevel=2)
        return in_order(modules, x)
    observed: Observed = {}
    y = apply_step(step, channels_last(x.to(autocast_dtype(x))), params, observed)
    for number, stats in observed.items():
        update_running(norms[number], stats)
    return y


def assemble_unit(
    modules: list[nn.Module], memory: str
) -> tuple[Step[Any, Any], tuple[Any, ...], list[nn.BatchNorm2d]]:
    """One step for a unit, its parameters, and the batch norms in it."""
    assembler = Assembler(memory)
    if len(modules) > 1:
        return *assembler.chain(modules), assembler.norms
    return *assembler.step(modules[0]), assembler.norms


@torch.no_grad()
def update_running(norm: nn.BatchNorm2d, stats: Statistics) -> None:
    """Update the running statistics, as a batch norm in train mode does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(stats.mean.to(norm.running_mean.dtype), momentum)
    unbiased = stats.var * (stats.pixels / (stats.pixels - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
