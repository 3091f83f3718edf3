"""The worst errors at the end of a fit: what the report shows of them, in worst_errors.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune.data.loading.module import ImageData
from finetune.evaluation.classification.predictions import Predictions
from finetune.explanations import overlays
from finetune.explanations import worst_errors as errors
from finetune.explanations.maps import heat_of
from finetune.files import write_json_atomic
from finetune.network import Network
from finetune.runs.folder import RunFolder

SIDE, MAX_BYTES = 256, 14000  # of an image: twelve errors stay under 450 kB


def worst_errors(
    run: RunFolder,
    network: Network,
    data: ImageData,
    predictions: Predictions,
    most: int,
    operating_points: Mapping[str, Any] | None = None,
    of_network: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Write the `most` confident errors with their images and Grad-CAM maps as JPEG in base64; none for 0. `heat` is
    empty where the map is the same everywhere.

    Multilabel: {sample, patient, class, kind, probability, image, heat}, by the threshold of `decision_thresholds`.
    Multiclass: true and answer instead of kind; class is the answer, of which the map is. `of_network` says where the
    classes of the predictions stand in the network's answer, if elsewhere.
    """
    if not most:
        return []
    limits = errors.thresholds_of(operating_points or {}, predictions.classes)
    wrong = errors.worst(predictions, most, limits if predictions.kind == "multilabel" else None)
    rows = table_rows(data, [str(predictions.frame["sample"].iloc[one.row]) for one in wrong])
    heat = heat_maps(network, data, rows, [of_network[one.k] if of_network else one.k for one in wrong])
    told = []
    for number, (one, row) in enumerate(zip(wrong, rows, strict=True)):
        image = shown(data, row)
        told.append(
            {
                **one.to_dict(predictions),
                "image": overlays.jpeg(image, SIDE, MAX_BYTES),
                "heat": overlays.jpeg(overlays.heated(image, heat[number]), SIDE, MAX_BYTES)
                if np.ptp(heat[number]) > 0
                else "",  # the same everywhere: it would be the image once more
            }
        )
    write_json_atomic(run.worst_errors, told)
    return told


def table_rows(data: ImageData, samples: Sequence[str]) -> list[int]:
    """Rows of the sample table by their paths."""
    of = {path: row for row, path in enumerate(data.table.paths)}
    return [of[sample] for sample in samples]


def shown(data: ImageData, row: int) -> np.ndarray:  # -> uint8 (S, S) or (S, S, 3)
    """The picture as the network sees it, before normalising."""
    return data.preprocessing.crop(data.images[row])


def inputs(data: ImageData, rows: Sequence[int]) -> torch.Tensor:  # -> (N, C, S, S)
    """Normalised pictures."""
    return data.eval_dataset.__getitems__(list(rows))["image"]


def heat_maps(
    network: Network,
    data: ImageData,
    rows: Sequence[int],
    classes: Sequence[int],
    method: str = "grad_cam",
    at_once: int = 16,
) -> np.ndarray:  # -> (N, S, S)
    """The maps of rows of the sample table, for one class each."""
    parts = [
        heat_of(network, inputs(data, rows[i : i + at_once]), torch.tensor(classes[i : i + at_once]), method).numpy()
        for i in range(0, len(rows), at_once)
    ]
    side = data.preprocessing.image_size
    return np.concatenate(parts) if parts else np.zeros((0, side, side), np.float32)
