"""What the validation keeps: every sample's logits once, gathered over the ranks, and the scores made of them."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from finetune.inference import by_index


class Collected(Metric):
    """Index, target and logits of all samples; samples that the ranks saw twice count once."""

    full_state_update = False
    index: list[Tensor]
    target: list[Tensor]
    logits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("index", "target", "logits"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, target: Tensor, logits: Tensor) -> None:
        self.index.append(index)
        self.target.append(target.float())
        self.logits.append(logits.detach().float())

    def compute(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """index (M,) ascending, target (M, K), logits (M, K)."""
        index = dim_zero_cat(self.index).cpu().numpy()
        unique, logits = by_index(index, dim_zero_cat(self.logits).cpu().numpy())
        _, target = by_index(index, dim_zero_cat(self.target).cpu().numpy())
        return unique, target, logits


class MeanLoss(Metric):
    """Sum of the losses over the number of known labels, of all batches and ranks.

    torchmetrics' MeanMetric is not used: in 1.9 it ignores the weights of a mean with nan_strategy="disable".
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor) -> None:
        self.total = self.total + total.detach()  # in 64 bits where the losses are
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count


def mean_loss(loss, logits: np.ndarray, target: np.ndarray, weights: Tensor | None) -> float:
    """The loss over all known labels; NaN where nothing is known."""
    total, count = loss(torch.from_numpy(logits), torch.from_numpy(target), weights)
    return float(total / count) if count else float("nan")
