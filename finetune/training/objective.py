"""What a training minimises and how its epochs are compared: the part of a task that a LightningModule needs."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from finetune.network import Network

LOSS = "val/loss"
"""The score that every objective has; lower is better."""


class Objective(Protocol):
    """One step, and the scores of a validation."""

    monitor: str
    """The score that chooses the epoch: one of `scores`."""
    higher_is_better: bool
    """Of the monitor."""
    scores: tuple[str, ...]
    """Names of the results of `score`, LOSS among them: columns of metrics.csv."""
    row_names: tuple[str, ...]
    """Names of the results of `predict`."""
    notes: list[str]
    """Sentences for the user, such as why the monitor is not the usual one."""

    def step(self, network: Network, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The sum of the losses of a batch (in 32 bits, or 64 where the network has them), and their number.

        Sums over ranks and micro-batches are divided by the sum of the counts.
        """
        ...

    def predict(self, network: Network, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a validation stores of each image: `row_names` -> (N, ...), the same shape for every image."""
        ...

    def score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`scores` of all validation images, each once, from the results of `predict`; NaN where undefined.

        Raises:
            FloatingPointError: the network's outputs are not finite.
        """
        ...
