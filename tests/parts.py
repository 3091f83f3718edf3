"""A neck and a head of each kind, small enough to see through; the fixture `own_parts` registers them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.heads import FeatureInfo


class Narrow(nn.Sequential):
    """Last map (N, C, H, W) -> (N, width, H, W)."""

    def __init__(self, features: Sequence[FeatureInfo], *, width: int = 8):
        (last,) = features
        super().__init__(nn.Conv2d(last.num_chs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.feature_info = [FeatureInfo(width, last.reduction)]


class TopDown(nn.Module):
    """Maps of any number -> as many of `width` channels, each with the coarser ones added."""

    takes = "maps"

    def __init__(self, features: Sequence[FeatureInfo], *, width: int = 8):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(info.num_chs, width, 1) for info in features)
        self.feature_info = [FeatureInfo(width, info.reduction) for info in features]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        made = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for number in range(len(made) - 1, 0, -1):
            made[number - 1] = made[number - 1] + F.interpolate(made[number], size=made[number - 1].shape[-2:])
        return made


class EveryMap(nn.Module):
    """The means of all maps beside each other, and a linear layer."""

    takes = "maps"

    def __init__(self, features: Sequence[FeatureInfo], num_classes: int):
        super().__init__()
        self.fc = nn.Linear(sum(info.num_chs for info in features), num_classes)

    def features(self, maps: list[Tensor]) -> Tensor:  # -> (N, sum of C)
        return torch.cat([x.mean((2, 3)) for x in maps], dim=1)

    def forward(self, maps: list[Tensor]) -> Tensor:  # -> (N, K)
        return self.fc(self.features(maps))
