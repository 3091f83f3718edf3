"""The public way to heat maps: a loaded model, pictures, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.data.decoding import containers
from finetune.data.decoding.images import as_picture, read_picture, read_size
from finetune.errors import FinetuneError, one_of
from finetune.explanations import overlays
from finetune.explanations.geometry import to_input
from finetune.explanations.localisation import maximum
from finetune.explanations.maps import check_method, heat_of
from finetune.inference import best_device, predict
from finetune.model_file import Model


@dataclass
class Explanation:
    """Where a model looked in N pictures, each for one class."""

    names: list[str]
    """Path of each picture; its position for pictures given as arrays."""
    explained: list[str]
    """The class that each map is of."""
    heat: np.ndarray
    """(N, S, S) float32, 0 or more, in pixels of the network's input; not rescaled per picture."""
    probabilities: np.ndarray
    """(N, K) sigmoid or softmax, as `prob_<class>` of model.predict."""
    classes: list[str]
    method: str
    pictures: list[np.ndarray] = field(repr=False)
    """uint8 (S, S) or (S, S, 3): what the network saw, before normalising."""
    sizes: list[tuple[int, int]] = field(repr=False)
    """Height and width of each picture as it was read."""
    model: Model = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def probability(self, number: int) -> float:
        """Of the class that the map is of."""
        return float(self.probabilities[number, self.classes.index(self.explained[number])])

    def overlay(self, number: int, boxes: Sequence[tuple[float, float, float, float]] = ()) -> Image.Image:
        """The picture in gray beside the same with its heat, (S, 2 S) in RGB; the hottest pixel of each map has the
        same colour. Boxes (left, top, width, height) in pixels of the stored picture are outlined."""
        corners = to_input(boxes, self.sizes[number], self.model.preprocessing)
        return Image.fromarray(overlays.beside(self.pictures[number], self.heat[number], corners))

    def told(self, number: int) -> dict[str, Any]:
        """{sample, class, probability, maximum} in plain values; x and y of the maximum from 0 to 1, None where the map
        is the same everywhere."""
        return {
            "sample": self.names[number],
            "class": self.explained[number],
            "probability": self.probability(number),
            "maximum": place(self.heat[number]),
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
    """Heat maps of pictures for one class each.

    Args:
        model: from `finetune.load`.
        images: paths, PIL images, or uint8 arrays (H, W) or (H, W, 3), as in model.predict.
        finding: the class, or one for each picture; None takes each picture's most probable one.
        method: grad_cam, grad_cam_pp, occlusion or integrated_gradients.
        options: patch and stride of occlusion, steps of integrated_gradients.

    Raises:
        FinetuneError: an unknown class, method or option; an image that cannot be read.
    """
    if isinstance(images, str | Path | np.ndarray):
        raise FinetuneError("explain takes a list of images: put a single one into brackets.")
    if batch_size < 1:
        raise FinetuneError(f"batch_size={batch_size} must be 1 or more.")
    check_method(method, list(options))
    preprocessing = model.preprocessing
    names = [str(image) if isinstance(image, str | Path) else str(i) for i, image in enumerate(images)]
    pictures, sizes = [], []
    for image in images:
        picture, size = _read(image, preprocessing.enough)
        sizes.append(size)
        pictures.append(preprocessing.crop(preprocessing.resize(picture)))
    of = best_device(device)
    model.network.to(of)
    batches: list[dict[str, Any]] = [
        {
            "image": torch.stack([preprocessing.to_tensor(p) for p in pictures[start : start + batch_size]]),
            "index": np.arange(start, min(start + batch_size, len(pictures))),
        }
        for start in range(0, len(pictures), batch_size)
    ]
    _, logits = predict(model.network, batches, of)
    probabilities = model.probabilities(logits.reshape(len(pictures), len(model.classes)))
    chosen = _classes(model, finding, probabilities)
    heat = np.zeros((0, preprocessing.image_size, preprocessing.image_size), np.float32)
    if batches:
        parts = [
            heat_of(model.network, b["image"], chosen[torch.from_numpy(b["index"])], method, **options).numpy()
            for b in batches
        ]
        heat = np.concatenate(parts)
    explained = [model.classes[k] for k in chosen.tolist()]
    return Explanation(names, explained, heat, probabilities, model.classes, method, pictures, sizes, model)


def place(heat: np.ndarray) -> dict[str, float] | None:
    """The maximum's place as parts of the input's side: x from the left, y from the top."""
    at = maximum(heat)
    return None if at is None else {"x": (at[0] + 0.5) / heat.shape[1], "y": (at[1] + 0.5) / heat.shape[0]}


def class_number(classes: Sequence[str], name: str) -> int:
    """Where a class stands.

    Raises:
        FinetuneError: the model does not know it.
    """
    if name not in classes:
        raise one_of("finding", name, classes)
    return list(classes).index(name)


def _read(image: Any, enough: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture as model.predict reads it, and its height and width in the file: a large JPEG is decoded at a part."""
    if not isinstance(image, str | Path):
        picture = as_picture(image)
        return picture, (picture.shape[0], picture.shape[1])
    picture = read_picture(image, enough)
    in_file = None if containers.member(Path(image)) is not None else read_size(image)
    return picture, in_file or (picture.shape[0], picture.shape[1])


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
