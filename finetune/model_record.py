"""What a model.safetensors says of its labels, its data and its outputs, and how these are checked later.

The test vectors are outputs that the network gave for images which a rule makes: whoever has the file can compute them
again, in any program, without an image of the data.
"""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from finetune.errors import FinetuneError
from finetune.files import SAMPLES
from finetune.heads.features import gives
from finetune.network import Network
from finetune.preprocessing import Preprocessing
from finetune.weights.files import sha256
from finetune.weights.stored_names import Keys

STRICT: Any = {"extra": "forbid", "allow_inf_nan": False}

IMAGES = 2
"""Test images of a model file."""
LARGEST_SIDE = 512
"""Pixels of a test image; of a model for larger images they are of this side."""
GRID = 8
"""The second image has squares of one colour, this many a side: unlike noise, it looks the same in every resolution."""

RELATIVE = 1e-3
"""Tolerance, as a share of the largest stored output: processors and versions of torch add in other orders (1e-6 or so
of it), and GPUs multiply in TF32 by default (some 1e-4)."""
ABSOLUTE = 1e-6


@dataclass(frozen=True)
class Labels:
    """What the classes mean, and what became of unknown labels."""

    __pydantic_config__: ClassVar[Any] = STRICT

    meaning: str
    """exclusive: one class is true of each image; findings: each may hold beside the others; else the type of the
    target (mask, boxes)."""
    unknown: dict[str, Any] = field(default_factory=dict)
    """The policies for labels that were uncertain or missing in the training data, as in the configuration; empty for
    data that have none."""


@dataclass(frozen=True)
class Data:
    """Identifies the data that the model was fitted on, without any of them."""

    __pydantic_config__: ClassVar[Any] = STRICT

    table: str | None = None
    """sha256 of the sample table: images, patients, splits, targets, metadata."""
    samples: str | None = None
    """sha256 of the samples.csv of the run."""


@dataclass(frozen=True)
class Vectors:
    """Outputs (N, D) for test images 0 to N - 1."""

    __pydantic_config__: ClassVar[Any] = STRICT

    side: int
    """Of the test images, in pixels."""
    of: Literal["logits", "mean_logits", "features"]
    """logits of a classifier; their mean over the pixels (a head of regions); the features of novelty (detectors)."""
    outputs: list[list[float]]

    def __post_init__(self) -> None:
        if not 1 <= self.side <= LARGEST_SIDE or not 1 <= len(self.outputs) <= 8:
            raise FinetuneError(f"test vectors must be of 1 to 8 images of 1 to {LARGEST_SIDE} pixels a side.")
        if len({len(row) for row in self.outputs}) > 1:
            raise FinetuneError("test vectors must be equally long.")

    @property
    def tolerance(self) -> float:
        """How far outputs may lie from the stored ones."""
        return RELATIVE * max((abs(value) for row in self.outputs for value in row), default=0.0) + ABSOLUTE

    @classmethod
    def of_network(cls, network: Network, preprocessing: Preprocessing) -> "Vectors | None":
        """Those of a network in eval mode; None where its outputs are not finite."""
        side = min(preprocessing.image_size, LARGEST_SIDE)
        outputs = _outputs(network, preprocessing, side, IMAGES)
        kind = {"classes": "logits", "regions": "mean_logits"}.get(gives(network.head), "features")
        return cls(side, kind, outputs.tolist()) if np.isfinite(outputs).all() else None  # type: ignore[arg-type]

    def difference(self, network: Network, preprocessing: Preprocessing) -> float:
        """The largest distance of the network's outputs from the stored ones; infinite if there are more or fewer."""
        outputs, stored = _outputs(network, preprocessing, self.side, len(self.outputs)), np.array(self.outputs)
        if outputs.shape != stored.shape:
            return math.inf
        largest = float(np.abs(outputs - stored).max(initial=0.0))
        return largest if math.isfinite(largest) else math.inf


@dataclass(frozen=True)
class Record:
    """All of this, and whose names the tensors have."""

    __pydantic_config__: ClassVar[Any] = STRICT

    keys: Keys = "parts"
    """See `finetune.weights.stored_names`."""
    labels: Labels | None = None
    data: Data | None = None
    vectors: Vectors | None = None


