"""A heat map beside each prediction: the image with the evidence for a class over it, as a small JPEG."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.errors import FinetuneError
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.explanations import overlays
from finetune.explanations.inputs import class_number
from finetune.explanations.maps import heat_of
from finetune.files import write_bytes_atomic
from finetune.inference import best_device
from finetune.model_file import Model

QUALITY = 85  # of the JPEG: some 10 kB at 224 px


class HeatMaps:
    """Writes Grad-CAM of each image into a folder, under the image's own path below `base` with .jpg behind it.

    Args:
        finding: the class to explain; None takes each image's most probable one.

    Raises:
        FinetuneError: the model is no classifier, or does not know the class.
    """

    def __init__(self, model: Model, folder: Path, base: Path, finding: str | None, device: str):
        if not isinstance(model.answers, ClassAnswers):
            raise FinetuneError(
                f"heatmaps={folder} are of classifiers; this model is of task={model.task}. Leave heatmaps out; "
                "job=explain explains masks and boxes."
            )
        self.number = None if finding is None else class_number(model.classes, finding)
        self.model, self.folder, self.base = model, folder, base
        self.device = best_device(device)

    def name(self, image: str) -> str:
        """Where the heat map of an image lies in the folder."""
        below = os.path.relpath(image.replace("::", "/"), self.base)
        if below.startswith(".."):  # of an image elsewhere: never outside of the folder
            mark = hashlib.sha256(os.path.abspath(image).encode("utf-8", "surrogateescape")).hexdigest()[:8]
            below = f"elsewhere/{mark}_{os.path.basename(image)}"
        return f"{Path(below).as_posix()}.jpg"

    def observe(self, names: Sequence[str], batch: dict[str, Any], logits: np.ndarray) -> None:
        """Write the heat maps of a batch."""
        logits = logits.reshape(len(names), -1)
        numbers = logits.argmax(axis=1) if self.number is None else np.full(len(names), self.number)
        network = self.model.network.to(self.device)
        heat = heat_of(network, batch["image"], torch.from_numpy(numbers.astype(np.int64))).numpy()
        for name, pixels, of_image in zip(names, batch["pixels"], heat, strict=True):
            path = self.folder / self.name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            Image.fromarray(overlays.heated(pixels, of_image)).save(file, "JPEG", quality=QUALITY)
            write_bytes_atomic(path, [file.getvalue()])
