"""A loaded classifier as the server uses it: decoded image -> input -> outputs of a batch -> heat map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from finetune import inference
from finetune.drawing import jpeg
from finetune.errors import FinetuneError
from finetune.evaluation.answers import CLASSIFY
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.explanations import explain, overlays
from finetune.model_file import Model
from finetune.runs import known_images

PREVIEW_SIDE, PREVIEW_BYTES = 512, 60_000


@dataclass(frozen=True)
class Output:
    """What the network gives for one image."""

    logits: np.ndarray
    """(K,)"""
    distance: float | None
    """From the training images; None where their features are not stored beside the model."""


class Predictor:
    """Its methods may be called from several threads, except `predict` and `heat_map`, which are of one thread."""

    def __init__(self, model: Model, accelerator: str = "auto"):
        """
        Raises:
            FinetuneError: the model is of another task than classification.
        """
        if model.task != CLASSIFY:
            raise FinetuneError(
                f"job=serve shows the answers of classifiers; model={model.path} is of task={model.task}. "
                f"Its images are predicted by: python -m finetune job=predict model={model.path} input=DIR."
            )
        self.model = model
        self.device = inference.best_device(accelerator)
        self.gaussian, self.no_novelty = model.feature_gaussian
        self.weights_hash = model.weights_hash
        self.splits = known_images.split_by_digest(model)
        """Digest of an image -> split of the fit; None where it is unknown."""
        self._forward = inference.with_distances(model.network, self.gaussian, model.tta)
        model.network.to(self.device)

    @property
    def answers(self) -> ClassAnswers:
        """The meaning of the outputs."""
        return cast(ClassAnswers, self.model.answers)

    @property
    def min_side(self) -> int:
        """With which images must be decoded, so that they have the pixels of the fit and of model.predict."""
        return self.model.preprocessing.min_decode_side

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:  # -> (C, S, S)
        """uint8 (H, W) or (H, W, 3) -> the network's input."""
        return self.model.preprocessing(pixels)

    def split_of(self, pixels: np.ndarray) -> str | None:
        """The split of the model's fit that has this image, to the last pixel."""
        return (self.splits or {}).get(known_images.digest_of(pixels))

    def predict(self, inputs: list[torch.Tensor]) -> list[Output]:
        """The outputs of a batch, as model.predict computes them."""
        batch = {"image": torch.stack(inputs)}
        ((_, (logits, distances)),) = inference.run(self.model.network, [batch], self.device, self._forward)
        logits = np.asarray(logits).reshape(len(inputs), len(self.answers.classes))
        return [
            Output(row, None if distances is None else float(distances[number])) for number, row in enumerate(logits)
        ]

    def heat_map(self, pixels: np.ndarray, name: str) -> str:
        """The evidence for a class over the image as the network sees it: a JPEG in base64."""
        explanation = explain(self.model, [pixels], finding=name, device=str(self.device))
        heated = overlays.heated(explanation.images[0], explanation.heat[0])
        return jpeg(heated, side=PREVIEW_SIDE, max_bytes=PREVIEW_BYTES)


def preview(pixels: np.ndarray) -> str:
    """The image as it was decoded, at most PREVIEW_SIDE pixels wide or high: a JPEG in base64."""
    return jpeg(pixels, side=PREVIEW_SIDE, max_bytes=PREVIEW_BYTES)
