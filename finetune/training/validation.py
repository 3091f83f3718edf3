"""Metrics of an epoch: validation rows, each image once, gathered over the ranks; and the mean loss."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from finetune.inference import by_index


class ValidationRows(Metric):
    """Named rows (N, ...) of all images; images seen by two ranks count once.

    Args:
        names: of the values stored per image.
    """

    full_state_update = False
    index: list[Tensor]

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for state in ("index", *(f"row_{name}" for name in names)):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, rows: Mapping[str, Tensor]) -> None:
        self.index.append(index)
        for name in self.names:
            value = rows[name].detach()
            getattr(self, f"row_{name}").append(value.float() if value.is_floating_point() else value)

    def compute(self) -> dict[str, np.ndarray]:
        """Name -> (M, ...), in the order of the images' index."""
        index = dim_zero_cat(self.index).cpu().numpy()
        return {
            name: by_index(index, dim_zero_cat(getattr(self, f"row_{name}")).cpu().numpy())[1] for name in self.names
        }


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
