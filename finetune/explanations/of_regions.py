"""Heat maps of a segmentation model, through the public interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from finetune import drawing
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.evaluation.segmentation.collect import HALF
from finetune.explanations import overlays
from finetune.explanations.inputs import Inputs, batched, number_of_each, only_grad_cam, peak_position
from finetune.explanations.mass import inside
from finetune.explanations.regions import RegionMaps, seg_grad_cam
from finetune.inference import best_device, predict
from finetune.model_file import Model


@dataclass
class RegionExplanation:
    """Heat maps of a segmentation model for N images, each for one region: Seg-Grad-CAM (Vinogradova et al., 2020)."""

    names: list[str]
    """Path of each image; its position for images passed as arrays."""
    explained: list[str]
    """The region that each map is of."""
    heat: np.ndarray
    """(N, S, S) float32, 0 or more, in pixels of the network's input; not rescaled per image."""
    predicted: np.ndarray
    """(N, S, S) bool: the pixels of the image that are predicted to be in the region."""
    method: str
    inputs: Inputs = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def share(self, number: int) -> float | None:
        """The share of the heat that lies in the predicted region; None without heat or region."""
        value = inside(self.heat[number], self.predicted[number])
        return None if np.isnan(value) else value

    def stored_heat(self, number: int) -> np.ndarray:
        """The map (H, W) on the pixels of the image as it was read; NaN where the network did not see it."""
        return self.inputs.placement(number).values_to_stored(self.heat[number])

    def overlay(self, number: int, truth: np.ndarray | None = None) -> Image.Image:
        """The image in gray beside the same with its heat map, in RGB, with the outline of the predicted region; and of
        `truth`, bool (H, W) on the pixels of the image as it was read, where it is given."""
        true = np.zeros_like(self.predicted[number])
        if truth is not None:
            true = self.inputs.placement(number).mask_to_square(np.asarray(truth, bool))
        gray, heated = overlays.gray_and_heated(self.inputs.pixels[number], self.heat[number])
        sides = [drawing.with_masks(image, true, self.predicted[number], legend=False) for image in (gray, heated)]
        return Image.fromarray(np.concatenate(sides, axis=1))

    def to_dict(self, number: int) -> dict[str, Any]:
        """{sample, class, pixels, inside, maximum} in plain values: the predicted pixels of the network's input, and
        the share of the heat in them; None where there is none."""
        return {
            "sample": self.names[number],
            "class": self.explained[number],
            "pixels": int(self.predicted[number].sum()),
            "inside": self.share(number),
            "maximum": peak_position(self.heat[number]),
        }


def explain_regions(
    model: Model,
    images: Sequence[Any],
    region: str | Sequence[str] | None = None,
    *,
    method: str = "grad_cam",
    batch_size: int = 16,
    device: str = "auto",
    **options: Any,
) -> RegionExplanation:
    """`explain` of a segmentation model."""
    only_grad_cam(model.task, method, list(options))
    answers = segment_answers(model)
    inputs = Inputs.read(model, images)
    model.network.to(best_device(device))
    if region is None:
        numbers = _largest(model, inputs, batch_size, device)
    else:
        positions = number_of_each("region", region, answers.regions, len(inputs))
        numbers = [answers.classes.index(answers.regions[position]) for position in positions]
    side = model.preprocessing.image_size
    parts = [RegionMaps(torch.zeros(0, side, side), torch.zeros(0, side, side, dtype=torch.bool))]
    for rows in batched(len(inputs), batch_size):
        chosen = torch.tensor([numbers[row] for row in rows])
        pixels, limits = inputs.shown(rows), thresholds_of(answers)
        parts.append(seg_grad_cam(model.network, inputs.tensors(rows), chosen, limits, shown=pixels))
    heat, predicted = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
    explained = [answers.classes[number] for number in numbers]
    return RegionExplanation(inputs.names, explained, heat, predicted, method, inputs)


def segment_answers(model: Model) -> SegmentAnswers:
    """The answers of a segmentation model."""
    return cast(SegmentAnswers, model.answers)


def thresholds_of(answers: SegmentAnswers) -> torch.Tensor | None:
    """(K,) of regions that overlap; None of those that exclude each other."""
    if not answers.overlapping:
        return None
    return torch.tensor([answers.thresholds.get(name, HALF) for name in answers.classes])


def _largest(model: Model, inputs: Inputs, batch_size: int, device: str) -> list[int]:
    """The number of the region with most predicted pixels in each image; the first where none is predicted."""
    answers, numbers = segment_answers(model), []
    regions = [answers.classes.index(name) for name in answers.regions]
    limits = thresholds_of(answers)
    for rows in batched(len(inputs), batch_size):
        batch = {"image": inputs.tensors(rows), "index": np.array(rows)}
        _, logits = predict(model.network, [batch], best_device(device))
        shown = inputs.shown(rows).numpy()
        if limits is None:
            pixels = np.stack([((logits.argmax(axis=1) == k) & shown).sum(axis=(1, 2)) for k in regions], axis=1)
        else:
            marked = (torch.from_numpy(logits).sigmoid() >= limits[:, None, None]).numpy() & shown[:, None]
            pixels = marked.sum(axis=(2, 3))[:, regions]
        numbers += [regions[k] for k in pixels.argmax(axis=1).tolist()]
    return numbers
