"""A loss whose minimum orders the images of a batch: positives above negatives, by a margin."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.errors import FinetuneError


@dataclass(frozen=True)
class AUCMargin:
    """AUC margin loss of each class (Yuan et al., 2021, "Large-scale Robust Deep AUC Maximization"):

        var(s+) + var(s-) + max(0, margin + mean(s-) - mean(s+))^2

    where s+ are the probabilities of the positives and s- those of the negatives. The paper minimises over a and b and
    maximises over alpha >= 0

        mean((s+ - a)^2) + mean((s- - b)^2) + 2 alpha (margin + mean(s-) - mean(s+)) - alpha^2

    and its optimizer (PESG) trains a, b and alpha beside the network. Here they take their best values for each batch:
    a = mean(s+), b = mean(s-), alpha = max(0, margin + b - a). So any optimizer does, and there is no state to save.
    The price: means and variances are those of the batch, not those of the whole training.

    - A class counts where the batch has a known positive (0.5 or more) and a known negative. Others contribute 0.
    - A soft target t, such as that of mixed images, is a positive of weight t and a negative of weight 1 - t.
    - With several processes or accumulated batches the loss is that of each part, averaged over parts and classes:
      a positive and a negative of one part are not compared with those of another. Use large batches, or
      data.sampler=balanced.
    """

    kind = "multilabel"
    margin: float = 1.0
    """Distance between the mean probabilities of positives and negatives from which on only the variances count."""

    def __post_init__(self) -> None:
        if not 0 < self.margin <= 1:
            raise FinetuneError(
                f"loss.margin={self.margin} must be above 0 and at most 1, the largest difference of probabilities."
            )

    def weights(self, classes: list[str], targets: np.ndarray) -> None:
        """No weights from the counts of train: means over positives and negatives need none."""
        return None

    def __call__(self, logits: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logits, target (N, K), target 1, 0, in between or NaN -> sum over the classes that count, and their number.

        The gradient of unknown entries and of classes that do not count is exactly zero.
        """
        known = ~target.isnan()
        filled = torch.where(known, target, 0.0)
        positive, negative = filled, torch.where(known, 1 - filled, 0.0)  # weights (N, K)
        counted = (known & (filled >= 0.5)).any(dim=0) & (known & (filled < 0.5)).any(dim=0)  # (K,)
        scores = torch.where(known, logits, 0.0).sigmoid()
        (mean_pos, var_pos), (mean_neg, var_neg) = moments(scores, positive), moments(scores, negative)
        loss = var_pos + var_neg + (self.margin + mean_neg - mean_pos).clamp(min=0).square()  # (K,)
        return torch.where(counted, loss, 0.0).sum(), counted.sum()


def moments(scores: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:  # (N, K) -> (K,), (K,)
    """Weighted mean and variance of each column; 0 where the weights are."""
    total = weights.sum(dim=0)
    total = torch.where(total > 0, total, 1.0)
    mean = (weights * scores).sum(dim=0) / total
    return mean, (weights * (scores - mean).square()).sum(dim=0) / total
