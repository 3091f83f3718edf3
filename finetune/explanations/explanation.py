"""The public interface to heat maps: from a loaded model and images to an `Explanation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.data.decoding import containers
from finetune.data.decoding.images import as_image, read_image, read_size
from finetune.errors import FinetuneError, one_of
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.explanations import overlays
from finetune.explanations.geometry import to_input
from finetune.explanations.localisation import maximum
from finetune.explanations.maps import check_method, heat_of
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
    method: str = "grad_cam",
    batch_size: int = 16,
    device: str = "auto",
    **options: Any,
) -> Explanation:
    """Heat maps of images for one class each.

    Args:
        model: from `finetune.load`.
        images: paths, PIL images, or uint8 arrays (H, W) or (H, W, 3), as in model.predict.
        finding: the class, or one for each image; None takes each image's most probable one.
        method: grad_cam, grad_cam_pp, occlusion or integrated_gradients.
        options: patch and stride of occlusion, steps of integrated_gradients.

    Raises:
        FinetuneError: an unknown class, method or option; an image that cannot be read.
    """
    if isinstance(images, str | Path | np.ndarray):
        raise FinetuneError("explain takes a list of images: put a single one into brackets.")
    if not isinstance(model.answers, ClassAnswers):
        raise FinetuneError(f"explain makes heat maps of classes; this model is of task={model.task}.")
    if batch_size < 1:
        raise FinetuneError(f"batch_size={batch_size} must be 1 or more.")
    check_method(method, list(options))
    preprocessing = model.preprocessing
    names = [str(image) if isinstance(image, str | Path) else str(i) for i, image in enumerate(images)]
    inputs, sizes = [], []
    for image in images:
        pixels, size = _read(image, preprocessing.min_decode_side)
        sizes.append(size)
        inputs.append(preprocessing.crop(preprocessing.resize(pixels)))
    target_device = best_device(device)
    model.network.to(target_device)
    batches: list[dict[str, Any]] = [
        {
            "image": torch.stack([preprocessing.to_tensor(p) for p in inputs[start : start + batch_size]]),
            "index": np.arange(start, min(start + batch_size, len(inputs))),
        }
        for start in range(0, len(inputs), batch_size)
    ]
    _, logits = predict(model.network, batches, target_device, mean_of_views(model.network, model.tta))
    probabilities = model.answers.probabilities(logits.reshape(len(inputs), len(model.classes)))
    class_numbers = _classes(model, finding, probabilities)
    heat = np.zeros((0, preprocessing.image_size, preprocessing.image_size), np.float32)
    if batches:
        parts = [
            heat_of(model.network, b["image"], class_numbers[torch.from_numpy(b["index"])], method, **options).numpy()
            for b in batches
        ]
        heat = np.concatenate(parts)
    explained = [model.classes[k] for k in class_numbers.tolist()]
    return Explanation(names, explained, heat, probabilities, model.classes, method, inputs, sizes, model)


def peak_position(heat: np.ndarray) -> dict[str, float] | None:
    """The position of the maximum relative to the side of the input: x from the left, y from the top."""
    at = maximum(heat)
    return None if at is None else {"x": (at[0] + 0.5) / heat.shape[1], "y": (at[1] + 0.5) / heat.shape[0]}


def class_number(classes: Sequence[str], name: str) -> int:
    """The number of a class.

    Raises:
        FinetuneError: the model does not know it.
    """
    if name not in classes:
        raise one_of("finding", name, classes)
    return list(classes).index(name)


def _read(image: Any, min_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as model.predict reads it, and its height and width in the file: large JPEGs are decoded downscaled."""
    if not isinstance(image, str | Path):
        pixels = as_image(image)
        return pixels, (pixels.shape[0], pixels.shape[1])
    pixels = read_image(image, min_side)
    in_file = None if containers.member(Path(image)) is not None else read_size(image)
    return pixels, in_file or (pixels.shape[0], pixels.shape[1])


def _classes(model: Model, finding: str | Sequence[str] | None, probabilities: np.ndarray) -> torch.Tensor:
    """(N,) numbers of the classes to explain."""
    if finding is None:
        numbers = probabilities.argmax(axis=1)
        return torch.from_numpy(numbers.astype(np.int64))
    names = [finding] * len(probabilities) if isinstance(finding, str) else list(finding)
    if len(names) != len(probabilities):
        raise FinetuneError(
            f"finding has {len(names)} names for {len(probabilities)} images: one each, or one for all."
        )
    return torch.tensor([class_number(model.classes, name) for name in names], dtype=torch.int64)
