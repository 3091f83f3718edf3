"""Losses that know unknown labels.

A loss returns a SUM and a COUNT instead of a mean: over ranks whose batches hold different numbers of known labels,
only the sum of sums over the sum of counts is the mean of the whole batch.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import FinetuneError


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Sigmoid cross-entropy per class, for labels that do not exclude one another.

    Entries whose target is NaN count for nothing and get a gradient of exactly zero.
    """

    kind = "multilabel"
    pos_weight: dict[str, float] = field(default_factory=dict)
    """How much more a positive counts than a negative, per class; a class that is not named has 1."""

    def weights(self, classes: list[str]) -> Tensor | None:  # (K,)
        if unknown := sorted(set(self.pos_weight) - set(classes)):
            raise FinetuneError(f"loss.pos_weight names {unknown}, which are not classes. Choose from {classes}.")
        return torch.tensor([float(self.pos_weight.get(name, 1.0)) for name in classes]) if self.pos_weight else None

    def __call__(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logits, target (N, K), target 1, 0, in between or NaN -> sum of the losses, number of known entries."""
        known = ~target.isnan()
        # where() before the loss, so that no NaN enters the graph: NaN times zero is NaN in the backward pass
        loss = F.binary_cross_entropy_with_logits(
            logits, torch.where(known, target, 0.0), pos_weight=weights, reduction="none"
        )
        return torch.where(known, loss, 0.0).sum(), known.sum()


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy, where exactly one class holds. A row with an unknown target counts for nothing."""

    kind = "multiclass"
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, from 0 up to 1 (Szegedy et al., 2015)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise FinetuneError(f"loss.label_smoothing={self.label_smoothing} must be at least 0 and below 1.")

    def weights(self, classes: list[str]) -> Tensor | None:
        return None

    def __call__(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logits, target (N, K), rows of target one-hot, soft or NaN -> sum of the losses, number of known rows."""
        known = ~target.isnan().any(dim=1)
        loss = F.cross_entropy(
            logits,
            torch.where(known[:, None], target, 1.0 / target.shape[1]),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return torch.where(known, loss, 0.0).sum(), known.sum()


Loss = BinaryCrossEntropy | CrossEntropy


def auto(kind: str) -> Loss:
    """The loss that goes with the labels: sigmoid for several findings at once, softmax for one class of many."""
    return BinaryCrossEntropy() if kind == "multilabel" else CrossEntropy()


def check_kind(loss: Loss, kind: str) -> None:
    """Refuse a loss that would make `prob_<class>` mean something else than what the labels are."""
    if loss.kind != kind:
        name = {"multilabel": "bce", "multiclass": "cross_entropy"}
        raise FinetuneError(f"loss={name[loss.kind]} does not fit {kind} labels. Use loss={name[kind]} or loss=auto.")
