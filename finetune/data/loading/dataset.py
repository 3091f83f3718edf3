"""From rows of the sample table to batches of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from finetune.data.loading.augment import Augment
from finetune.data.loading.sampling import Key
from finetune.preprocessing import Preprocessing


class Pictures(Protocol):
    """What a PictureCache offers here: resized uint8 pictures by row."""

    def __getitem__(self, row: int) -> np.ndarray: ...

    def take(self, rows: Sequence[int]) -> np.ndarray: ...


class ImageDataset(Dataset):
    """{image (C, S, S) float32, target (K,) float32 with NaN for unknown, index} for a row of the table.

    A key is a row, or (epoch, row) from a sampler: with `augment` the picture depends on (seed, epoch, row), and a
    bare row means epoch 0. The loader asks for whole batches (`__getitems__`), which stay uint8 until they are stacked
    and are then normalised at once.
    """

    def __init__(
        self,
        targets: np.ndarray,
        pictures: Pictures,
        preprocessing: Preprocessing,
        augment: Augment | None = None,
        *,
        seed: int = 0,
    ):
        self.targets = torch.as_tensor(np.array(targets, dtype=np.float32))  # (N, K)
        self.pictures = pictures
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        batch = self.__getitems__([key])
        return {"image": batch["image"][0], "target": batch["target"][0], "index": int(batch["index"][0])}

    def __getitems__(self, keys: Sequence[int | Key]) -> dict[str, torch.Tensor]:
        """A whole batch: image (n, C, S, S), target (n, K), index (n,)."""
        pairs = [key if isinstance(key, tuple) else (0, int(key)) for key in keys]
        rows = [row for _, row in pairs]
        p = self.preprocessing
        if self.augment is not None:
            pictures = np.stack([self.augment(self.pictures[row], (self.seed, epoch, row)) for epoch, row in pairs])
        elif p.stored_size != p.image_size:
            pictures = np.stack([p.crop(self.pictures[row]) for row in rows])
        else:
            pictures = self.pictures.take(rows)
        index = torch.tensor(rows, dtype=torch.int64)
        return {"image": p.batch_to_tensor(pictures), "target": self.targets[index], "index": index}

    @staticmethod
    def collate(samples: Mapping[str, torch.Tensor] | Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The loader's collate_fn: what `__getitems__` gave is a batch already; single samples are stacked."""
        if isinstance(samples, Mapping):
            return dict(samples)
        return {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in samples[0]}
