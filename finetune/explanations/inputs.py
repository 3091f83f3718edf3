"""Images as a model sees them, for the public interface to heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.decoding import containers
from finetune.data.decoding.images import as_image, read_image, read_size
from finetune.errors import FinetuneError, one_of
from finetune.explanations.localisation import maximum
from finetune.explanations.maps import check_method
from finetune.model_file import Model
from finetune.placement import Placement

GRAD_CAM = "grad_cam"
"""The method that every task has, each in its own form."""


@dataclass
class Inputs:
    """N images in the square that the network reads."""

    names: list[str]
    """Path of each image; its position for images passed as arrays."""
    pixels: list[np.ndarray] = field(repr=False)
    """uint8 (S, S) or (S, S, 3): what the network sees, before normalising."""
    sizes: list[tuple[int, int]] = field(repr=False)
    """Height and width of each image as it was read."""
    model: Model = field(repr=False)

    @classmethod
    def read(cls, model: Model, images: Sequence[Any]) -> Inputs:
        """Paths, PIL images, or uint8 arrays (H, W) or (H, W, 3), as in model.predict.

        Raises:
            FinetuneError: no list, or an image that cannot be read.
        """
        if isinstance(images, str | Path | np.ndarray):
            raise FinetuneError("explain takes a list of images: put a single one into brackets.")
        preprocessing = model.preprocessing
        names = [str(image) if isinstance(image, str | Path) else str(i) for i, image in enumerate(images)]
        inputs, sizes = [], []
        for image in images:
            pixels, size = _read(image, preprocessing.min_decode_side)
            sizes.append(size)
            inputs.append(preprocessing.crop(preprocessing.resize(pixels)))
        return cls(names, inputs, sizes, model)

    def __len__(self) -> int:
        return len(self.names)

    def tensors(self, numbers: Sequence[int]) -> torch.Tensor:  # -> (n, C, S, S)
        """Some of the images, normalised."""
        preprocessing = self.model.preprocessing
        if not len(numbers):
            return torch.zeros(0, preprocessing.in_channels, preprocessing.image_size, preprocessing.image_size)
        return torch.stack([preprocessing.to_tensor(self.pixels[number]) for number in numbers])

    def shown(self, numbers: Sequence[int]) -> torch.Tensor:  # -> bool (n, S, S)
        """The pixels that show the images, and not the border of fit=pad."""
        side = self.model.preprocessing.image_size
        masks = [self.placement(number).shown() for number in numbers]
        return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, side, side, dtype=torch.bool)

    def placement(self, number: int) -> Placement:
        """Where an image lies in the square."""
        return self.model.preprocessing.placement(*self.sizes[number])


def peak_position(heat: np.ndarray) -> dict[str, float] | None:
    """The position of the maximum relative to the side of the input: x from the left, y from the top."""
    at = maximum(heat)
    return None if at is None else {"x": (at[0] + 0.5) / heat.shape[1], "y": (at[1] + 0.5) / heat.shape[0]}


def batched(n: int, size: int) -> list[range]:
    """The numbers below `n`, at most `size` at a time."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def class_number(classes: Sequence[str], name: str, argument: str = "finding") -> int:
    """The number of a class or region.

    Raises:
        FinetuneError: the model does not know it.
    """
    if name not in classes:
        raise one_of(argument, name, classes)
    return list(classes).index(name)


def number_of_each(argument: str, names: str | Sequence[str], classes: Sequence[str], n: int) -> list[int]:
    """The numbers of the classes of `n` images: of one name for all, or a name for each.

    Raises:
        FinetuneError: an unknown name, or another number of names.
    """
    each = [names] * n if isinstance(names, str) else list(names)
    if len(each) != n:
        raise FinetuneError(f"{argument} has {len(each)} names for {n} images: one each, or one for all.")
    return [class_number(classes, name, argument) for name in each]


def only_grad_cam(task: str, method: str, options: Sequence[str] = ()) -> None:
    """Refuse the methods that only explain classes.

    Raises:
        FinetuneError: another method than grad_cam, or an option that is none here.
    """
    check_method(method)
    if method != GRAD_CAM:
        raise FinetuneError(f"method={method} explains the classes of whole images; of task={task} choose {GRAD_CAM}.")
    if options:
        raise FinetuneError(f"{options[0]} is no option of explain for a model of task={task}.")


def _read(image: Any, min_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as model.predict reads it, and its height and width in the file: large JPEGs are decoded downscaled."""
    if not isinstance(image, str | Path):
        pixels = as_image(image)
        return pixels, (pixels.shape[0], pixels.shape[1])
    pixels = read_image(image, min_side)
    in_file = None if containers.member(Path(image)) is not None else read_size(image)
    return pixels, in_file or (pixels.shape[0], pixels.shape[1])
