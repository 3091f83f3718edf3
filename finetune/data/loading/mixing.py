"""Mixup and CutMix: two training images and their targets become one, as a function of (seed, epoch, row) alone.

Partner, share and place are drawn from (seed, epoch, row), and the partner is augmented as it is by itself in that
epoch. So a mixed batch is the same for any number of workers and ranks, and after a resume. The reference
implementations mix a batch with its own permutation and one share for all; here each image has its own of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from finetune.errors import FinetuneError

STREAM = 0x6D6978
"""Keeps these draws apart from those of the order of an epoch, which follow from (seed, epoch)."""


class Blend(NamedTuple):
    """How much of the partner an image takes, and from where."""

    share: float
    """Of the partner, from 0 to 1."""
    centre: tuple[float, float] | None = None
    """Where the partner's rectangle is, as parts of width and height; None where all pixels are mixed."""

    def apply(self, image: torch.Tensor, partner: torch.Tensor) -> float:
        """Mix `partner` (C, H, W) into `image` (C, H, W), in place; the share that it really has."""
        if self.centre is None:
            image.mul_(1 - self.share).add_(partner * self.share)
            return self.share
        height, width = image.shape[-2:]
        # Yun et al. (2019), appendix: sides of sqrt(share), a centre anywhere, what lies outside is cut
        (left, right), (top, bottom) = (
            _cut(part, self.share, side) for part, side in zip(self.centre, (width, height), strict=True)
        )
        image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        return (bottom - top) * (right - left) / (height * width)


def _cut(centre: float, share: float, side: int) -> tuple[int, int]:
    """First pixel and the one behind the last, as torchvision.transforms.v2.CutMix rounds them."""
    middle, half = int(centre * side), int(0.5 * math.sqrt(share) * side)
    return max(0, middle - half), min(side, middle + half)


class Mixing(Protocol):
    """Which images are mixed, and how."""

    @property
    def p(self) -> float:
        """Part of the training images that is mixed with another."""
        ...

    def draw(self, random: np.random.Generator) -> Blend:
        """A blend that depends on the numbers of `random` alone."""
        ...


@dataclass(frozen=True)
class Mixup:
    """Every pixel is (1 - share) of the image and share of its partner (Zhang et al., 2018)."""

    alpha: float = 0.2
    """The share is drawn from Beta(alpha, alpha): near 0 or 1 below 1, evenly at 1, near a half above."""
    p: float = 1.0
    """Part of the training images that is mixed with another."""

    def __post_init__(self) -> None:
        check_alpha("alpha", self.alpha)
        check_probability("p", self.p)

    def draw(self, random: np.random.Generator) -> Blend:
        return Blend(float(random.beta(self.alpha, self.alpha)))


@dataclass(frozen=True)
class CutMix:
    """A rectangle of the partner replaces that of the image; the target's share is that of the area (Yun et al., 2019).

    For findings the target is a guess: a nodule may lie outside the rectangle whose area it is given.
    """

    alpha: float = 1.0
    """The rectangle's part of the area is drawn from Beta(alpha, alpha), before what lies outside is cut."""
    p: float = 0.5
    """Part of the training images that is mixed with another."""

    def __post_init__(self) -> None:
        check_alpha("alpha", self.alpha)
        check_probability("p", self.p)

    def draw(self, random: np.random.Generator) -> Blend:
        share = float(random.beta(self.alpha, self.alpha))
        return Blend(share, (float(random.random()), float(random.random())))


@dataclass(frozen=True)
class MixupOrCutMix:
    """Each mixed image by mixup or by CutMix, as Touvron et al. (2021) train DeiT."""

    mixup_alpha: float = 0.8
    """As `Mixup.alpha`."""
    cutmix_alpha: float = 1.0
    """As `CutMix.alpha`."""
    cutmix_share: float = 0.5
    """Part of the mixed images that is mixed by CutMix."""
    p: float = 1.0
    """Part of the training images that is mixed with another."""

    def __post_init__(self) -> None:
        check_alpha("mixup_alpha", self.mixup_alpha)
        check_alpha("cutmix_alpha", self.cutmix_alpha)
        check_probability("cutmix_share", self.cutmix_share)
        check_probability("p", self.p)

    def draw(self, random: np.random.Generator) -> Blend:
        cut = random.random() < self.cutmix_share
        return (CutMix(self.cutmix_alpha) if cut else Mixup(self.mixup_alpha)).draw(random)


def check_alpha(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise FinetuneError(f"mixing.{name}={value} must be a number above 0; mixing=none mixes nothing.")


def check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise FinetuneError(f"mixing.{name}={value} must lie between 0 and 1.")


def partner_of(
    mixing: Mixing, seed: int, epoch: int, row: int, rows: Sequence[int] | np.ndarray
) -> tuple[int, Blend] | None:
    """The row of `rows` that `row` is mixed with in `epoch`, and how; None where it stays as it is.

    Every row of `rows` is equally likely, whatever sampler draws the batches, and the row itself too.
    """
    random = np.random.default_rng([seed, epoch, row, STREAM])
    if random.random() >= mixing.p:
        return None
    partner = int(rows[int(random.integers(len(rows)))])
    return partner, mixing.draw(random)


def mix_targets(target: torch.Tensor, partner: torch.Tensor, share: float) -> torch.Tensor:  # (K,), (K,) -> (K,)
    """The mixture of two targets; a class that is unknown (NaN) in either is unknown, whatever its share."""
    return (1 - share) * target + share * partner
