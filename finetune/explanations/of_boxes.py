"""Heat maps of a detector, through the public interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune import drawing
from finetune.drawing import LabelledBox
from finetune.errors import FinetuneError
from finetune.evaluation.detection.boxes_file import in_stored_image
from finetune.explanations import geometry, overlays
from finetune.explanations.boxes import BoxMaps, box_maps, detect
from finetune.explanations.inputs import Inputs, batched, number_of_each, only_grad_cam, peak_position
from finetune.explanations.mass import inside
from finetune.inference import best_device
from finetune.model_file import Model

MAX_BOXES = 3
"""Boxes of an image, the most confident first, where nothing else is said."""


@dataclass
class BoxExplanation:
    """Heat maps of a detector for B boxes of N images, the most confident of each image first."""

    names: list[str]
    """(B) path of the image of each box; its position for images passed as arrays."""
    explained: list[str]
    """(B) the class of each box."""
    heat: np.ndarray
    """(B, S, S) float32, 0 or more, in pixels of the network's input; not rescaled per box."""
    reach: np.ndarray
    """(B, S, S) bool: the pixels that the gradient of the score reaches; no heat lies elsewhere."""
    scores: np.ndarray
    """(B,) from 0 to 1."""
    boxes: np.ndarray
    """(B, 4) left, top, right, bottom in pixels of the network's input."""
    numbers: list[int]
    """(B) the image of each box."""
    empty: list[str]
    """Images without a detection: there is nothing to explain."""
    method: str
    sources: torch.Tensor = field(repr=False)
    """(B, ...) what the scores are computed from: see `boxes.detect`."""
    inputs: Inputs = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def stored_box(self, number: int) -> list[float]:
        """left, top, right, bottom of a box in pixels of the image as it was read, cut at its border."""
        placement = self.inputs.placement(self.numbers[number])
        left, top, right, bottom = placement.visible
        corners = placement.boxes_to_stored(self.boxes[number : number + 1])[0]
        return corners.clip([left, top, left, top], [right, bottom, right, bottom]).tolist()

    def stored_heat(self, number: int) -> np.ndarray:
        """The map (H, W) on the pixels of the image as it was read; NaN where the network did not see it."""
        return self.inputs.placement(self.numbers[number]).values_to_stored(self.heat[number])

    def share(self, number: int) -> float | None:
        """The share of the heat that lies in the box; None without heat."""
        value = inside(self.heat[number], box_pixels(self.boxes[number], self.heat.shape[-1]))
        return None if np.isnan(value) else value

    def overlay(self, number: int) -> Image.Image:
        """The image in gray beside the same with its heat map, in RGB, with the box and its score."""
        left, top, right, bottom = self.boxes[number].tolist()
        box = LabelledBox((left, top, right, bottom), self.explained[number], float(self.scores[number]))
        sides = overlays.gray_and_heated(self.inputs.pixels[self.numbers[number]], self.heat[number])
        drawn = [drawing.with_boxes(image, [], [box], legend=False) for image in sides]
        return Image.fromarray(np.concatenate(drawn, axis=1))

    def to_dict(self, number: int) -> dict[str, Any]:
        """{sample, class, score, box, inside, maximum} in plain values: the box as `stored_box`, and the share of the
        heat in it; None without heat."""
        return {
            "sample": self.names[number],
            "class": self.explained[number],
            "score": float(self.scores[number]),
            "box": self.stored_box(number),
            "inside": self.share(number),
            "maximum": peak_position(self.heat[number]),
        }


def explain_boxes(
    model: Model,
    images: Sequence[Any],
    finding: str | Sequence[str] | None = None,
    *,
    method: str = "grad_cam",
    batch_size: int = 16,
    device: str = "auto",
    boxes: int = MAX_BOXES,
    **options: Any,
) -> BoxExplanation:
    """`explain` of a detector: at most `boxes` of each image, whatever their scores; boxes in the border that `fit=pad`
    adds are left out, as in predictions."""
    only_grad_cam(model.task, method, list(options))
    if boxes < 1:
        raise FinetuneError(f"boxes={boxes} must be 1 or more.")
    inputs = Inputs.read(model, images)
    labels_wanted = None if finding is None else number_of_each("finding", finding, model.classes, len(inputs))
    model.network.to(best_device(device))
    numbers: list[int] = []
    chosen: list[tuple[Any, ...]] = []  # corners, score, label and source of each box
    for rows in batched(len(inputs), batch_size):
        for row, (detections, sources) in zip(rows, detect(model.network, inputs.tensors(rows)), strict=True):
            _, _, visible = in_stored_image(
                (detections.boxes, detections.scores, np.arange(len(sources))), inputs.placement(row)
            )
            label = None if labels_wanted is None else labels_wanted[row]
            first = [i for i in visible.tolist() if label is None or detections.labels[i] == label][:boxes]
            chosen += zip(*(part[first] for part in (*detections, sources)), strict=True)
            numbers += [row] * len(first)
    side = model.preprocessing.image_size
    parts = [
        BoxMaps(*(torch.zeros(0, side, side, dtype=t) for t in (torch.float32, torch.bool)), *[torch.zeros(0)] * 2)
    ]
    corners, scores, labels, sources = columns(chosen)
    for rows in batched(len(numbers), batch_size):
        batch = slice(rows.start, rows.stop)
        parts.append(
            box_maps(model.network, inputs.tensors([numbers[row] for row in rows]), labels[batch], sources[batch])
        )
    return BoxExplanation(
        [inputs.names[number] for number in numbers],
        [model.classes[label] for label in labels.tolist()],
        torch.cat([part.heat for part in parts]).numpy(),
        torch.cat([part.reach for part in parts]).numpy(),
        scores.numpy(),
        corners.numpy(),
        numbers,
        [name for number, name in enumerate(inputs.names) if number not in numbers],
        method,
        sources,
        inputs,
    )


def columns(chosen: Sequence[tuple[Any, ...]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Corners (B, 4), scores (B,), labels (B,) and sources (B, ...) of boxes."""
    if not chosen:
        return torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    corners, scores, labels, sources = (torch.stack(column) for column in zip(*chosen, strict=True))
    return corners, scores, labels, sources


def box_pixels(corners: np.ndarray, side: int) -> np.ndarray:  # (4,) -> bool (side, side)
    """The pixels of a box in the network's input."""
    return geometry.mask(geometry.as_corners(np.asarray(corners, np.float64).reshape(1, 4)), side)
