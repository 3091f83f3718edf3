"""Learning from the logits of a finished model as well as from labels (Hinton et al., 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.model_file import Model
from finetune.network import Network
from finetune.preprocessing import Preprocessing
from finetune.training.objective import Objective

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue, as Pillow's conversion to gray

SoftLoss = Callable[[Tensor, Tensor, float], Tensor]
"""Logits of student and teacher (N, K), temperature -> losses (N, K) or (N,)."""


class Teacher:
    """A finished network on the batches of another: its logits for the student's classes.

    Where both have the same preprocessing it gets the student's batch. Otherwise the batch is brought back to pixels,
    to the teacher's channels, size (antialiased) and normalisation: exact up to rounding where `image_size`, `fit` and
    `crop_fraction` are equal, else it sees a resized copy of the student's square.

    Args:
        columns: of the teacher's outputs, in the order of the student's classes.
    """

    def __init__(self, model: Model, student: Preprocessing, columns: list[int]):
        self.network = model.network.eval().requires_grad_(False)
        self.student = student
        self.preprocessing = model.preprocessing
        self.columns = columns

    def note(self) -> str:
        """A sentence on the images that it sees."""
        own, student = self.preprocessing, self.student
        geometry = [(p.image_size, p.fit, p.crop_fraction) for p in (own, student)]
        if geometry[0] == geometry[1]:
            return "It sees the student's images with its own normalisation."
        return (
            f"It sees the student's images, resized from {student.image_size} to {own.image_size} px; it was trained "
            f"with fit={own.fit}, the student with fit={student.fit}."
        )

    def prepare(self, images: Tensor) -> Tensor:
        """The student's normalised images (N, C, S, S) -> the teacher's input."""
        own, student = self.preprocessing, self.student
        images = images.float()
        if own == student:
            return images
        pixels = images * _values(student.std, images) + _values(student.mean, images)
        if pixels.shape[1] > own.in_channels:
            pixels = (pixels * _values(LUMINANCE, images)).sum(1, keepdim=True)
        pixels = pixels.expand(-1, own.in_channels, -1, -1)
        if own.image_size != student.image_size:
            size = (own.image_size, own.image_size)
            pixels = F.interpolate(pixels, size, mode=own.interpolation, align_corners=False, antialias=True)
            pixels = pixels.clamp(0, 1)
        return (pixels - _values(own.mean, images)) / _values(own.std, images)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The student's normalised images (N, C, S, S) -> logits (N, K) in 32 bits."""
        self.network.to(images.device)
        inputs = self.prepare(images).contiguous(memory_format=torch.channels_last)
        return self.network(inputs).float()[:, self.columns]


def _values(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float32).view(1, -1, 1, 1)


def softmax_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softmax of logits / T: (N, K), (N, K) -> (N,)."""
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)


def sigmoid_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the sigmoid of logits / T: (N, K), (N, K) -> (N, K).

    It is the binary cross-entropy with the teacher's probability as target, less that of the teacher itself: 0 where
    both agree, with the same gradient.
    """
    q = torch.sigmoid(teacher / temperature)
    cross, own = (F.binary_cross_entropy_with_logits(x / temperature, q, reduction="none") for x in (student, teacher))
    return temperature**2 * (cross - own)


class Recording:
    """A network that keeps the images and outputs of its last call, for an objective."""

    def __init__(self, network: Network):
        self.network = network
        self.images: Tensor | None = None
        self.outputs: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        self.images, self.outputs = images, self.network(images)
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


class Distilled:
    """An objective whose loss is (1 - weight) * its own + weight * the divergence from a teacher.

    The mean is over all labels, known or not: an unknown one contributes the teacher's part alone. The teacher sees the
    images that the network sees, augmented ones. Validation is that of the objective, without the teacher.

    Args:
        weight: of the teacher, above 0, at most 1.
        temperature: of both softmaxes or sigmoids, above 0.
    """

    needs_images = True
    """Activations of frozen parts do not serve in their place."""

    def __init__(
        self, objective: Objective, teacher: Teacher, soft_loss: SoftLoss, *, weight: float, temperature: float
    ):
        self.objective = objective
        self.teacher = teacher
        self.soft_loss = soft_loss
        self.weight = weight
        self.temperature = temperature
        self.monitor, self.higher_is_better = objective.monitor, objective.higher_is_better
        self.scores, self.row_names = objective.scores, objective.row_names
        self.notes = [*objective.notes, teacher.note()]

    def step(self, network: Network, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Sum of the losses over all labels, and their number."""
        recording = Recording(network)
        total, known = self.objective.step(recording, batch)  # type: ignore[arg-type]
        if recording.images is None or recording.outputs is None:
            raise FinetuneError(
                f"teacher: the objective {type(self.objective).__name__} does not call the network, so its logits "
                "cannot be compared with the teacher's. Leave the teacher out."
            )
        logits = recording.outputs if recording.outputs.dtype == torch.float64 else recording.outputs.float()
        soft = self.soft_loss(logits, self.teacher(recording.images).to(logits.dtype), self.temperature)
        return (1 - self.weight) * total + self.weight * soft.sum(), torch.full_like(known, soft.numel())

    def predict(self, network: Network, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.objective.predict(network, batch)

    def score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        return self.objective.score(rows)
