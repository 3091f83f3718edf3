"""The mean shape of the training masks: made by a fit, kept beside its model, read by evaluations of the model."""

from __future__ import annotations

import numpy as np

from finetune.data.loading.module import ImageData
from finetune.evaluation.segmentation import mean_shape
from finetune.evaluation.segmentation.answers import palette
from finetune.runs.folder import RunFolder
from finetune.steps.prediction import broadcast_from_first
from finetune.steps.task import Subject


def of_subject(subject: Subject) -> np.ndarray | None:  # -> uint8 (S, S)
    """Of the model's training: in a fit by its training masks, later by the file beside the model. None where there
    are no such masks, or no file."""
    if subject.model is None:
        return broadcast_from_first(lambda: of_training(subject.data))
    folder, regions = RunFolder.of_model(subject.model), subject.data.table.regions
    if folder is None or regions is None:
        return None
    side = subject.data.preprocessing.image_size
    return mean_shape.read(folder.mean_shape, regions.names, regions.overlapping, side)


def of_training(data: ImageData) -> np.ndarray | None:  # -> uint8 (S, S)
    """Of the masks of the training images, in the network's square."""
    annotated, regions = data.eval_dataset.annotated, data.table.regions
    masks = None if annotated is None else annotated.masks
    if masks is None or regions is None:
        return None
    shape = mean_shape.MeanShape(regions.names, regions.overlapping, data.preprocessing.image_size)
    for row in data.rows("train").tolist():
        shape.add(data.preprocessing.crop(masks[row]), masks.known[row])
    return shape.label_map()


def write(run: RunFolder, label_map: np.ndarray | None) -> None:
    """mean_shape.png of the run; no file where there is none."""
    run.mean_shape.unlink(missing_ok=True)
    if label_map is not None:
        mean_shape.write(label_map, run.mean_shape, palette())
