"""Learning-rate schedules: pure functions of the step, so that a resumed run has the same rates.

Each returns the factor on the optimizer's rate; parameter groups multiply it by the rate of their part (see `plan`).
"""

import math
from dataclasses import dataclass

from finetune.errors import FinetuneError


def _check_share(argument: str, value: float) -> None:
    if not 0 <= value < 1:
        raise FinetuneError(f"schedule.{argument}={value} must be at least 0 and below 1.")


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to `floor` (Loshchilov and Hutter, 2017, without restarts)."""

    warmup: float = 0.05
    """Share of all steps in which the rate rises from 0."""
    floor: float = 0.0
    """Factor at the last step."""

    def __post_init__(self) -> None:
        _check_share("warmup", self.warmup)
        _check_share("floor", self.floor)

    def factor(self, step: int, total: int) -> float:
        """Factor on the learning rate of step `step` (from 0) out of `total`."""
        rise = self.warmup * total
        if step < rise:
            return (step + 1) / (rise + 1)
        done = min(1.0, (step - rise) / max(1.0, total - rise))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class OneCycle:
    """Cosine up to the optimizer's rate and down again (Smith and Topin, 2018); momentum stays as it is."""

    rise: float = 0.3
    """Share of all steps in which the rate goes up."""
    start: float = 0.04
    """Factor at the first step (1/25, as in torch's OneCycleLR)."""
    end: float = 0.0001
    """Factor at the last step."""

    def __post_init__(self) -> None:
        for argument in ("rise", "start", "end"):
            _check_share(argument, getattr(self, argument))

    def factor(self, step: int, total: int) -> float:
        """Factor on the learning rate of step `step` (from 0) out of `total`."""
        top = max(1.0, self.rise * total - 1)
        if step <= top:
            low, done = self.start, step / top
        else:
            low, done = self.end, 1 - min(1.0, (step - top) / max(1.0, total - 1 - top))
        return low + (1 - low) * (1 - math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Step:
    """Divide the rate at given shares of the run, as in He et al. (2015), where it fell at 50 % and 75 %."""

    milestones: tuple[float, ...] | list[float] = (0.5, 0.75)
    """Shares of all steps after which the rate falls."""
    gamma: float = 0.1
    """Factor at each fall."""
    warmup: float = 0.0
    """Share of all steps in which the rate rises from 0."""

    def __post_init__(self) -> None:
        _check_share("warmup", self.warmup)
        for share in self.milestones:
            _check_share("milestones", share)
        if not 0 < self.gamma <= 1:
            raise FinetuneError(f"schedule.gamma={self.gamma} must lie above 0 and be at most 1.")

    def factor(self, step: int, total: int) -> float:
        """Factor on the learning rate of step `step` (from 0) out of `total`."""
        rise = self.warmup * total
        if step < rise:
            return (step + 1) / (rise + 1)
        return self.gamma ** sum(step >= share * total for share in self.milestones)


Schedule = Cosine | OneCycle | Step
