"""Networks whose maps can be written down: an image is its own last map, and the head is a few numbers."""

import torch
from torch import Tensor, nn

from finetune.backbones import Backbone
from finetune.network import Network


class Itself(Backbone):
    """A backbone without stages that gives the image back, times a weight of 1."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward_stem(self, x: Tensor) -> Tensor:
        return x * self.gain

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"stem": [self]}


class Pooled(nn.Module):
    """Means over the map, then a linear layer of these weights (K, C)."""

    def __init__(self, weights: list[list[float]]):
        super().__init__()
        self.fc = nn.Linear(len(weights[0]), len(weights), bias=False)
        self.fc.weight = nn.Parameter(torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, K)
        return self.fc(x.mean((2, 3)))


class Weighed(nn.Module):
    """One logit: every pixel of a gray image times its weight (H, W), summed, and squared where asked."""

    def __init__(self, weights: Tensor, power: int = 1):
        super().__init__()
        self.weights, self.power = nn.Parameter(weights), power

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, H, W) -> (N, 1)
        return ((x**self.power) * self.weights).sum((1, 2, 3))[:, None]


def network(head: nn.Module) -> Network:
    return Network(Itself(), head)
