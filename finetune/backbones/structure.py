"""The structure of blocks as data. Their forward methods, lean training and folding all read it from here.

A new block is one class, derived from `Row` (modules in order), from `ResidualBlock` (a main branch and a shortcut) or
from `densenet.ConcatLayer`. It is then trained with `memory="lean"` and folded without a change anywhere else. Every
ReLU is a module of its own, so that it can be replaced, and a hook be registered on it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeGuard, final

from torch import Tensor, nn


def in_order(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


class Row(nn.Sequential):
    """A block that runs its submodules in the order in which they were assigned. Folding makes one sequence of it."""

    def cheapest_order(self) -> list[nn.Module]:
        """The submodules in the order that needs the fewest operations; the result may differ by rounding."""
        return list(self)


class Branches(NamedTuple):
    """A residual block: end(main(before(x)) + shortcut(before(x))).

    A shortcut that is empty, or holds nothing but `nn.Identity`, adds x instead of before(x).
    """

    main: Sequence[nn.Module]
    shortcut: Sequence[nn.Module] = ()
    before: Sequence[nn.Module] = ()
    """The norm and ReLU at the beginning of a pre-activation block, which both branches read."""
    end: nn.ReLU | None = None
    """The ReLU applied to the sum."""


class ResidualBlock(nn.Module):
    """A block with a shortcut. `branches` says all that it computes."""

    out_channels: int

    adds_in_place = True
    """Whether the sum may overwrite the main branch's output, which a forward hook on its last module may have kept."""

    def branches(self) -> Branches:
        raise NotImplementedError

    def zero_init_last(self) -> None:
        """Initialise the main branch's last layer with zeros, so that the branch adds nothing at first."""
        raise NotImplementedError

    @final  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, out_channels, H / stride, W / stride)
        main, shortcut, before, end = self.branches()
        inner = in_order(before, x)
        out = in_order(main, inner)
        projects = before and open_rows(shortcut)  # without `before`, x and inner are the same
        added = in_order(shortcut, inner if projects else x)
        out = out.add_(added) if self.adds_in_place else out + added
        return out if end is None else end(out)


class Recomputable(nn.Module):
    """A module that is cheap, deterministic and without state: lean training computes it again in backward."""


def is_sequence(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether the module runs its children in order, and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def open_rows(
    modules: Iterable[nn.Module], closed: Callable[[nn.Module], bool] = lambda module: False
) -> list[nn.Module]:
    """The modules in order, sequences replaced by their contents, recursively, and identities left out.

    Modules for which `closed` is true stay as they are. A `Row` is opened in its cheapest order.
    """
    opened: list[nn.Module] = []
    for module in modules:
        if closed(module):
            opened.append(module)
        elif is_sequence(module):
            opened += open_rows(module.cheapest_order() if isinstance(module, Row) else module, closed)
        elif not isinstance(module, nn.Identity):
            opened.append(module)
    return opened
