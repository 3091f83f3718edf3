"""Steps put together: one after the other, and with a shortcut around them.

Of a chain only some maps are kept, those that are dear to compute. `backward` goes through it from the end: it replays
the steps from the last kept map on, takes them back one by one, and goes on to the stretch before.
"""

from dataclasses import dataclass

from torch import Tensor

from finetune.backbones.lean.steps import Observed, Onto, Step, Tree, aten, nones, wanted


@dataclass(frozen=True)
class Chain(Step):
    """Steps in order. `keep[i]`: the output of step i is kept. params: one tree per step."""

    steps: tuple[Step, ...]
    keep: tuple[bool, ...]

    @property
    def needs_output(self) -> bool:  # type: ignore[override]
        return self.steps[-1].needs_output

    def forward(self, x: Tensor, params: Tree, observed: Observed, onto: Onto | None = None) -> tuple[Tensor, Tree]:
        kept: Tree = []
        for step, p, keep in zip(self.steps, params, self.keep, strict=True):
            x, k = step.forward(x, p, observed, onto if step is self.steps[-1] else None)
            kept.append([k, x if keep else None])
        return x, kept

    def replay(self, x: Tensor, params: Tree, kept: Tree, onto: Onto | None = None) -> Tensor:
        first, last = self.stretches()[-1]
        x = self.start(first, x, kept)
        for i in range(first, last):
            x = self.steps[i].replay(x, params[i], kept[i][0])
        return self.steps[last].replay(x, params[last], kept[last][0], onto)

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        grads = nones(params)
        dx: Tensor | None = dy
        for first, last in reversed(self.stretches()):
            if dx is None or not (needs_x or wanted(needs[: last + 1])):
                return None, grads
            maps = [self.start(first, x, kept)]
            for i in range(first, last):
                maps.append(self.steps[i].replay(maps[-1], params[i], kept[i][0]))
            y = y if last == len(self.steps) - 1 else kept[last][1]
            for i in range(last, first - 1, -1):
                goes_on = needs_x or wanted(needs[:i])
                if not goes_on and not wanted(needs[i]):
                    return None, grads
                dx, grads[i] = self.steps[i].backward(dx, maps[-1], y, params[i], kept[i][0], goes_on, needs[i])
                if dx is None:
                    return None, grads
                y = maps.pop()
        return dx, grads

    def stretches(self) -> list[tuple[int, int]]:
        """(first, last) step of each stretch that begins at x or at a kept map."""
        starts = [0] + [i + 1 for i, keep in enumerate(self.keep[:-1]) if keep]
        return list(zip(starts, [s - 1 for s in starts[1:]] + [len(self.steps) - 1], strict=True))

    @staticmethod
    def start(first: int, x: Tensor, kept: Tree) -> Tensor:
        return x if first == 0 else kept[first - 1][1]


@dataclass(frozen=True)
class Residual(Step):
    """y = main(before(x)) + shortcut, and a ReLU behind it; params: a tree for each of before, main, shortcut.

    `before` is the norm that the pre-activation blocks begin with: a shortcut with a convolution reads what it gives,
    an identity (None) reads x.
    """

    before: Step | None
    main: Step
    shortcut: Step | None
    relu: bool

    @property
    def needs_output(self) -> bool:  # type: ignore[override]
        return self.relu

    def forward(self, x: Tensor, params: Tree, observed: Observed, onto: Onto | None = None) -> tuple[Tensor, Tree]:
        assert onto is None
        kept: Tree = [[], [], []]
        inner, around = x, x
        if self.before is not None:
            inner, kept[0] = self.before.forward(x, params[0], observed)
        if self.shortcut is not None:
            around, kept[2] = self.shortcut.forward(inner, params[2], observed)
        y, kept[1] = self.main.forward(inner, params[1], observed, Onto(around, self.relu))
        return y, kept

    def replay(self, x: Tensor, params: Tree, kept: Tree, onto: Onto | None = None) -> Tensor:
        assert onto is None
        inner = x if self.before is None else self.before.replay(x, params[0], kept[0])
        around = x if self.shortcut is None else self.shortcut.replay(inner, params[2], kept[2])
        return self.main.replay(inner, params[1], kept[1], Onto(around, self.relu))

    def backward(
        self, dy: Tensor, x: Tensor, y: Tensor | None, params: Tree, kept: Tree, needs_x: bool, needs: Tree
    ) -> tuple[Tensor | None, Tree]:
        if self.relu:
            dy = aten.threshold_backward(dy, y, 0)
        inner = x if self.before is None else self.before.replay(x, params[0], kept[0])
        needs_inner = needs_x or wanted(needs[0])
        dinner, main_grads = self.main.backward(dy, inner, None, params[1], kept[1], needs_inner, needs[1])
        before_grads, around_grads = nones(params[0]), nones(params[2])
        if self.shortcut is not None:
            d, around_grads = self.shortcut.backward(dy, inner, None, params[2], kept[2], needs_inner, needs[2])
            dinner = add(dinner, d)
        dx = dinner
        if self.before is not None and dinner is not None:
            dx, before_grads = self.before.backward(dinner, x, inner, params[0], kept[0], needs_x, needs[0])
        if self.shortcut is None and needs_x:
            dx = add(dx, dy)
        return dx, [before_grads, main_grads, around_grads]


def add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """total += term, where both are there; total is ours to change."""
    if total is None or term is None:
        return total if term is None else term
    return total.add_(term)
