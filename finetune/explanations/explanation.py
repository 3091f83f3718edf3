"""The public interface to heat maps: from a loaded model and images to an explanation of classes, regions or boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from finetune.errors import FinetuneError
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.detection.answers import DetectAnswers
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.explanations import overlays
from finetune.explanations.geometry import to_input
from finetune.explanations.inputs import Inputs, batched, number_of_each
from finetune.explanations.inputs import peak_position as peak_position
from finetune.explanations.maps import check_method, heat_of
from finetune.explanations.of_boxes import explain_boxes
from finetune.explanations.of_regions import explain_regions
from finetune.inference import best_device, mean_of_views, predict
from finetune.model_file import Model


@dataclass
class Explanation:
    """Heat maps of a model for N images, each for one class."""

    names: list[str]
    """Path of each image; its position for images passed as arrays."""
    explained: list[str]
    """The class that each map is of."""
    heat: np.ndarray
    """(N, S, S) float32, 0 or more, in pixels of the network's input; not rescaled per image."""
    probabilities: np.ndarray
    """(N, K) sigmoid or softmax, as `prob_<class>` of model.predict."""
    classes: list[str]
    method: str
    images: list[np.ndarray] = field(repr=False)
    """uint8 (S, S) or (S, S, 3): what the network saw, before normalising."""
    sizes: list[tuple[int, int]] = field(repr=False)
    """Height and width of each image as it was read."""
    model: Model = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def probability(self, number: int) -> float:
        """Of the class that the map is of."""
        return float(self.probabilities[number, self.classes.index(self.explained[number])])

    def overlay(self, number: int, boxes: Sequence[tuple[float, float, float, float]] = ()) -> Image.Image:
        """The image in gray beside the same with its heat map, (S, 2 S) in RGB; the hottest pixel of each map has the
        same colour. Boxes (left, top, width, height) in pixels of the stored image are outlined."""
        corners = to_input(boxes, self.sizes[number], self.model.preprocessing)
        return Image.fromarray(overlays.beside(self.images[number], self.heat[number], corners))

    def to_dict(self, number: int) -> dict[str, Any]:
        """{sample, class, probability, maximum} in plain values; x and y of the maximum from 0 to 1, None where the map
        is constant."""
        return {
            "sample": self.names[number],
            "class": self.explained[number],
            "probability": self.probability(number),
            "maximum": peak_position(self.heat[number]),
        }


def explain(
    model: Model,
    images: Sequence[Any],
    *,
    finding: str | Sequence[str] | None = None,
    region: str | Sequence[str] | None = None,
    method: str = "grad_cam",
    batch_size: int = 16,
    device: str = "auto",
    **options: Any,
) -> Any:
    """Heat maps of images: of a classifier for one class each, of a segmentation model for one region each, of a
    detector for the most confident boxes of each image.

    Args:
        model: from `finetune.load`.
        images: paths, PIL images, or uint8 arrays (H, W) or (H, W, 3), as in model.predict.
        finding: the class, or one for each image; None takes each image's most probable one. Of a detector it is the
            class of the boxes; None takes any.
        region: the region of a segmentation model, or one for each image; None takes each image's largest predicted
            one.
        method: grad_cam; of a classifier also grad_cam_pp, occlusion and integrated_gradients.
        options: of a classifier patch and stride of occlusion, steps of integrated_gradients; of a detector `boxes`,
            the maximum number of boxes per image.

    Returns:
        `Explanation`, `RegionExplanation` or `BoxExplanation`, by the model's task.

    Raises:
        FinetuneError: an unknown class, region, method or option; an image that cannot be read.
    """
    for answers_type, (argument, explain_images) in _EXPLAINERS.items():
        if isinstance(model.answers, answers_type):
            names = {"finding": finding, "region": region}
            if other := [f"{name}={value}" for name, value in names.items() if name != argument and value is not None]:
                raise FinetuneError(f"{other[0]}: of task={model.task}, {argument}= says what is explained.")
            if batch_size < 1:
                raise FinetuneError(f"batch_size={batch_size} must be 1 or more.")
            return explain_images(
                model, images, names[argument], method=method, batch_size=batch_size, device=device, **options
            )
    raise FinetuneError(f"explain makes heat maps of classes, regions and boxes; this model is of task={model.task}.")


def explain_classes(
    model: Model,
    images: Sequence[Any],
    finding: str | Sequence[str] | None = None,
    *,
    method: str = "grad_cam",
    batch_size: int = 16,
    device: str = "auto",
    **options: Any,
) -> Explanation:
    """`explain` of a classifier."""
    check_method(method, list(options))
    preprocessing = model.preprocessing
    inputs = Inputs.read(model, images)
    target_device = best_device(device)
    model.network.to(target_device)
    batches: list[dict[str, Any]] = [
        {"image": inputs.tensors(rows), "index": np.array(rows)} for rows in batched(len(inputs), batch_size)
    ]
    _, logits = predict(model.network, batches, target_device, mean_of_views(model.network, model.tta))
    probabilities = cast(ClassAnswers, model.answers).probabilities(logits.reshape(len(inputs), len(model.classes)))
    class_numbers = _classes(model, finding, probabilities)
    heat = np.zeros((0, preprocessing.image_size, preprocessing.image_size), np.float32)
    if batches:
        parts = [
            heat_of(model.network, b["image"], class_numbers[torch.from_numpy(b["index"])], method, **options).numpy()
            for b in batches
        ]
        heat = np.concatenate(parts)
    explained = [model.classes[k] for k in class_numbers.tolist()]
    return Explanation(
        inputs.names, explained, heat, probabilities, model.classes, method, inputs.pixels, inputs.sizes, model
    )


_EXPLAINERS: dict[type, tuple[str, Callable[..., Any]]] = {
    ClassAnswers: ("finding", explain_classes),
    SegmentAnswers: ("region", explain_regions),
    DetectAnswers: ("finding", explain_boxes),
}
"""Answers of a task -> the argument that names its classes, and what explains its models."""


def _classes(model: Model, finding: str | Sequence[str] | None, probabilities: np.ndarray) -> torch.Tensor:
    """(N,) numbers of the classes to explain."""
    if finding is None:
        numbers = probabilities.argmax(axis=1)
        return torch.from_numpy(numbers.astype(np.int64))
    return torch.tensor(number_of_each("finding", finding, model.classes, len(probabilities)), dtype=torch.int64)
