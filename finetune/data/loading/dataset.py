"""From rows of the sample table to batches of tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from finetune.data.loading.annotated import AnnotatedTargets
from finetune.data.loading.augment import Augment, Augmented
from finetune.data.loading.mixing import Mixing, mix_targets, partner_of
from finetune.data.loading.progressive import Progressive, shrink
from finetune.data.loading.sampling import Key
from finetune.errors import FinetuneError
from finetune.placement import cut_boxes
from finetune.preprocessing import Preprocessing

CLASSES_ONLY = "mixing and data.progressive are for classes and findings"
LISTED = ("boxes", "box_labels", "box_visible", "ignored_boxes")  # of a batch: one tensor per image


class Images(Protocol):
    """The part of ImageCache that is used here: resized uint8 images by row."""

    def __getitem__(self, row: int) -> np.ndarray: ...

    def take(self, rows: Sequence[int]) -> np.ndarray: ...


class ImageDataset(Dataset):
    """{image (C, S, S) float32, target (K,) float32 with NaN for unknown, index} for a row of the table; with
    `annotated` also the mask and the boxes, moved as the image is: see AnnotatedTargets.batch.

    A key is a row, or (epoch, row) from a sampler: with `augment` the image depends on (seed, epoch, row), and a
    bare row means epoch 0. With `versions` there are only so many augmented versions, used in turn. The loader asks for
    whole batches (`__getitems__`), which stay uint8 until they are stacked and are then normalised at once.

    With `mixing` an image is mixed with one of the rows `partners`, augmented as by itself, and its target with that of
    the partner. With `progressive` images are smaller in early epochs.
    """

    normalises = True
    """Whether images are normalised here; otherwise they stay uint8 (n, S, S[, 3]), see `as_bytes`."""

    def __init__(
        self,
        targets: np.ndarray,
        images: Images,
        preprocessing: Preprocessing,
        augment: Augment | None = None,
        *,
        seed: int = 0,
        annotated: AnnotatedTargets | None = None,
        versions: int | None = None,
        mixing: Mixing | None = None,
        partners: np.ndarray | None = None,
        progressive: Progressive | None = None,
    ):
        if annotated is not None and (mixing is not None or progressive is not None):
            raise FinetuneError(f"{CLASSES_ONLY}, and these targets have masks or boxes.")
        self.targets = torch.as_tensor(np.array(targets, dtype=np.float32))  # (N, K)
        self.images = images
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        self.annotated = annotated
        self.versions = versions
        self.mixing = mixing
        self.partners = np.arange(len(self.targets)) if partners is None else partners
        self.progressive = progressive

    def __len__(self) -> int:
        return len(self.targets)

    def as_bytes(self) -> ImageDataset:
        """The same images, as uint8: to be normalised where they are used, by `Preprocessing.normalise`. With `mixing`,
        which mixes normalised images, it is this data set itself."""
        if self.mixing is not None:
            return self
        twin = copy.copy(self)
        twin.normalises = False
        return twin

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        batch = self.__getitems__([key])
        return {key: int(values[0]) if key == "index" else values[0] for key, values in batch.items()}

    def __getitems__(self, keys: Sequence[int | Key]) -> dict[str, Any]:
        """A whole batch: image (n, C, S, S), target (n, K), index (n,)."""
        pairs = [key if isinstance(key, tuple) else (0, int(key)) for key in keys]
        rows = [row for _, row in pairs]
        index = torch.tensor(rows, dtype=torch.int64)
        if self.annotated is not None:
            moved = [self._together(self.annotated, epoch, row) for epoch, row in pairs]
            images = np.stack([sample.image for sample in moved])
            masks = [sample.mask for sample in moved if sample.mask is not None]
            boxes = [sample.boxes for sample in moved if sample.boxes is not None]
            more = self.annotated.batch(rows, masks, boxes)
            return {"image": self._input(images), "target": self.targets[index], "index": index, **more}
        image, target = self._prepared(pairs), self.targets[index]
        if self.mixing is not None:
            self._mix(self.mixing, image, target, pairs)
        return {"image": image, "target": target, "index": index}

    def _prepared(self, keys: Sequence[Key]) -> torch.Tensor:
        """Images of one epoch, augmented, resized and normalised: (n, C, S, S)."""
        p, rows = self.preprocessing, [row for _, row in keys]
        if self.augment is not None:
            seeds = [(self.seed, self.version(epoch), row) for epoch, row in keys]
            images = np.stack([self.augment(self.images[seed[2]], seed) for seed in seeds])
        elif p.stored_size != p.image_size:
            images = np.stack([p.crop(self.images[row]) for row in rows])
        else:
            images = self.images.take(rows)
        if self.progressive is not None and (side := self.progressive.side(keys[0][0], p.image_size)) < p.image_size:
            images = shrink(images, side)
            p = replace(p, image_size=side, fit="squash", crop_fraction=1.0)
        return self._input(images, p)

    def _input(self, images: np.ndarray, preprocessing: Preprocessing | None = None) -> torch.Tensor:
        """uint8 (n, S, S[, 3]) -> (n, C, S, S) float32, or the same as a tensor."""
        if self.normalises:
            return (preprocessing or self.preprocessing).batch_to_tensor(images)
        return torch.from_numpy(np.require(images, requirements=["C", "W"]))

    def _mix(self, mixing: Mixing, images: torch.Tensor, targets: torch.Tensor, keys: Sequence[Key]) -> None:
        """Mix images (n, C, S, S) and targets (n, K) with those of their partners, in place."""
        blends = [partner_of(mixing, self.seed, epoch, row, self.partners) for epoch, row in keys]
        mixed = [(place, *drawn) for place, drawn in enumerate(blends) if drawn is not None]
        if not mixed:
            return
        partners = self._prepared([(keys[place][0], row) for place, row, _ in mixed])
        for (place, row, blend), partner in zip(mixed, partners, strict=True):
            share = blend.apply(images[place], partner)
            targets[place] = mix_targets(targets[place], self.targets[row], share)

    def version(self, epoch: int) -> int:
        """Number of the augmented version that an epoch has: the epoch, or epoch modulo `versions`."""
        return epoch if self.versions is None else epoch % self.versions

    def _together(self, annotated: AnnotatedTargets, epoch: int, row: int) -> Augmented:
        placed, image, p = annotated.cached(row), self.images[row], self.preprocessing
        if self.augment is not None:
            seed = (self.seed, self.version(epoch), row)
            return self.augment.together(image, seed, mask=placed.mask, boxes=placed.boxes)
        mask = None if placed.mask is None else p.crop(placed.mask)
        boxes = None if placed.boxes is None else cut_boxes(placed.boxes - p.crop_start, p.image_size)
        return Augmented(p.crop(image), mask, boxes)

    @staticmethod
    def collate(samples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The loader's collate_fn: what `__getitems__` gave is a batch already; single samples are stacked, what is of
        boxes, whose number differs, is listed."""
        if isinstance(samples, Mapping):
            return dict(samples)
        batch: dict[str, Any] = {key: [torch.as_tensor(sample[key]) for sample in samples] for key in samples[0]}
        return {key: values if key in LISTED else torch.stack(values) for key, values in batch.items()}
