"""The loss that a classifier minimises, and the scores of its validation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.table import SampleTable
from finetune.evaluation.classification.scores import macro_auroc
from finetune.losses import Loss
from finetune.network import Network
from finetune.training.objective import LOSS

AUROC = "val/auroc"
NO_AUROC = "No class has both positives and negatives in val: AUROC is undefined, and val/loss chooses the best epoch."


class ClassObjective:
    """Batches with target (N, K), NaN for unknown.

    Args:
        weights: of the classes, from the training targets (`loss.weights`).
        monitor: AUROC, or LOSS where no class has an AUROC on val.
    """

    scores: tuple[str, ...] = (LOSS, AUROC)
    row_names: tuple[str, ...] = ("target", "logits")

    def __init__(self, loss: Loss, weights: Tensor | None = None, *, monitor: str = AUROC):
        self.loss = loss
        self.weights = weights
        self.monitor = monitor
        self.higher_is_better = monitor == AUROC
        self.notes = [] if monitor == AUROC else [NO_AUROC]

    def step(self, network: Network, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Sum of the losses and number of known labels."""
        logits = network(batch["image"])
        if self.weights is not None and self.weights.device != logits.device:
            self.weights = self.weights.to(logits.device)
        full = logits if logits.dtype == torch.float64 else logits.float()
        return self.loss(full, batch["target"], self.weights)

    def predict(self, network: Network, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """target and logits (N, K)."""
        return {"target": batch["target"].float(), "logits": network(batch["image"])}

    def score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The loss over all known labels, and the mean AUROC."""
        target, logits = rows["target"], rows["logits"]
        if not np.isfinite(logits).all():
            raise FloatingPointError
        weights = None if self.weights is None else self.weights.cpu()
        total, count = self.loss(torch.from_numpy(logits), torch.from_numpy(target), weights)
        loss = float(total / count) if count else float("nan")
        return {LOSS: loss, AUROC: macro_auroc(target, logits, self.loss.kind)}


def has_auroc(table: SampleTable, split: str) -> bool:
    """Whether at least one class has a positive and a negative in `split`."""
    target = table.targets()[table.rows(split)]
    return bool(((target >= 0.5).any(axis=0) & (target < 0.5).any(axis=0)).any())
