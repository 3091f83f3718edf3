"""Training that keeps little for backward: `memory="lean"` or `"minimal"`.

Autograd keeps the input of every operator. Of these, what a norm or a ReLU gave is cheap to do again, and what a batch
norm's derivative wants of a map is two numbers per channel. So a row of modules is run here as one autograd function
that keeps the outputs of convolutions alone, and of those not all:

- `lean` keeps what is dear to have again: all but the outputs of widening 1x1 convolutions of few channels (the last of
  a bottleneck, the projection of a shortcut), which are done again, or had from their narrow side: `steps.Projection`;
- `minimal` keeps the outputs of 3x3 convolutions only. The blocks of a residual stage are one function, which does the
  1x1 convolutions, and with them the sums on the residual path, again from the stage's input;
- both keep one buffer per dense block: `dense`.

What the network computes, its state dict and its running statistics are those of standard training; maps are stored
channels last inside. `steps` and `chain` are the mechanism, `function` is the bridge to autograd, `assemble` knows the
blocks.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from finetune.backbones import native
from finetune.backbones.base import in_order
from finetune.backbones.densenet import DenseBlock
from finetune.backbones.lean.assemble import Assembler, Unsupported, open_rows
from finetune.backbones.lean.function import Lean, autocast_dtype, flatten, form_of
from finetune.backbones.lean.steps import Observed, Step, Tree
from finetune.backbones.maps import channels_last
from finetune.backbones.norms import Statistics
from finetune.backbones.rows import RESIDUAL

__all__ = ["run"]


def run(modules: Iterable[nn.Module], x: Tensor, memory: str) -> Tensor:
    """x through the modules in order, as `nn.Sequential` would, keeping for backward what `memory` allows.

    Without gradients, in eval mode and under tracing it is that. Modules with hooks, and those not known here, are run
    as they are, with a warning. `auto` is `lean` where the compiled passes make it no slower, and never warns.
    """
    modules = list(modules)
    training = any(inner.training for module in modules for inner in module.modules())
    observed = torch.jit.is_tracing() or nn.modules.module._has_any_global_hook()
    if not training or not torch.is_grad_enabled() or observed:
        return in_order(modules, x)
    if memory == "auto" and not (native.takes(x) and autocast_dtype(x) == x.dtype):
        return in_order(modules, x)
    if torch.compiler.is_compiling():  # what autograd keeps is then the compiler's choice: leave these parts out of it
        return torch.compiler.disable(run)(modules, x, memory)
    for unit in units(modules, memory):
        x = run_unit(unit, x, memory)
    return x


def units(modules: Iterable[nn.Module], memory: str) -> list[list[nn.Module]]:
    """Modules in rows, each of which becomes one autograd function.

    Layers outside of blocks go together, a block is a row of its own; `minimal` joins residual blocks.
    """
    rows: list[list[nn.Module]] = []
    before = ""
    for module in open_rows(modules):
        kind = "residual" if isinstance(module, RESIDUAL) else "dense" if isinstance(module, DenseBlock) else "layer"
        if kind == before and (kind == "layer" or (kind == "residual" and memory == "minimal")):
            rows[-1].append(module)
        else:
            rows.append([module])
        before = kind
    return rows


def run_unit(modules: list[nn.Module], x: Tensor, memory: str) -> Tensor:
    training = any(inner.training for module in modules for inner in module.modules())
    if not training or not (x.requires_grad or any(p.requires_grad for m in modules for p in m.parameters())):
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
    y = Lean.apply(channels_last(x.to(autocast_dtype(x))), step, observed, form_of(params), *flatten(params))
    for place, stats in observed.items():
        update_running(norms[place], stats)
    return y


def assemble_unit(modules: list[nn.Module], memory: str) -> tuple[Step, Tree, list[nn.BatchNorm2d]]:
    """One step for a row of modules, its parameters, and the batch norms in it."""
    assembler = Assembler(memory)
    step, params = assembler.chain(modules) if len(modules) > 1 else assembler.step(modules[0])
    return step, params, assembler.norms


@torch.no_grad()
def update_running(norm: nn.BatchNorm2d, stats: Statistics) -> None:
    """What a batch norm in train mode does with the statistics of a batch."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(stats.mean.to(norm.running_mean.dtype), momentum)
    unbiased = stats.var * (stats.pixels / (stats.pixels - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
