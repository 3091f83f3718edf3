"""The fine-tuning plan: the trainable parts in each epoch, their learning rates, and the mode of their batch norms.

A network has parts, ordered from the stem to the head. New parts are those that no weights of a backbone fill: the
head, and a neck where there is one. The others are the backbone, whose depth is counted from its end.

A plan is a pure function of the epoch. It has no state, so resuming at any epoch gives the same state as an
uninterrupted run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from finetune.errors import FinetuneError, one_of

NORMS = {
    "train": (True, True),  # normalise by the batch and update the running statistics; scale and shift are trained
    "stats": (True, False),  # the same, but scale and shift are fixed
    "affine": (False, True),  # normalise by the fixed running statistics; scale and shift are trained
    "frozen": (False, False),  # a fixed linear map
}
"""Mode of a batch norm: (module in train mode, scale and shift trained)."""


@dataclass(frozen=True)
class Phase:
    """A range of epochs in which the same parts are trained."""

    epoch: int | float = 0
    """First epoch (from 0) in which the phase holds, until the next one begins; or its share of all epochs, such as
    0.25, rounded to whole epochs (`Plan.in_epochs`)."""
    train: tuple[str, ...] | list[str] = ("all",)
    """Parts that are trained, by name (stem, stage1 ..., head) or in groups: new (head, and neck if any), last (the
    last stage of the backbone), upper (its last two), backbone, all. Every other part is frozen."""
    rate: float = 1.0
    """Factor on the learning rate while the phase holds."""
    norms: str | None = None
    """What batch norms in learning parts do: train, stats, affine or frozen; by default as the plan says."""
    lr_decay: float | None = None
    """Factor on the rate for each part further from the new ones; by default as the plan says."""


@dataclass(frozen=True)
class PartState:
    """State of one part in one epoch."""

    trainable: bool
    rate: float
    norms: str


@dataclass(frozen=True)
class Plan:
    """Phases in time, and how rates and norms vary over the parts."""

    phases: dict[str, Phase] = field(default_factory=lambda: {"full": Phase()})
    """Named phases, in any order; one of them begins at epoch 0."""
    norms: str = "train"
    """What batch norms in learning parts do: train, stats, affine or frozen."""
    frozen_norms: str = "frozen"
    """What batch norms in frozen parts do: frozen, or stats to let the running statistics follow the new images."""
    lr_decay: float = 1.0
    """Factor on the learning rate for each part further from the new ones (layer-wise decay); 1 is none."""
    head_rate: float = 1.0
    """Factor on the learning rate of the new parts (the head, and a neck), whatever they start from."""

    def __post_init__(self) -> None:
        for argument in ("norms", "frozen_norms"):
            if getattr(self, argument) not in NORMS:
                raise one_of(f"finetuning.{argument}", getattr(self, argument), NORMS)
        _check_decay("finetuning.lr_decay", self.lr_decay)
        if not self.head_rate > 0:
            raise FinetuneError(f"finetuning.head_rate={self.head_rate} must be above 0.")
        if not self.phases:
            raise FinetuneError("finetuning.phases is empty: at least one phase must name the parts to train.")
        starts: dict[int | float, str] = {}
        for name, phase in self.phases.items():
            where = f"finetuning.phases.{name}"
            if not phase.train:
                raise FinetuneError(f"{where}.train=[] leaves nothing to train. Name parts, or use train=[all].")
            if phase.norms is not None and phase.norms not in NORMS:
                raise one_of(f"{where}.norms", phase.norms, NORMS)
            if not phase.rate > 0:
                raise FinetuneError(f"{where}.rate={phase.rate} must be above 0.")
            if phase.lr_decay is not None:
                _check_decay(f"{where}.lr_decay", phase.lr_decay)
            if phase.epoch < 0:
                raise FinetuneError(f"{where}.epoch={phase.epoch} must be 0 or more.")
            if isinstance(phase.epoch, float) and phase.epoch >= 1:
                raise FinetuneError(
                    f"{where}.epoch={phase.epoch} must be a whole number of epochs, or a share of them below 1."
                )
            if phase.epoch in starts:
                raise FinetuneError(
                    f"finetuning.phases.{starts[phase.epoch]} and finetuning.phases.{name} both begin at epoch "
                    f"{phase.epoch}. Give each its own first epoch."
                )
            starts[phase.epoch] = name
        if 0 not in starts:
            first = min(starts)
            raise FinetuneError(
                f"finetuning.phases.{starts[first]}.epoch={first} is the first phase: no phase covers epoch 0."
            )

    @property
    def has_shares(self) -> bool:
        """Whether a phase begins at a share of all epochs."""
        return any(isinstance(phase.epoch, float) and phase.epoch > 0 for phase in self.phases.values())

    def in_epochs(self, max_epochs: int, max_steps: int = -1) -> "Plan":
        """The plan of a training of that length: every phase begins at a whole epoch, one that begins at a share of
        them after 1 epoch at least.

        Raises:
            FinetuneError: the training is too short for its phases, or ends after so many steps, whatever its epochs.
        """
        if not self.has_shares:
            return self
        if max_steps > 0:
            raise FinetuneError(
                f"trainer.max_steps={max_steps} may end the training long before trainer.max_epochs, and phases of "
                "finetuning begin at shares of these. Give their epochs."
            )
        phases: dict[str, Phase] = {}
        for name, phase in self.phases.items():
            epoch = phase.epoch
            if isinstance(epoch, float):
                epoch = max(1, round(epoch * max_epochs)) if epoch > 0 else 0
            phases[name] = replace(phase, epoch=epoch)
        if len({phase.epoch for phase in phases.values()}) < len(phases):
            shares = ", ".join(f"{name} at {phase.epoch}" for name, phase in self.phases.items())
            raise FinetuneError(
                f"trainer.max_epochs={max_epochs} leaves a phase of finetuning no epoch ({shares}). Train longer, or "
                "give the phases epochs."
            )
        return replace(self, phases=phases)

    def phase(self, epoch: int) -> tuple[str, Phase]:
        """Name and phase that hold in `epoch`."""
        return max(
            ((name, phase) for name, phase in self.phases.items() if phase.epoch <= epoch), key=lambda p: p[1].epoch
        )

    def at(self, epoch: int, parts: Sequence[str], new: Sequence[str] | None = None) -> dict[str, PartState]:
        """The state of each of `parts` (ordered from the stem to the head) in `epoch`; `new` as for `groups`."""
        name, phase = self.phase(epoch)
        members = groups(parts, new)
        learning = expand(phase.train, parts, f"finetuning.phases.{name}.train", new)
        states = {}
        for part in parts:
            is_new = part in members["new"]
            depth = 0 if is_new else len(members["backbone"]) - members["backbone"].index(part)
            decay = self.lr_decay if phase.lr_decay is None else phase.lr_decay
            rate = phase.rate * decay**depth * (self.head_rate if is_new else 1.0)
            norms = (phase.norms or self.norms) if part in learning else self.frozen_norms
            states[part] = PartState(part in learning, rate if part in learning else 0.0, norms)
        return states

    def changes(self, parts: Sequence[str], new: Sequence[str] | None = None) -> bool:
        """Whether a part is frozen in some phases and trained in others."""
        learning = {frozenset(expand(phase.train, parts, "train", new)) for phase in self.phases.values()}
        return len(learning) > 1

    def check(
        self,
        parts: Sequence[str],
        max_epochs: int | None = None,
        new: Sequence[str] | None = None,
        filled: Sequence[str] = (),
    ) -> None:
        """Refuse phases that name no part of this network or begin after the last epoch, and new parts that no phase
        trains: they would stay random, except those `filled` by a file of a whole network."""
        learning: set[str] = set()
        for name, phase in self.phases.items():
            learning |= expand(phase.train, parts, f"finetuning.phases.{name}.train", new)
            if max_epochs is not None and 0 < max_epochs <= phase.epoch:
                raise FinetuneError(
                    f"finetuning.phases.{name}.epoch={phase.epoch} never comes: trainer.max_epochs={max_epochs}. "
                    "Train longer or begin the phase earlier."
                )
        if left := [part for part in groups(parts, new)["new"] if part not in learning and part not in filled]:
            raise FinetuneError(
                f"finetuning.phases train {sorted(learning)}: {', '.join(left)} would stay at random weights. "
                "Add new (the head, and the neck if any) to the train=[...] of a phase."
            )

    def never_trained(self, parts: Sequence[str], new: Sequence[str] | None = None) -> list[str]:
        """The parts that no phase trains."""
        learning = {part for phase in self.phases.values() for part in expand(phase.train, parts, "train", new)}
        return [part for part in parts if part not in learning]


def _check_decay(argument: str, value: float) -> None:
    if not 0 < value <= 1:
        raise FinetuneError(f"{argument}={value} must lie above 0 and be at most 1.")


def groups(parts: Sequence[str], new: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Name of a group -> its parts.

    Args:
        parts: all parts, ordered from the stem to the head.
        new: those of them that start from random weights; by default the one at the end.
    """
    new = list(parts[-1:]) if new is None else new
    backbone = [part for part in parts if part not in new]
    stages = backbone[1:] or backbone  # what comes first is the stem
    return {
        "all": list(parts),
        "backbone": backbone,
        "new": [part for part in parts if part in new],
        "last": stages[-1:],
        "upper": stages[-2:],
    }


def expand(
    names: Sequence[str], parts: Sequence[str], argument: str = "train", new: Sequence[str] | None = None
) -> set[str]:
    """Part names with the groups written out; a part takes precedence over a group of the same name."""
    known_groups = groups(parts, new)
    expanded: set[str] = set()
    for name in names:
        if name not in parts and name not in known_groups:
            raise one_of(argument, name, [*parts, *known_groups])
        expanded.update([name] if name in parts else known_groups[name])
    return expanded
