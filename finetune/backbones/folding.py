"""Folding: a faster copy of a trained network that only predicts; its batch norms are part of its convolutions."""

import copy
from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.backbones.base import Backbone
from finetune.backbones.blocks import DropPath
from finetune.backbones.densenet import ConcatLayer, DenseBlock
from finetune.backbones.folded import FoldedBlock, FoldedConv, FoldedDenseBlock, FoldedStage, ScaleShiftReLU
from finetune.backbones.structure import ResidualBlock, Row, in_order, is_sequence, open_rows
from finetune.errors import FinetuneError


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """An eval-only copy of a network that computes the same, up to rounding, in less time.

    A batch norm in eval mode is a scale and a shift per channel. After a convolution they become part of its weights
    (computed in float64); a norm that reads a sum or a concatenation becomes one pass, together with its ReLU. Residual
    blocks, dense blocks and transitions become modules that need fewer passes. Unknown modules stay as they are.

    `train()` on the copy raises a FinetuneError.
    """
    folded = copy.deepcopy(net).eval().requires_grad_(False)
    new: dict[nn.Module, nn.Module] = {}
    for row in rows_of(folded):
        for old, replacement in fold_row(row):
            new |= {old[0]: replacement, **{rest: nn.Identity() for rest in old[1:]}}
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, new.get(child, child))
    for parent in list(folded.modules()):
        if isinstance(parent, Backbone):
            parent.run = in_order
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


def rows_of(net: nn.Module) -> list[list[nn.Module]]:
    """The rows of the backbones in a network, and its outermost sequences outside of backbones, as in a head."""
    rows: list[list[nn.Module]] = []
    contained: set[nn.Module] = set()
    for module in net.modules():  # a module precedes those that it contains
        if isinstance(module, Backbone):
            rows += module.rows()
            contained.update(module.modules())
        elif is_sequence(module):
            if module not in contained:
                rows.append(list(module))
            contained.update(filter(is_sequence, module))
    return rows


def fold_row(row: Iterable[nn.Module]) -> list[tuple[list[nn.Module], nn.Module]]:
    """(consecutive modules, what replaces them) for what can be folded of a row."""
    folds: list[tuple[list[nn.Module], nn.Module]] = []
    rest = open_rows(row, closed=lambda module: isinstance(module, Row))
    while rest:
        module = rest.pop(0)
        if foldable(module):
            norm = rest.pop(0) if rest and normalises(rest[0]) else None
            relu = rest.pop(0) if rest and isinstance(rest[0], nn.ReLU) else None
            old = [m for m in (module, norm, relu) if m is not None]
            folds.append((old, FoldedConv(module, norm, relu=relu is not None)))  # type: ignore[arg-type]
        elif normalises(module) and rest and isinstance(rest[0], nn.ReLU):
            folds.append(([module, rest.pop(0)], ScaleShiftReLU(module)))  # type: ignore[arg-type]
        elif isinstance(module, ResidualBlock):
            main, shortcut, before, end = module.branches()
            block = FoldedBlock(folded_row(before), folded_row(main), folded_row(shortcut), relu=end is not None)
            folds.append(([module], block))
        elif isinstance(module, DenseBlock) and all(isinstance(layer, ConcatLayer) for layer in module.values()):
            folds.append(([module], FoldedDenseBlock(folded_row(layer) for layer in module.values())))  # type: ignore[arg-type]
        elif isinstance(module, Row):
            folds.append(([module], folded_row([module])))
    return folds


def folded_row(row: Iterable[nn.Module]) -> nn.Sequential:
    """A new sequence for a whole row, which contains what cannot be folded as it is."""
    modules = [module for module in open_rows(row) if not isinstance(module, DropPath)]
    folds = {old[0]: (replacement, len(old)) for old, replacement in fold_row(modules)}
    result = nn.Sequential()
    skip = 0
    for module in modules:
        if skip:
            skip -= 1
            continue
        replacement, count = folds.get(module, (module, 1))
        result.append(replacement)
        skip = count - 1
    return result


def foldable(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def normalises(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
