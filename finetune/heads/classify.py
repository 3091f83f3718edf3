"""The classification head: pool the last map, drop out, project onto the classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.errors import FinetuneError, one_of

POOLS = ("avg", "max", "avgmax")


class ClassifyHead(nn.Module):
    """Last map (N, C, H, W), or what `features` made of it, -> logits (N, K).

    `avgmax` concatenates both poolings (2 C features): the maximum keeps a small lesion that the average dilutes.
    """

    takes_features = True

    kernel: tuple[int, ...] = ()
    """(1, 1) where the backbone's own classifier is a convolution; set by `Network`. The sums are then made in the
    order of timm's network, for the same logits to the last bit."""

    def __init__(self, in_channels: int, num_classes: int, *, pool: str = "avg", dropout: float = 0.0):
        super().__init__()
        if pool not in POOLS:
            raise one_of("head.pool", pool, POOLS)
        if not 0 <= dropout < 1:
            raise FinetuneError(f"head.dropout={dropout} must be at least 0 and below 1.")
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels * (2 if pool == "avgmax" else 1), num_classes)

    def features(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C) or (N, 2 C)
        if x.ndim == 2:
            return x
        if self.pool == "avg":
            return x.mean((2, 3))
        if self.pool == "max":
            return x.amax((2, 3))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, K)
        x = self.dropout(self.features(x))
        if not self.kernel:
            return self.fc(x)
        return F.conv2d(x[..., None, None], self.fc.weight[..., None, None], self.fc.bias).flatten(1)
