"""Folding: a trained network as one that only predicts, faster, its batch norms part of its convolutions."""

import copy
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.backbones.base import RELU, Backbone
from finetune.backbones.blocks import DropPath
from finetune.backbones.cifar import PlainBlock
from finetune.backbones.densenet import DenseBlock, DenseLayer, Transition
from finetune.backbones.folded import FoldedBlock, FoldedConv, FoldedDenseBlock, FoldedStage, ScaleShiftReLU
from finetune.backbones.preact import DeepStem
from finetune.backbones.rows import branches, flat, layers
from finetune.errors import FinetuneError

ROWS = (Transition, DeepStem, PlainBlock)
"""Rows that have a forward method of their own, with ReLUs in it: they become sequences of folded modules."""


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """An eval-only copy of a network that gives the same answers, but for rounding, in less time.

    A batch norm in eval mode is a scale and a shift per channel. Behind a convolution they become part of its weights
    (computed in float64); a norm that reads a sum or a concatenation becomes one pass, together with its ReLU. Residual
    blocks, dense blocks and transitions become modules that do their work in fewer passes. What is not known stays.

    `train()` on the copy raises a FinetuneError.
    """
    folded = copy.deepcopy(net).eval().requires_grad_(False)
    inside: set[nn.Module] = set()
    new: dict[nn.Module, nn.Module] = {}
    for module in list(folded.modules()):
        rows: list[list[nn.Module]] = []
        if isinstance(module, Backbone):
            rows = backbone_rows(module)
            inside.update(module.modules())
        elif isinstance(module, nn.Sequential) and module not in inside:  # of a head
            rows = [list(module)]
        for row in rows:
            for old, replacement in fold_row(row):
                new |= {old[0]: replacement, **{rest: nn.Identity() for rest in old[1:]}}
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, new.get(child, child))
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Sequential and any(isinstance(block, FoldedBlock) for block in child):
                setattr(parent, name, FoldedStage(*child))
        if isinstance(parent, Backbone) or parent is folded:
            parent.train = partial(eval_only, parent)  # type: ignore[method-assign]
    return folded


def eval_only(folded: nn.Module, mode: bool = True) -> nn.Module:
    """The `train` of a folded network."""
    if mode:
        raise FinetuneError(
            "train() is not possible here: this is a folded copy, whose batch norms are part of its convolutions. "
            "Train the network that it was made from, and fold that again."
        )
    return folded


def backbone_rows(net: Backbone) -> list[list[nn.Module]]:
    """The rows of modules that stem, stages and tail run; from then on they run them without rectifying twice."""
    rows: list[list[nn.Module]] = []

    def record(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
        rows.append(list(modules))
        return x

    net.run = record
    x = net.forward_stem(torch.empty(0))
    for number in range(1, net.num_stages + 1):
        x = net.forward_stage(number, x)
    net.forward_tail(x)
    net.run = in_order_rectified_once
    return rows


def in_order_rectified_once(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Modules in order; the ReLU behind a folded norm is part of what took its place."""
    before: nn.Module | None = None
    for module in modules:
        if not (module is RELU and isinstance(before, nn.Identity | ScaleShiftReLU)):
            x = module(x)
        before = module
    return x


def fold_row(row: Iterable[nn.Module]) -> list[tuple[list[nn.Module], nn.Module]]:
    """(modules that belong together, what takes their place) for what can be folded of a row."""
    found: list[tuple[list[nn.Module], nn.Module]] = []
    rest = flat(row, closed=lambda module: isinstance(module, ROWS))
    while rest:
        module = rest.pop(0)
        if foldable(module):
            norm = rest.pop(0) if rest and normalises(rest[0]) else None
            relu = rest.pop(0) if rest and isinstance(rest[0], nn.ReLU) else None
            old = [m for m in (module, norm, relu) if m is not None]
            found.append((old, FoldedConv(module, norm, relu=relu is not None)))  # type: ignore[arg-type]
        elif normalises(module) and rest and isinstance(rest[0], nn.ReLU):
            found.append(([module, rest.pop(0)], ScaleShiftReLU(module)))  # type: ignore[arg-type]
        elif (block := branches(module)) is not None:
            parts = [folded_row(part) for part in (block.before, block.main, block.shortcut)]
            found.append(([module], FoldedBlock(*parts, relu=bool(block.end))))
        elif isinstance(module, DenseBlock):
            dense = FoldedDenseBlock(folded_dense_layer(layer) for layer in module.values())
            found.append(([module], dense))
        elif isinstance(module, ROWS):
            found.append(([module], folded_row(layers(module) or [])))
    return found


def folded_row(row: Iterable[nn.Module]) -> nn.Sequential:
    """A whole row anew, with what cannot be folded in its place."""
    modules = [module for module in flat(row) if not isinstance(module, DropPath)]
    new = {old[0]: (replacement, len(old)) for old, replacement in fold_row(modules)}
    result = nn.Sequential()
    skip = 0
    for module in modules:
        if skip:
            skip -= 1
            continue
        replacement, count = new.get(module, (module, 1))
        result.append(replacement)
        skip = count - 1
    return result


def folded_dense_layer(layer: nn.Module) -> nn.Sequential:
    if isinstance(layer, DenseLayer):
        return folded_row([layer.norm1, RELU, layer.conv1, layer.norm2, RELU, layer.conv2])
    return folded_row([layer.get_submodule("norm1"), RELU, layer.get_submodule("conv1")])


def foldable(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def normalises(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
