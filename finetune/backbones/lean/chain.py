"""Steps put together: in order, and with a shortcut.

A chain keeps only some of the maps between its steps, those that are expensive to compute. They cut it into segments.
`backward` begins with the last segment: it replays the segment's steps from the kept map, goes back through them one
by one, and continues with the segment before.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from finetune.backbones.lean.steps import Leaf, Observed, ResidualSum, Step, aten
from finetune.backbones.lean.trees import any_needed, need_input_grad, tree_of_none

Params = tuple[Any, ...]


class LinkKept(NamedTuple):
    """What a chain keeps of one step: what the step itself keeps, and its output, if that is kept."""

    step: tuple[Any, ...]
    output: Leaf


@dataclass(frozen=True)
class Chain(Step[Params, tuple[LinkKept, ...]]):
    """Steps in order. `keep[i]`: the output of step i is kept. params: those of each step."""

    steps: tuple[Step[Any, Any], ...]
    keep: tuple[bool, ...]

    @property
    def needs_output(self) -> bool:  # type: ignore[override]
        return self.steps[-1].needs_output

    def forward(
        self, x: Tensor, params: Params, observed: Observed, residual: ResidualSum | None = None
    ) -> tuple[Tensor, tuple[LinkKept, ...]]:
        kept: list[LinkKept] = []
        for step, step_params, keep in zip(self.steps, params, self.keep, strict=True):
            x, step_kept = step.forward(x, step_params, observed, residual if step is self.steps[-1] else None)
            kept.append(LinkKept(step_kept, x if keep else None))
        return x, tuple(kept)

    def replay(
        self, x: Tensor, params: Params, kept: tuple[LinkKept, ...], residual: ResidualSum | None = None
    ) -> Tensor:
        first, last = self.segments()[-1]
        x = self.segment_input(first, x, kept)
        for i in range(first, last):
            x = self.steps[i].replay(x, params[i], kept[i].step)
        return self.steps[last].replay(x, params[last], kept[last].step, residual)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: Params,
        kept: tuple[LinkKept, ...],
        needs_x: bool,
        needs: Params,
    ) -> tuple[Tensor | None, Params]:
        grads = list(tree_of_none(params))
        needs_input = need_input_grad(needs_x, needs)
        dx: Tensor | None = dy
        for first, last in reversed(self.segments()):
            if dx is None or not needs_input[last + 1]:
                return None, tuple(grads)
            inputs = [self.segment_input(first, x, kept)]  # of the steps from `first` on
            for i in range(first, last):
                inputs.append(self.steps[i].replay(inputs[-1], params[i], kept[i].step))
            y = y if last == len(self.steps) - 1 else kept[last].output
            for i in range(last, first - 1, -1):
                if dx is None or not needs_input[i + 1]:
                    return None, tuple(grads)
                dx, grads[i] = self.steps[i].backward(
                    dx, inputs[-1], y, params[i], kept[i].step, needs_input[i], needs[i]
                )
                y = inputs.pop()
        return dx, tuple(grads)

    def segments(self) -> list[tuple[int, int]]:
        """(first, last) step of each segment; it begins at x or at a kept map."""
        starts = [0] + [i + 1 for i, keep in enumerate(self.keep[:-1]) if keep]
        return list(zip(starts, [s - 1 for s in starts[1:]] + [len(self.steps) - 1], strict=True))

    @staticmethod
    def segment_input(first: int, x: Tensor, kept: tuple[LinkKept, ...]) -> Tensor:
        return x if first == 0 else kept[first - 1].output


class ResidualParams(NamedTuple):
    before: Params
    main: Params
    shortcut: Params


class ResidualKept(NamedTuple):
    before: tuple[LinkKept, ...]
    main: tuple[LinkKept, ...]
    shortcut: tuple[LinkKept, ...]


@dataclass(frozen=True)
class Residual(Step[ResidualParams, ResidualKept]):
    """y = main(before(x)) + shortcut, with a ReLU after the sum if `relu`.

    `before` is the norm at the beginning of a pre-activation block. A shortcut with a convolution reads its output; an
    identity (None) adds x.
    """

    before: Chain | None
    main: Chain
    shortcut: Chain | None
    relu: bool

    @property
    def needs_output(self) -> bool:  # type: ignore[override]
        return self.relu

    def forward(
        self, x: Tensor, params: ResidualParams, observed: Observed, residual: ResidualSum | None = None
    ) -> tuple[Tensor, ResidualKept]:
        assert residual is None
        kept = ResidualKept((), (), ())
        inner = added = x
        if self.before is not None:
            inner, before_kept = self.before.forward(x, params.before, observed)
            kept = kept._replace(before=before_kept)
        if self.shortcut is not None:
            added, shortcut_kept = self.shortcut.forward(inner, params.shortcut, observed)
            kept = kept._replace(shortcut=shortcut_kept)
        y, main_kept = self.main.forward(inner, params.main, observed, ResidualSum(added, self.relu))
        return y, kept._replace(main=main_kept)

    def replay(
        self, x: Tensor, params: ResidualParams, kept: ResidualKept, residual: ResidualSum | None = None
    ) -> Tensor:
        assert residual is None
        inner = x if self.before is None else self.before.replay(x, params.before, kept.before)
        added = x if self.shortcut is None else self.shortcut.replay(inner, params.shortcut, kept.shortcut)
        return self.main.replay(inner, params.main, kept.main, ResidualSum(added, self.relu))

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: ResidualParams,
        kept: ResidualKept,
        needs_x: bool,
        needs: ResidualParams,
    ) -> tuple[Tensor | None, ResidualParams]:
        if self.relu:
            dy = aten.threshold_backward(dy, y, 0)
        inner = x if self.before is None else self.before.replay(x, params.before, kept.before)
        needs_inner = needs_x or any_needed(needs.before)
        before_grads, _, shortcut_grads = tree_of_none(params)
        dinner, main_grads = self.main.backward(dy, inner, None, params.main, kept.main, needs_inner, needs.main)
        if self.shortcut is not None:
            term, shortcut_grads = self.shortcut.backward(
                dy, inner, None, params.shortcut, kept.shortcut, needs_inner, needs.shortcut
            )
            dinner = add(dinner, term)
        dx = dinner
        if self.before is not None and dinner is not None:
            dx, before_grads = self.before.backward(dinner, x, inner, params.before, kept.before, needs_x, needs.before)
        if self.shortcut is None and needs_x:
            dx = add(dx, dy)
        return dx, ResidualParams(before_grads, main_grads, shortcut_grads)


def add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """total + term, written over total; either may be absent."""
    if total is None or term is None:
        return total if term is None else term
    return total.add_(term)
