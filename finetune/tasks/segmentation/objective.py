"""What the training of a segmentation minimises, and the scores of its validation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.regions import Regions
from finetune.evaluation.segmentation.scores import mean_dice
from finetune.losses.segmentation import UNKNOWN, SegmentationLoss
from finetune.network import Network
from finetune.training.objective import LOSS

DICE = "val/dice"
NO_DICE = "No val image has a region: its Dice is undefined, the best epoch is by val/loss."


class MaskObjective:
    """Batches with mask uint8 (N, S, S) and mask_known bool (N, K).

    Args:
        monitor: DICE, or LOSS where val has no image with a region.
    """

    scores: tuple[str, ...] = (LOSS, DICE)
    row_names: tuple[str, ...] = ("counts", "loss", "images")

    def __init__(self, loss: SegmentationLoss, regions: Regions, *, monitor: str = DICE):
        self.loss = loss
        self.regions = regions
        self.monitor = monitor
        self.higher_is_better = monitor == DICE
        self.notes = [] if monitor == DICE else [NO_DICE]

    def step(self, network: Network, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Sum of the images' losses, and how many have a known region."""
        logits = network(batch["image"])
        full = logits if logits.dtype == torch.float64 else logits.float()
        return self.loss(full, batch["mask"], batch["mask_known"], self.regions.overlapping)

    def predict(self, network: Network, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """counts (N, R, 3): pixels of intersection, truth and prediction of each region without the background, NaN
        where it is unknown; loss (N,) and images (N,), 1 where the loss is of something."""
        logits, mask, known = network(batch["image"]).float(), batch["mask"], batch["mask_known"]
        overlapping = self.regions.overlapping
        losses = [
            self.loss(logits[i : i + 1], mask[i : i + 1], known[i : i + 1], overlapping) for i in range(len(logits))
        ]
        return {
            "counts": pixel_counts(logits, mask, known, overlapping),
            "loss": torch.stack([total for total, _ in losses]),
            "images": torch.stack([count for _, count in losses]),
        }

    def score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The mean loss over images, and the mean over regions of their mean Dice at the network's size."""
        if not np.isfinite(rows["loss"]).all():
            raise FloatingPointError
        images = int(rows["images"].sum())
        loss = float(rows["loss"].sum(dtype=np.float64) / images) if images else float("nan")
        return {LOSS: loss, DICE: mean_dice(rows["counts"])}


def pixel_counts(logits: Tensor, mask: Tensor, known: Tensor, overlapping: bool) -> Tensor:  # -> (N, R, 3)
    """Pixels of intersection, truth and prediction of each region without the background, NaN where it is unknown."""
    numbers = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    mask = mask.long()[:, None]  # (N, 1, S, S)
    if overlapping:
        truth, predicted = (mask >> numbers) & 1 == 1, logits >= 0  # 0.5 and above
    else:
        truth = mask == numbers
        predicted = (logits.argmax(dim=1, keepdim=True) == numbers) & (mask != UNKNOWN)
    counts = torch.stack([(part).sum(dim=(2, 3)) for part in (truth & predicted, truth, predicted)], dim=2).float()
    counts = torch.where(known[..., None], counts, torch.nan)
    return counts if overlapping else counts[:, 1:]
