"""Logits -> probabilities and calibrated probabilities, as operators of a graph. They are computed in 64 bits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from finetune.evaluation.classification.calibration import Calibration


def probabilities(logits: Tensor, exclusive: bool) -> Tensor:
    """Logits (N, K) or (N, K, H, W) -> softmax over the classes, or the sigmoid of each."""
    return logits.softmax(1) if exclusive else logits.sigmoid()


def log_odds(logits: Tensor, others: Tensor) -> Tensor:
    """Logits (N, K) of exclusive classes -> of each class against all others, (N, K).

    Args:
        others: (K, K), 0 for the classes that a class is compared with, minus infinity for itself.
    """
    return logits - (logits[:, None, :] + others).logsumexp(2)


def curve(about: dict[str, Any], odds: Tensor) -> Tensor:
    """The calibrated probability (N,) of log odds (N,): see `finetune.evaluation.classification.calibration`."""
    if "temperature" in about:
        return (odds / about["temperature"]).sigmoid()
    if "slope" in about:
        return (about["slope"] * odds + about["offset"]).sigmoid()
    total = torch.full_like(odds, about["probability"][0])
    for (low, high), (below, above) in zip(pairwise(about["log_odds"]), pairwise(about["probability"]), strict=True):
        total = total + ((odds - low) / (high - low)).clamp(0, 1) * (above - below)
    return total


class Calibrated(nn.Module):
    """Logits (N, K) -> calibrated probabilities of the classes that have a calibration (N, C), in their order."""

    def __init__(self, calibration: Calibration):
        super().__init__()
        self.calibration = calibration
        number = len(calibration.classes)
        others = torch.zeros(number, number, dtype=torch.float64).fill_diagonal_(-torch.inf)
        self.register_buffer("others", others)
        self.others: Tensor

    def forward(self, logits: Tensor) -> Tensor:
        about = self.calibration
        logits, exclusive = logits.double(), about.kind == "multiclass"
        if exclusive and about.method == "temperature":
            temperature: Any = about.curves[about.classes[0]]["temperature"]
            return (logits / temperature).softmax(1)
        odds = log_odds(logits, self.others) if exclusive else logits
        columns = [curve(about.curves[name], odds[:, about.classes.index(name)]) for name in about.calibrated]
        calibrated = torch.stack(columns, dim=1)
        return calibrated / calibrated.sum(1, keepdim=True) if exclusive else calibrated
