"""Losses of masks: cross-entropy, focal loss and soft Dice per image, and weighted sums of them.

    loss(logits (N, K, H, W), mask uint8 (N, H, W), known bool (N, K), overlapping) -> sum, count

The loss of an image is its mean over known pixels and regions, and `count` is the number of images with any. So the sum
of sums over the sum of counts is the mean over images, for any number of ranks and accumulated batches.

- Exclusive regions: a pixel of the mask is the number of its region, 255 is unknown. Softmax over K.
- Overlapping regions: bit k of a pixel is set where region k holds, for at most 8. Sigmoid of each.

What is unknown gets a gradient of exactly zero. Sums over pixels run in 32 bits or more: 16 end at 65,504.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.losses.classification import power

MASK = "mask"
"""`kind` of these losses, and the type of target that they are for."""
UNKNOWN = 255
"""Pixel of an exclusive mask about which nothing is known."""
MAX_OVERLAPPING = 8  # bits of a pixel


@dataclass(frozen=True)
class Batch:
    """Logits beside what is known of their pixels."""

    logits: Tensor
    """(N, K, H, W), 32 bits or more."""
    mask: Tensor
    """(N, H, W) int64."""
    pixels: Tensor
    """(N, 1, H, W) bool: known ones."""
    regions: Tensor
    """(N, K) bool: known ones."""
    overlapping: bool

    @property
    def counted(self) -> Tensor:  # (N,) bool
        """Images with a known pixel of a known region."""
        return self.regions.any(dim=1) & self.pixels.flatten(1).any(dim=1)

    def truth(self) -> Tensor:  # (N, K, H, W) bool
        """Which pixels are of which region; unknown ones of none."""
        numbers = torch.arange(self.logits.shape[1], device=self.mask.device)[:, None, None]
        if self.overlapping:
            return (self.mask[:, None] >> numbers) & 1 == 1
        return self.mask[:, None] == numbers

    def probabilities(self) -> Tensor:  # (N, K, H, W)
        """Softmax over regions, or the sigmoid of each; 0 where the pixel is unknown."""
        probabilities = self.logits.sigmoid() if self.overlapping else self.logits.softmax(dim=1)
        return torch.where(self.pixels, probabilities, 0.0)

    def mean_over_pixels(self, loss: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C)
        total = torch.where(self.pixels, loss, 0.0).sum(dim=(2, 3))
        return total / self.pixels.sum(dim=(2, 3)).clamp(min=1)


@dataclass(frozen=True)
class SegmentationLoss(ABC):
    """What losses of masks have in common."""

    kind = MASK

    def weights(self, classes: list[str], targets: np.ndarray) -> None:
        """No weights from the counts of train: a mean over each image's pixels needs none."""
        return None

    def __call__(self, logits: Tensor, mask: Tensor, known: Tensor, overlapping: bool = False) -> tuple[Tensor, Tensor]:
        """logits (N, K, H, W), mask uint8 (N, H, W), known bool (N, K) -> sum of the images' losses, number of images.

        Raises:
            FinetuneError: shapes that do not fit together, too many overlapping regions, a value that is no region.
        """
        batch = read_batch(logits, mask, known, overlapping)
        counted = batch.counted
        return torch.where(counted, self.per_image(batch), 0.0).sum(), counted.sum()

    @abstractmethod
    def per_image(self, batch: Batch) -> Tensor:
        """(N,) mean over known pixels and regions; finite where nothing is known."""


