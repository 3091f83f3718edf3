"""The epochs of a plan in which the first parts of a network are frozen."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.plan import Plan


@dataclass(frozen=True)
class FrozenRange:
    """Epochs in which the same first parts are frozen."""

    epochs: range
    start: str
    """The first part that is not frozen, or the head."""


def frozen_ranges(plan: Plan, parts: Sequence[str], new: Sequence[str], max_epochs: int) -> list[FrozenRange]:
    """The epochs with frozen first parts, in their order; none of a single epoch."""
    starts: list[str | None] = []
    for epoch in range(max_epochs):
        states = plan.at(epoch, parts, new)
        frozen = [not states[part].trainable and states[part].norms == "frozen" for part in parts]
        starts.append(None if not frozen[0] else parts[frozen.index(False) if False in frozen else -1])
    ranges, first = [], 0
    for epoch in range(1, max_epochs + 1):
        if epoch == max_epochs or starts[epoch] != starts[first]:
            start = starts[first]
            if start is not None and epoch - first > 1:
                ranges.append(FrozenRange(range(first, epoch), start))
            first = epoch
    return ranges
