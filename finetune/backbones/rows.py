"""The rows of modules that networks are made of: what a block computes, as lists instead of forward methods.

Lean training and folding both read networks this way.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from finetune.backbones import blocks, cifar, densenet, legacy_senet, preact
from finetune.backbones.base import RELU

RESIDUAL = (
    blocks.BasicBlock,
    blocks.Bottleneck,
    legacy_senet.SEBasicBlock,
    legacy_senet.SEBottleneck,
    preact.PreActBasic,
    preact.PreActBottleneck,
)


def layers(module: nn.Module) -> list[nn.Module] | None:
    """What a module does, in order, if that is all it does; None if it is no row."""
    match module:
        case nn.Identity():
            return []
        case nn.Sequential():
            return list(module)
        case preact.Stage():
            return [module.blocks]
        case preact.DeepStem():
            first = [module.conv1, module.norm1, RELU, module.conv2, module.norm2, RELU]
            return [*first, module.conv3, module.pool]
        case preact.ConvShortcut():
            return [module.pool, module.conv]
        case cifar.PlainBlock():
            return [module.conv1, module.bn1, RELU, module.conv2, module.bn2, RELU]
        case densenet.Transition():  # pooling and 1x1 convolution commute exactly: pool first, a fourth of the products
            return [module.norm, RELU, module.pool, module.conv]
    return None


def flat(modules: Iterable[nn.Module], closed: Callable[[nn.Module], bool] = lambda module: False) -> list[nn.Module]:
    """Modules with the rows among them opened, all the way down; those that are `closed` stay as they are."""
    found: list[nn.Module] = []
    for module in modules:
        inner = None if closed(module) else layers(module)
        found += [module] if inner is None else flat(inner, closed)
    return found


@dataclass(frozen=True)
class Branches:
    """A residual block as rows: end(main(before(x)) + shortcut(before(x))).

    `before` is what the pre-activation blocks begin with; an identity shortcut (an empty row) takes x, not before(x).
    `end` is the ReLU behind the sum, where there is one.
    """

    before: list[nn.Module]
    main: list[nn.Module]
    shortcut: list[nn.Module]
    end: list[nn.Module]


def branches(block: nn.Module) -> Branches | None:
    """None for what is no residual block."""
    before: list[nn.Module] = []
    end: list[nn.Module] = [RELU]
    match block:
        case blocks.BasicBlock():
            main = [block.conv1, block.bn1, block.act1, block.conv2, block.bn2, block.se]
            end = [block.act2]
        case blocks.Bottleneck():
            main = [block.conv1, block.bn1, block.act1, block.conv2, block.bn2, block.act2]
            main += [block.conv3, block.bn3, block.se]
            end = [block.act3]
        case legacy_senet.SEBasicBlock():
            main = [block.conv1, block.bn1, RELU, block.conv2, block.bn2, RELU, block.se_module]
        case legacy_senet.SEBottleneck():
            main = [block.conv1, block.bn1, RELU, block.conv2, block.bn2, RELU]
            main += [block.conv3, block.bn3, block.se_module]
        case preact.PreActBasic():
            before, end = [block.norm1, RELU], []
            main = [block.conv1, block.norm2, RELU, block.conv2]
        case preact.PreActBottleneck():
            before, end = [block.norm1, RELU], []
            main = [block.conv1, block.norm2, RELU, block.conv2, block.norm3, RELU, block.conv3]
        case _:
            return None
    shortcut = [] if block.downsample is None else [block.downsample]
    return Branches(before, [*main, block.drop_path], shortcut, end)
