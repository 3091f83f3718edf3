"""Trees of tensors: tuples, most of them named, whose items are leaves or trees again.

A step uses one tuple type for its parameters (leaves: tensors), for which of them need a gradient (bools), and for
their gradients (tensors or None). Autograd takes flat lists. `torch.utils._pytree` could do the same, but takes about
ten times as long, which counts several times per block and step.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

Tree = TypeVar("Tree", bound=tuple[Any, ...])


def tree_flatten(tree: tuple[Any, ...]) -> list[Any]:
    """The leaves, depth first. None is a leaf, an empty tuple has none."""
    leaves: list[Any] = []
    for item in tree:
        if isinstance(item, tuple):
            leaves += tree_flatten(item)
        else:
            leaves.append(item)
    return leaves


def tree_of_none(tree: Tree) -> Tree:
    """A tree with None for every leaf: the structure for `tree_unflatten`, and the gradients of what needs none."""
    return rebuild(tree, [tree_of_none(item) if isinstance(item, tuple) else None for item in tree])


def tree_unflatten(structure: Tree, leaves: Iterator[Any]) -> Tree:
    """A tree of the given structure, with as many leaves as it has, taken in order."""
    items = [tree_unflatten(item, leaves) if isinstance(item, tuple) else next(leaves) for item in structure]
    return rebuild(structure, items)


def rebuild(like: Tree, items: list[Any]) -> Tree:
    """The items in a tuple of the same type."""
    return type(like)(*items) if hasattr(like, "_fields") else tuple(items)  # type: ignore[return-value]


def any_needed(needs: tuple[Any, ...] | bool | None) -> bool:
    """Whether any leaf of a tree of bools is true."""
    return any(any_needed(item) for item in needs) if isinstance(needs, tuple) else bool(needs)


def need_input_grad(needs_x: bool, needs: tuple[Any, ...]) -> list[bool]:
    """For steps in order: whether the gradient of step i's input is needed, for x or for a parameter before step i.

    The list has one item more than there are steps: the last is for the output of the last step.
    """
    needed = [needs_x]
    for step_needs in needs:
        needed.append(needed[-1] or any_needed(step_needs))
    return needed
