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


class LinkSaved(NamedTuple):
    """What a chain keeps of one step: what the step itself keeps, and its output, if that is kept."""

    step: tuple[Any, ...]
    output: Leaf


@dataclass(frozen=True)
class Chain(Step[Params, tuple[LinkSaved, ...]]):
    """Steps in order. `save_output[i]`: the output of step i is saved. params: those of each step."""

    steps: tuple[Step[Any, Any], ...]
    save_output: tuple[bool, ...]

    @property
    def needs_output(self) -> bool:  # type: ignore[override]
        return self.steps[-1].needs_output

    def forward(
        self, x: Tensor, params: Params, observed: Observed, residual: ResidualSum | None = None
    ) -> tuple[Tensor, tuple[LinkSaved, ...]]:
        saved: list[LinkSaved] = []
        for step, step_params, save_output in zip(self.steps, params, self.save_output, strict=True):
            x, step_saved = step.forward(x, step_params, observed, residual if step is self.steps[-1] else None)
            saved.append(LinkSaved(step_saved, x if save_output else None))
        return x, tuple(saved)

    def replay(
        self, x: Tensor, params: Params, saved: tuple[LinkSaved, ...], residual: ResidualSum | None = None
    ) -> Tensor:
        first, last = self.segments()[-1]
        x = self.segment_input(first, x, saved)
        for i in range(first, last):
            x = self.steps[i].replay(x, params[i], saved[i].step)
        return self.steps[last].replay(x, params[last], saved[last].step, residual)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: Params,
        saved: tuple[LinkSaved, ...],
        needs_x: bool,
        needs: Params,
    ) -> tuple[Tensor | None, Params]:
        grads = list(tree_of_none(params))
        needs_input = need_input_grad(needs_x, needs)
        dx: Tensor | None = dy
        for first, last in reversed(self.segments()):
            if dx is None or not needs_input[last + 1]:
                return None, tuple(grads)
            inputs = [self.segment_input(first, x, saved)]  # of the steps from `first` on
            for i in range(first, last):
                inputs.append(self.steps[i].replay(inputs[-1], params[i], saved[i].step))
            y = y if last == len(self.steps) - 1 else saved[last].output
            for i in range(last, first - 1, -1):
                if dx is None or not needs_input[i + 1]:
                    return None, tuple(grads)
                dx, grads[i] = self.steps[i].backward(
                    dx, inputs[-1], y, params[i], saved[i].step, needs_input[i], needs[i]
                )
                y = inputs.pop()
        return dx, tuple(grads)

    def segments(self) -> list[tuple[int, int]]:
        """(first, last) step of each segment; it begins at x or at a kept map."""
        starts = [0] + [i + 1 for i, save_output in enumerate(self.save_output[:-1]) if save_output]
        return list(zip(starts, [s - 1 for s in starts[1:]] + [len(self.steps) - 1], strict=True))

    @staticmethod
    def segment_input(first: int, x: Tensor, saved: tuple[LinkSaved, ...]) -> Tensor:
        return x if first == 0 else saved[first - 1].output


class ResidualParams(NamedTuple):
    before: Params
    main: Params
    shortcut: Params


class ResidualSaved(NamedTuple):
    before: tuple[LinkSaved, ...]
    main: tuple[LinkSaved, ...]
    shortcut: tuple[LinkSaved, ...]


@dataclass(frozen=True)
class Residual(Step[ResidualParams, ResidualSaved]):
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
    ) -> tuple[Tensor, ResidualSaved]:
        assert residual is None
        saved = ResidualSaved((), (), ())
        inner = added = x
        if self.before is not None:
            inner, before_saved = self.before.forward(x, params.before, observed)
            saved = saved._replace(before=before_saved)
        if self.shortcut is not None:
            added, shortcut_saved = self.shortcut.forward(inner, params.shortcut, observed)
            saved = saved._replace(shortcut=shortcut_saved)
        y, main_saved = self.main.forward(inner, params.main, observed, ResidualSum(added, self.relu))
        return y, saved._replace(main=main_saved)

    def replay(
        self, x: Tensor, params: ResidualParams, saved: ResidualSaved, residual: ResidualSum | None = None
    ) -> Tensor:
        assert residual is None
        inner = x if self.before is None else self.before.replay(x, params.before, saved.before)
        added = x if self.shortcut is None else self.shortcut.replay(inner, params.shortcut, saved.shortcut)
        return self.main.replay(inner, params.main, saved.main, ResidualSum(added, self.relu))

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: ResidualParams,
        saved: ResidualSaved,
        needs_x: bool,
        needs: ResidualParams,
    ) -> tuple[Tensor | None, ResidualParams]:
        if self.relu:
            dy = aten.threshold_backward(dy, y, 0)
        inner = x if self.before is None else self.before.replay(x, params.before, saved.before)
        needs_inner = needs_x or any_needed(needs.before)
        before_grads, _, shortcut_grads = tree_of_none(params)
        dinner, main_grads = self.main.backward(dy, inner, None, params.main, saved.main, needs_inner, needs.main)
        if self.shortcut is not None:
            term, shortcut_grads = self.shortcut.backward(
                dy, inner, None, params.shortcut, saved.shortcut, needs_inner, needs.shortcut
            )
            dinner = add(dinner, term)
        dx = dinner
        if self.before is not None and dinner is not None:
            dx, before_grads = self.before.backward(
                dinner, x, inner, params.before, saved.before, needs_x, needs.before
            )
        if self.shortcut is None and needs_x:
            dx = add(dx, dy)
        return dx, ResidualParams(before_grads, main_grads, shortcut_grads)


def add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """total + term, written over total; either may be absent."""
    if total is None or term is None:
        return total if term is None else term
    return total.add_(term)
