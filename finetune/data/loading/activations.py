"""Activations of frozen parts, read in place of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WORDS = {2: np.int16, 4: np.int32, 8: np.int64}
"""Bytes of a number -> the type that the file has: numpy knows no bfloat16."""


@dataclass
class StoredActivations:
    """What lies before the part `start` for some rows of the table, from a memory-mapped file.

    The file has an entry per image and version: (H, W, C) of a map, in the order that convolutions have,
    or (D,) of pooled features.
    """

    npy: Path
    rows: np.ndarray
    """Rows of the table (n,) in the order of the file."""
    targets: Tensor
    """Of every row of the table (N, K)."""
    start: str
    """The first part of the network that still has to run."""
    dtype: torch.dtype
    """Of the numbers in the file."""
    compute_dtype: torch.dtype
    """Of the result of `take`: another one where the file stores fewer bits."""
    channels_last: bool = True
    """Order in memory of the result of `take`, that of the network's own activations."""
    versions: int = 1
    """Augmented versions of each image; epoch e reads version e modulo `versions`."""
    position: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.position = np.full(len(self.targets), -1, np.int64)
        self.position[self.rows] = np.arange(len(self.rows))
        self._values: np.ndarray = np.asarray(np.load(self.npy, mmap_mode="r"))  # (versions * n, ...)

    def take(self, rows: Sequence[int], epoch: int) -> Tensor:
        """(n, C, H, W) or (n, D) of these rows in an epoch."""
        places = self.position[np.asarray(rows)] + (epoch % self.versions) * len(self.rows)
        values = torch.from_numpy(self._values[places]).view(self.dtype).to(self.compute_dtype)
        if values.ndim != 4:
            return values
        values = values.permute(0, 3, 1, 2)
        return values if self.channels_last else values.contiguous()

    def batches(self, batch_sampler: Iterable[Sequence[Any]], epoch: int) -> Iterator[dict[str, Any]]:
        """The batches of a sampler of rows or of (epoch, row): as an ImageDataset's, with activations as images."""
        for keys in batch_sampler:
            rows = [key[1] if isinstance(key, tuple) else int(key) for key in keys]
            index = torch.tensor(rows, dtype=torch.int64)
            yield {
                "image": self.take(rows, epoch),
                "target": self.targets[index],
                "index": index,
                "start": self.start,
            }


ActivationsOf = Callable[[str, int], StoredActivations | None]
"""(split, epoch) -> the activations to read instead of the images; None where images are read."""


def as_stored(activations: Tensor, dtype: torch.dtype) -> np.ndarray:
    """(n, C, H, W) or (n, D) as numbers of the file."""
    values = activations.detach().to(dtype).cpu()
    values = values.permute(0, 2, 3, 1) if values.ndim == 4 else values
    return values.contiguous().view(getattr(torch, np.dtype(WORDS[values.element_size()]).name)).numpy()