@dataclass(frozen=True)
class PixelFocal(SegmentationLoss):
    """Cross-entropy in which easy pixels count less: -(1 - p)^gamma log p, p that of the truth (Lin et al., 2017)."""

    gamma: float = 2.0
    """Focusing parameter; 0 is the cross-entropy."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise FinetuneError(f"loss.gamma={self.gamma} must be 0 or more.")

    def per_image(self, batch: Batch) -> Tensor:
        if batch.overlapping:
            sign = torch.where(batch.truth(), batch.logits, -batch.logits)
            loss = -F.logsigmoid(sign)  # (N, K, H, W)
            if self.gamma:
                loss = loss * power(torch.sigmoid(-sign), self.gamma)
            return mean_over_regions(batch.mean_over_pixels(loss), batch.regions)
        loss = F.cross_entropy(batch.logits, batch.mask, ignore_index=UNKNOWN, reduction="none")[:, None]
        if self.gamma:
            loss = loss * power(-torch.expm1(-loss), self.gamma)  # (N, 1, H, W)
        return batch.mean_over_pixels(loss)[:, 0]


@dataclass(frozen=True)
class PixelCrossEntropy(SegmentationLoss):
    """Cross-entropy of each pixel: softmax where regions exclude each other, sigmoid per region where they overlap."""

    def per_image(self, batch: Batch) -> Tensor:
        return PixelFocal(gamma=0.0).per_image(batch)


@dataclass(frozen=True)
class SoftDice(SegmentationLoss):
    """One less the Dice coefficient of probabilities p and truth t, per image and region (Milletari et al., 2016):

        1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)

    Milletari et al. sum the squares of p in the denominator; `squared` does so. A region that the image does not have
    counts too: its loss is sum(p) / (sum(p) + smooth).
    """

    smooth: float = 1.0
    """Pixels added above and below: the loss of an absent region is defined, and that of a few pixels not abrupt."""
    squared: bool = False
    """Whether the denominator sums squares."""
    background: bool = False
    """Whether the background of exclusive regions counts as a region."""

    def __post_init__(self) -> None:
        if not 0 < self.smooth < math.inf:
            raise FinetuneError(f"loss.smooth={self.smooth} must be above 0: an absent region has no Dice without it.")

    def per_image(self, batch: Batch) -> Tensor:
        p, t = batch.probabilities(), batch.truth()
        both = torch.where(t, p, 0.0).sum(dim=(2, 3))  # (N, K)
        size = (p.square() if self.squared else p).sum(dim=(2, 3)) + t.sum(dim=(2, 3))
        loss = 1 - (2 * both + self.smooth) / (size + self.smooth)
        if batch.overlapping or self.background:
            return mean_over_regions(loss, batch.regions)
        return mean_over_regions(loss[:, 1:], batch.regions[:, 1:])


@dataclass(frozen=True)
class WeightedSum(SegmentationLoss):
    """The sum of several losses of the same image, each times its factor."""

    terms: dict[str, SegmentationLoss]
    """Name -> loss."""
    factors: dict[str, float] = field(default_factory=dict)
    """Name -> factor; 1 where not named."""

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Mapping) or not self.terms:
            raise FinetuneError(f"loss.terms={self.terms} must name one loss or more.")
        if wrong := [name for name, term in self.terms.items() if not isinstance(term, SegmentationLoss)]:
            raise FinetuneError(f"loss.terms: {', '.join(wrong)} must be losses of masks (SegmentationLoss).")
        if unknown := sorted(set(self.factors) - set(self.terms)):
            raise FinetuneError(f"loss.factors names {unknown}, which are not terms. Choose from {list(self.terms)}.")
        if wrong := [f"{name}={value}" for name, value in self.factors.items() if not 0 <= value < math.inf]:
            raise FinetuneError(f"loss.factors holds {', '.join(wrong)}: a factor is a number of 0 or more.")
        if not any(self.factors.get(name, 1.0) for name in self.terms):
            raise FinetuneError(f"loss.factors={self.factors}: at least one factor must be above 0.")

    def per_image(self, batch: Batch) -> Tensor:
        losses = [self.factors.get(name, 1.0) * term.per_image(batch) for name, term in self.terms.items()]
        return torch.stack(losses).sum(dim=0)


def dice_and_cross_entropy() -> WeightedSum:
    """The default: soft Dice weighs small regions like large ones, cross-entropy has a gradient where Dice has little
    (Isensee et al., 2021)."""
    return WeightedSum({"cross_entropy": PixelCrossEntropy(), "dice": SoftDice()})


def mean_over_regions(values: Tensor, known: Tensor) -> Tensor:  # (N, K), (N, K) bool -> (N,)
    return torch.where(known, values, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def read_batch(logits: Tensor, mask: Tensor, known: Tensor, overlapping: bool) -> Batch:
    """The arguments of a loss, checked.

    Values of an exclusive mask are compared with K on the CPU alone: on another device the check would wait for it.
    """
    n, k = logits.shape[:2]
    if logits.ndim != 4 or mask.shape != (n, *logits.shape[2:]) or known.shape != (n, k):
        raise FinetuneError(
            f"logits {tuple(logits.shape)}, mask {tuple(mask.shape)} and known {tuple(known.shape)} do not fit "
            "together: they must be (N, K, H, W), (N, H, W) and (N, K)."
        )
    if overlapping and k > MAX_OVERLAPPING:
        raise FinetuneError(f"{k} overlapping regions: a mask of 8 bits holds at most {MAX_OVERLAPPING}.")
    mask = mask.long()
    pixels = torch.ones_like(mask, dtype=torch.bool) if overlapping else mask != UNKNOWN
    if not overlapping:
        if mask.device.type == "cpu" and ((wrong := mask[pixels]) >= k).any():
            raise FinetuneError(
                f"mask holds {int(wrong.max())}, which is no region: values are 0 to {k - 1}, or {UNKNOWN} for unknown."
            )
        known = known.all(dim=1, keepdim=True).expand(n, k)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return Batch(logits, mask, pixels[:, None], known, overlapping)
