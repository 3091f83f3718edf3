"""Losses of labels (N, K): findings that may hold together, classes that exclude each other; NaN is unknown."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import FinetuneError

BALANCED = "balanced"


def check_label_smoothing(share: float) -> None:
    if not 0 <= share < 1:
        raise FinetuneError(f"loss.label_smoothing={share} must be at least 0 and below 1.")


def per_class(
    weights: dict[str, float] | str, argument: str, classes: list[str], balanced: np.ndarray
) -> Tensor | None:
    """One weight per class (K,) from `{class: number}`, from "balanced", or None where nothing was asked for."""
    if weights == BALANCED:
        return torch.tensor(balanced, dtype=torch.float32)
    if not isinstance(weights, dict):
        raise FinetuneError(f"{argument}={weights} is not known. Give balanced, or numbers by class: {{NAME: 4}}.")
    if unknown := sorted(set(weights) - set(classes)):
        raise FinetuneError(f"{argument} names {unknown}, which are not classes. Choose from {classes}.")
    if wrong := [f"{name}={value}" for name, value in weights.items() if not 0 < float(value) < math.inf]:
        raise FinetuneError(f"{argument} holds {', '.join(wrong)}: a weight is a number above 0.")
    return torch.tensor([float(weights.get(name, 1.0)) for name in classes]) if weights else None


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Sigmoid cross-entropy per class, for labels that do not exclude one another.

    Entries whose target is NaN count for nothing and get a gradient of exactly zero.
    """

    kind = "multilabel"
    pos_weight: dict[str, float] | str = field(default_factory=dict)
    """How much more a positive counts than a negative, per class (1 where not named), or `balanced`: as many times as
    train has more negatives than positives."""
    label_smoothing: float = field(default=0.0, kw_only=True)
    """Share of each known target that is moved to 1/2, from 0 up to 1: with 0.1 a 1 becomes 0.95 and a 0 becomes 0.05
    (Szegedy et al., 2015, for two classes)."""

    def __post_init__(self) -> None:
        check_label_smoothing(self.label_smoothing)

    def weights(self, classes: list[str], targets: np.ndarray) -> Tensor | None:  # (K,), from those of train (N, K)
        """Weights of the positives; a class without a positive in train has 1 where they are balanced."""
        positive, negative = np.nansum(targets, axis=0), np.nansum(1 - targets, axis=0)
        balanced = np.where(positive > 0, negative / np.maximum(positive, 1e-9), 1.0)
        return per_class(self.pos_weight, "loss.pos_weight", classes, np.where(balanced > 0, balanced, 1.0))

    def __call__(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logits, target (N, K), target 1, 0, in between or NaN -> sum of the losses, number of known entries."""
        known = ~target.isnan()
        # where() before the loss, so that no NaN enters the graph: NaN times zero is NaN in the backward pass
        target = torch.where(known, target, 0.0)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = self.entries(logits, target, weights)
        return torch.where(known, loss, 0.0).sum(), known.sum()

    def entries(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:  # (N, K) -> (N, K)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")


@dataclass(frozen=True)
class Asymmetric(BinaryCrossEntropy):
    """Sigmoid cross-entropy in which easy entries count less, easy negatives least of all (Ridnik et al., 2021).

    With p the probability and p_m = max(p - margin, 0):

        positives: -(1 - p)^gamma_positive log p        negatives: -p_m^gamma_negative log(1 - p_m)

    Equal gammas and no margin are the focal loss (Lin et al., 2017). Such losses reorder well and calibrate badly: the
    probabilities are no longer frequencies.
    """

    gamma_positive: float = 0.0
    """Focusing parameter for positives; 0 disables it."""
    gamma_negative: float = 4.0
    """The same for negatives."""
    margin: float = 0.05
    """Negatives with a probability below it count for nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma_positive", "gamma_negative"):
            if not 0 <= getattr(self, name) < math.inf:
                raise FinetuneError(f"loss.{name}={getattr(self, name)} must be 0 or more.")
        if not 0 <= self.margin < 1:
            raise FinetuneError(f"loss.margin={self.margin} must be at least 0 and below 1.")

    def entries(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
        positive = -F.logsigmoid(logits) * power(q, self.gamma_positive)
        if self.margin:
            q = (q + self.margin).clamp(max=1.0)
            negative = -torch.log(q) * power((p - self.margin).clamp(min=0.0), self.gamma_negative)
        else:
            negative = -F.logsigmoid(-logits) * power(p, self.gamma_negative)
        return target * (positive if weights is None else weights * positive) + (1 - target) * negative


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent with a derivative that is finite at 0, where that of a root is not."""
    if exponent == 0:
        return torch.ones_like(x)
    return x.clamp(min=1e-8) ** exponent if exponent < 1 else x**exponent


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy, where exactly one class holds. A row with an unknown target counts for nothing."""

    kind = "multiclass"
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes, from 0 up to 1 (Szegedy et al., 2015)."""
    class_weight: dict[str, float] | str = field(default_factory=dict)
    """Weight of an image of each class (1 where not named), or `balanced`: every class contributes equally in total."""

    def __post_init__(self) -> None:
        check_label_smoothing(self.label_smoothing)

    def weights(self, classes: list[str], targets: np.ndarray) -> Tensor | None:  # (K,), from those of train (N, K)
        """Weights of the classes; balanced ones have the mean 1 over the train images."""
        images = np.nansum(targets, axis=0)
        shown = max(1, int((images > 0).sum()))
        balanced = np.where(images > 0, images.sum() / (shown * np.maximum(images, 1e-9)), 1.0)
        return per_class(self.class_weight, "loss.class_weight", classes, balanced)

    def __call__(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logits, target (N, K), rows of target one-hot, soft or NaN -> sum of the losses, number of known rows."""
        known = ~target.isnan().any(dim=1)
        target = torch.where(known[:, None], target, 1.0 / target.shape[1])
        # torch weighs the term of each class, so the loss of a mixed target is the mixture of the losses
        loss = F.cross_entropy(logits, target, weights, label_smoothing=self.label_smoothing, reduction="none")
        return torch.where(known, loss, 0.0).sum(), known.sum()
