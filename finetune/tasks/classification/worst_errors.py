"""The worst errors at the end of a fit, for the report, in worst_errors.json."""

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
from finetune.steps.explaining import input_image, load_inputs, table_rows

SIDE, MAX_BYTES = 256, 14000  # of an image: twelve errors stay below 450 kB


def write_worst_errors(
    run: RunFolder,
    network: Network,
    data: ImageData,
    predictions: Predictions,
    max_errors: int,
    operating_points: Mapping[str, Any] | None = None,
    class_indices: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Write the `max_errors` most confident errors with images and Grad-CAM maps as JPEG in base64; no file for 0.
    `heat` is empty where the map is constant.

    Multilabel: {sample, patient, class, kind, probability, image, heat}, by the threshold of `decision_thresholds`.
    Multiclass: true and answer instead of kind; class is the answer, and the map is of it. `class_indices` are the
    network's outputs for the classes of the predictions, where they differ.
    """
    if not max_errors:
        return []
    thresholds = errors.thresholds_of(operating_points or {}, predictions.classes)
    worst = errors.worst(predictions, max_errors, thresholds if predictions.kind == "multilabel" else None)
    rows = table_rows(data, [str(predictions.frame["sample"].iloc[error.row]) for error in worst])
    heat = heat_maps(network, data, rows, [class_indices[error.k] if class_indices else error.k for error in worst])
    records = []
    for number, (error, row) in enumerate(zip(worst, rows, strict=True)):
        image = input_image(data, row)
        records.append(
            {
                **error.to_dict(predictions),
                "image": overlays.jpeg(image, SIDE, MAX_BYTES),
                "heat": overlays.jpeg(overlays.heated(image, heat[number]), SIDE, MAX_BYTES)
                if np.ptp(heat[number]) > 0
                else "",  # constant: it would be the image again
            }
        )
    write_json_atomic(run.worst_errors, records)
    return records


def heat_maps(
    network: Network,
    data: ImageData,
    rows: Sequence[int],
    classes: Sequence[int],
    method: str = "grad_cam",
    batch_size: int = 16,
) -> np.ndarray:  # -> (N, S, S)
    """The heat maps of rows of the sample table, each for one class."""
    parts = [
        heat_of(
            network, load_inputs(data, rows[i : i + batch_size]), torch.tensor(classes[i : i + batch_size]), method
        ).numpy()
        for i in range(0, len(rows), batch_size)
    ]
    side = data.preprocessing.image_size
    return np.concatenate(parts) if parts else np.zeros((0, side, side), np.float32)