@dataclass(frozen=True)
class Verification:
    """What `Model.verify` has checked."""

    images: int
    """Number of test images."""
    of: str
    """The outputs that were compared: see `Vectors.of`."""
    difference: float
    """The largest distance from the stored outputs."""
    tolerance: float
    """The largest that is accepted."""
    samples: str
    """On the samples.csv beside the file, in words."""

    def __str__(self) -> str:
        return (
            f"The {self.of.replace('_', ' ')} of {self.images} test images differ by at most {self.difference:.2g} "
            f"from those in the file (tolerance {self.tolerance:.2g}). {self.samples}"
        )


def made_image(number: int, side: int, channels: int) -> np.ndarray:
    """Test image 0, 1, ...: uint8 (side, side), or with three channels (side, side, 3).

    Its values are the bytes of SHAKE-256 of `finetune test image NUMBER`, row by row, channels last; an odd image has
    8 x 8 squares of them, of which pixel (y, x) shows (8 y // side, 8 x // side).
    """
    cells = side if number % 2 == 0 else GRID
    shape = (cells, cells) if channels == 1 else (cells, cells, channels)
    values = hashlib.shake_256(f"finetune test image {number}".encode()).digest(math.prod(shape))
    index = np.arange(side) * cells // side
    return np.frombuffer(values, np.uint8).reshape(shape)[index][:, index]


def verify(record: Record, network: Network, preprocessing: Preprocessing, path: Path | None) -> Verification:
    """Compare the outputs of a network in eval mode with the test vectors, and the samples.csv beside `path` with that
    of the fit.

    Raises:
        FinetuneError: the outputs lie beyond the tolerance, the samples.csv is another, or there are no test vectors.
    """
    vectors = record.vectors
    if path is None:
        raise FinetuneError("The model has not been saved, so there is nothing to verify. Save it first: save(PATH).")
    if vectors is None:
        raise FinetuneError(
            f"model={path} has no test vectors: its format is below 3, or its outputs were not finite. To write it "
            "again with them: finetune.load(PATH).save(PATH)."
        )
    difference = vectors.difference(network, preprocessing)
    if not difference <= vectors.tolerance:
        raise FinetuneError(
            f"model={path} does not give its stored outputs here: they differ by {difference:.2g}, more than the "
            f"tolerance of {vectors.tolerance:.2g}. The network was changed in memory, or this version of torch or "
            "this device computes otherwise. Load it again, and verify it on the CPU."
        )
    samples = check_samples(record.data, path.parent)
    return Verification(len(vectors.outputs), vectors.of, difference, vectors.tolerance, samples)


def check_samples(data: Data | None, folder: Path) -> str:
    """What the samples.csv in the folder of a model file is, in a sentence.

    Raises:
        FinetuneError: it is that of another fit.
    """
    path, stated = folder / SAMPLES, None if data is None else data.samples
    if stated is None:
        return f"The file names no {SAMPLES}."
    if not path.is_file():
        return f"There is no {SAMPLES} beside the file."
    if (actual := sha256(path)) != stated:
        raise FinetuneError(
            f"{path} does not belong to the model beside it, or was changed: its sha256 is {actual[:12]}..., and that "
            f"of the fit's {SAMPLES} was {stated[:12]}.... Restore the file of the run, or move the model elsewhere."
        )
    return f"The {SAMPLES} beside it is that of its fit."


@torch.inference_mode()
def _outputs(network: Network, preprocessing: Preprocessing, side: int, count: int) -> np.ndarray:  # -> (N, D)
    images = np.stack([made_image(number, side, preprocessing.in_channels) for number in range(count)])
    batch = preprocessing.normalise(torch.from_numpy(images).to(next(network.parameters()).device))
    batch = batch.contiguous(memory_format=torch.channels_last)
    kind = gives(network.head)
    outputs = network.features(batch) if kind == "detections" else network(batch)
    outputs = outputs.mean((2, 3)) if kind == "regions" else outputs
    return outputs.float().cpu().numpy().astype(np.float64)
