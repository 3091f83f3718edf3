"""What an exported graph is compared with: the outputs of the model on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune import inference
from finetune.deploy.formats import Run
from finetune.deploy.graph import Graph
from finetune.errors import FinetuneError
from finetune.heads.detection import SAME_SCORE
from finetune.image_batches import read_pixels
from finetune.model_file import Model

TOLERANCE = 1e-4
"""Largest difference of logits, or of the scores of boxes, that is accepted in 32 bits."""
PROBABILITY_TOLERANCE = 1e-5
"""Largest difference of probabilities that are made of the same logits."""
NOISE_IMAGES = 8


@dataclass(frozen=True)
class Parity:
    """The comparison of a graph with the model that it was made from."""

    images: int
    source: str
    """What the images are, in words."""
    largest: float
    """Largest difference of logits (classify, segment), or of scores of boxes (detect)."""
    what: str = "logits"
    label_pixels: float | None = None
    """Share of the pixels of all label maps that differ."""

    def sentence(self) -> str:
        """The comparison in words."""
        text = f"Largest difference of {self.what} from the model's on {self.images:,} images ({self.source}): "
        pixels = "" if self.label_pixels is None else f"; {self.label_pixels:.2e} of the label maps' pixels differ"
        return f"{text}{self.largest:.1e}{pixels}"


def noise(model: Model, images: int = NOISE_IMAGES, seed: int = 0) -> list[np.ndarray]:
    """Coloured noise of several sizes, where there are no images."""
    rng, side = np.random.default_rng(seed), model.preprocessing.image_size
    sizes = [(side, side), (side + 7, 2 * side), (3 * side, side + 1), (max(1, side // 2), side)]
    return [rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8) for i in range(images)]


def decode_side(model: Model) -> int | None:
    """Shorter side that a JPEG is decoded at least at; None for its full size, which label maps and boxes need."""
    return None if model.answers.needs_size else model.preprocessing.min_decode_side


def decoded(model: Model, image: Any) -> np.ndarray:
    """An image as the graph is to get it."""
    return read_pixels(image, decode_side(model), None, False)[0]


def pixels_of(model: Model, image: Any, size: str) -> np.ndarray:
    """The graph's input for an image, uint8 (1, H, W, 3): as decoded, or for size=square as the network sees it."""
    pixels = decoded(model, image)
    if size == "square":
        pixels = model.preprocessing.crop(model.preprocessing.resize(pixels))
    return np.repeat(pixels[None, ..., None], 3, 3) if pixels.ndim == 2 else np.ascontiguousarray(pixels[None])


def compare(model: Model, run: Run, graph: Graph, images: Sequence[Any], source: str) -> Parity:
    """The outputs of `run` beside those of the model, image by image; and those of a batch of two beside them.

    Raises:
        FinetuneError: an image cannot be read, or a batch of two gives something else than each of its images.
    """
    if not images:
        raise FinetuneError("There are no images to compare on.")
    size, what = graph.input.size, graph.logits
    largest, wrong, total = 0.0, 0, 0
    for number, (image, expected) in enumerate(zip(images, model_outputs(model, images), strict=True)):
        batch = pixels_of(model, image, size)
        found = run(batch)
        away = difference(expected, found, what)
        largest = away if not away <= largest else largest  # also where it is NaN
        check_probabilities(model, expected, found)
        if "label_map" in found:
            pixels = expected["label_map"]
            wrong, total = wrong + int((pixels != found["label_map"][0]).sum()), total + pixels.size
        if number == 0:
            check_batches(run, batch, found, what)
    return Parity(len(images), source, largest, what, wrong / total if total else None)


def difference(expected: dict[str, Any], found: dict[str, np.ndarray], what: str) -> float:
    """The largest difference of logits; of candidates for boxes the largest difference of sorted scores, or infinite
    where boxes of equal scores differ by more than a hundredth of a pixel."""
    if what == "logits":
        return float(np.abs(found["logits"][0] - expected["logits"]).max())
    boxes, scores, labels = (found[name][0] for name in ("boxes", "scores", "labels"))
    worst = 0.0
    for box, score, label in zip(*expected["detections"], strict=True):
        same = np.flatnonzero((labels == label) & (np.abs(boxes - box).max(axis=1) < 0.01))
        away = float(np.abs(scores[same] - score).min()) if len(same) else np.inf
        worst = away if not away <= worst else worst
    return worst


def check_probabilities(model: Model, expected: dict[str, Any], found: dict[str, np.ndarray]) -> None:
    """Raise a FinetuneError where the graph makes other probabilities of its logits than the model makes of them."""
    if model.task != "classify":
        return
    columns = model.answers.columns(found["logits"], [])
    for output, prefix in (("probabilities", "prob_"), ("calibrated", "calibrated_")):
        names = [name for name in columns if name.startswith(prefix)]
        if output not in found or not names:
            continue
        own = np.stack([np.asarray(columns[name], np.float64) for name in names], axis=1)
        away = float(np.abs(found[output] - own).max())
        if not away <= PROBABILITY_TOLERANCE:
            raise FinetuneError(f"The graph's {output} differ from the model's by {away:.1e}. Nothing was written.")


def check_batches(run: Run, batch: np.ndarray, single: dict[str, np.ndarray], what: str) -> None:
    """Raise a FinetuneError where a batch of an image and its mirror image gives another answer for the image."""
    both = run(np.concatenate([batch, np.ascontiguousarray(batch[:, :, ::-1])]))
    away = float(np.abs(both[what][0] - single[what][0]).max())
    if not away <= max(TOLERANCE, SAME_SCORE):
        raise FinetuneError(f"The graph gives an image another answer in a batch of two: {what} differ by {away:.1e}.")


def model_outputs(model: Model, images: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Of each image the model's outputs: logits, or the detections of a head that gives boxes; and the label map."""
    forward = inference.mean_of_views(model.network, model.tta)
    device = torch.device("cpu")
    for image in images:
        pixels = decoded(model, image)
        batch = {"image": model.preprocessing(pixels)[None]}
        _, output = next(iter(inference.run(model.network, [batch], device, forward)))
        if model.task == "detect":
            yield {"detections": output[0]}
            continue
        values: dict[str, Any] = {"logits": output[0]}
        if model.task == "segment":
            values["label_map"] = model.answers.label_map(output[0], model.preprocessing.placement(*pixels.shape[:2]))  # type: ignore[attr-defined]
        yield values
