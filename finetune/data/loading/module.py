"""The one LightningDataModule: batches whose content depends on (seed, epoch, sample), not on workers or ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from finetune.data.cache.image_cache import ImageCache
from finetune.data.loading.activations import ActivationsOf, StoredActivations
from finetune.data.loading.annotated import AnnotatedTargets
from finetune.data.loading.augment import Augment
from finetune.data.loading.dataset import ImageDataset
from finetune.data.loading.mixing import Mixing
from finetune.data.loading.progressive import Progressive
from finetune.data.loading.sampling import EpochBatchSampler, EvalBatchSampler, row_weights
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing

BYTES_CROSS_TO = {"cuda"}
"""Types of devices that normalise images themselves: a quarter of the bytes is copied, and workers do less."""


class EpochLoader(DataLoader):
    """A loader that asks for the epoch each time it begins, so that order and augmentation follow it after a resume.

    Where `activations` has those of the epoch, they are read here instead of images in the workers.
    """

    epoch_of: Callable[[], int] | None = None
    activations: Callable[[int], StoredActivations | None] | None = None

    def set_epoch(self, epoch: int) -> None:
        """For a loop without Lightning: order and augmentation of the next pass are those of this epoch (from 0)."""
        if isinstance(self.batch_sampler, EpochBatchSampler):
            self.batch_sampler.set_epoch(epoch)

    def __iter__(self):
        if self.epoch_of is not None:
            epoch = self.epoch_of()
            self.set_epoch(epoch)
            if self.activations is not None:
                return self._stored_or_read(self.activations, epoch)
        return super().__iter__()

    def _stored_or_read(self, activations: Callable[[int], StoredActivations | None], epoch: int) -> Iterator[Any]:
        """They are computed when the first batch is taken: Lightning hides errors of what happens before."""
        stored = activations(epoch)
        if stored is not None:
            yield from stored.batches(self.batch_sampler, epoch)  # type: ignore[arg-type]
        else:
            yield from super().__iter__()

    def on_device(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """The batches of an evaluation, their images on `device` and normalised; the rest stays where it is."""
        loader = self.for_device(device)
        normalise = loader.dataset.preprocessing.normalise  # type: ignore[attr-defined]
        for batch in loader:
            image = batch["image"].to(device, non_blocking=True)
            yield {**batch, "image": normalise(image) if image.dtype == torch.uint8 else image}

    def for_device(self, device: torch.device) -> "EpochLoader":
        """A loader of the same batches as they cross to `device`: to a GPU as uint8, from pinned memory."""
        dataset: Any = self.dataset
        if device.type not in BYTES_CROSS_TO or not dataset.normalises:
            return self
        return EpochLoader(
            dataset.as_bytes(),
            batch_sampler=self.batch_sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            persistent_workers=self.persistent_workers,
            pin_memory=device.type == "cuda",
        )


class ImageData(L.LightningDataModule):
    """Loaders over a split, decoded sample table.

    Args:
        images: the decoded images, one per row of the table; unreadable ones are left out of every loader.
        augment: changes training images; None leaves them as they are.
        batch_size: over all ranks together.
        sampler: none (every image once per epoch), balanced or sqrt: see `sampling.row_weights`.
        versions: number of augmented versions of a training image, None for a new one in every epoch.
        mixing: mixes training images with each other. Partners are drawn evenly from train, whatever the sampler.
        progressive: makes training images smaller in early epochs.
    """

    activations: ActivationsOf | None = None
    """Gives the activations of frozen parts for the training and the validation of an epoch, where they are stored."""

    def __init__(
        self,
        table: SampleTable,
        images: ImageCache,
        preprocessing: Preprocessing,
        augment: Augment | None,
        *,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        sampler: str = "none",
        versions: int | None = None,
        mixing: Mixing | None = None,
        progressive: Progressive | None = None,
    ):
        super().__init__()
        self.table = table
        self.images = images
        self.preprocessing = preprocessing
        self.augment = augment
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.sampler = sampler
        self.progressive = progressive
        targets = table.targets()
        annotated = AnnotatedTargets.from_table(table, preprocessing, images.sizes, images.masks)
        partners = self.rows("train") if mixing is not None else None
        self.train_dataset = ImageDataset(
            targets, images, preprocessing, augment, seed=seed, annotated=annotated,
            mixing=mixing, partners=partners, progressive=progressive, versions=versions,
        )  # fmt: skip
        self.eval_dataset = ImageDataset(targets, images, preprocessing, None, seed=seed, annotated=annotated)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the targets."""
        return list(self.table.classes)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of the readable samples of `split`."""
        rows = self.table.rows(split)
        return rows[~np.isin(rows, list(self.images.bad))] if self.images.bad else rows

    def setup(self, stage: str) -> None:
        """All processes must have made the same table and the same splits of it."""
        if self.trainer is not None and self.trainer.world_size > 1:
            hashes: list[str] = [""] * self.trainer.world_size
            dist.all_gather_object(hashes, self.table.hash())
            if len(set(hashes)) > 1:
                raise FinetuneError(
                    f"The processes read different tables or drew different splits ({', '.join(sorted(set(hashes)))}). "
                    "Check that data.root is the same for all of them and was not changed meanwhile."
                )

    @property
    def device(self) -> torch.device:
        """Where the trainer computes; the CPU without a trainer."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook, after a batch is on its device: images that came as uint8 are normalised there."""
        return {**batch, "image": self.network_input(batch["image"])}

    def network_input(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (N, S, S[, 3]) normalised on their device, in the precision of the trainer; others unchanged."""
        if images.dtype != torch.uint8:
            return images
        images = self.preprocessing.normalise(images)
        return images if self.trainer is None else self.trainer.precision_plugin.convert_input(images)

    def train_dataloader(self) -> "EpochLoader":
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        rows = self.rows("train")
        if len(rows) < world:
            raise FinetuneError(f"{len(rows)} training images cannot be shared by trainer.devices={world} processes.")
        weights = row_weights(self.table.targets()[rows], self.sampler)
        sampler = EpochBatchSampler(
            rows, self.batch_size, seed=self.seed, rank=rank, world_size=world, weights=weights,
            accumulate=trainer.accumulate_grad_batches if trainer is not None else 1,
        )  # fmt: skip
        return self._in_epochs(self._loader(self.train_dataset, sampler).for_device(self.device), "train")

    def _in_epochs(self, loader: "EpochLoader", split: str) -> "EpochLoader":
        """The loader with the trainer's epoch, and the stored activations of its split."""
        if self.trainer is not None:
            # `processed`, not current_epoch: after a resume the loader starts before that is incremented
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            loader.epoch_of = lambda: progress.processed
            if (activations := self.activations) is not None:
                loader.activations = lambda epoch: activations(split, epoch)
        return loader

    def plain_train_loader(self, *, rank: int = 0, world_size: int = 1) -> "EpochLoader":
        """Every training image once, in random batches that are always the same, prepared as for evaluation."""
        sampler = EpochBatchSampler(
            self.rows("train"), self.batch_size, seed=self.seed, rank=rank, world_size=world_size
        )
        return self._loader(self.eval_dataset, sampler)

    def val_dataloader(self) -> "EpochLoader | list":
        if not len(self.rows("val")):
            return []
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        loader = self.eval_loader("val", rank=rank, world_size=world).for_device(self.device)
        return self._in_epochs(loader, "val")

    def eval_loader(self, split: str, *, rank: int = 0, world_size: int = 1) -> "EpochLoader":
        """Every readable sample of `split`, in batches that do not depend on the number of ranks."""
        return self.rows_loader(self.rows(split), rank=rank, world_size=world_size)

    def rows_loader(self, rows: np.ndarray, *, rank: int = 0, world_size: int = 1) -> "EpochLoader":
        """These rows of the table, prepared for evaluation."""
        return self._loader(
            self.eval_dataset, EvalBatchSampler(rows, self.batch_size, rank=rank, world_size=world_size)
        )

    def _loader(self, dataset: ImageDataset, sampler: EpochBatchSampler | EvalBatchSampler) -> "EpochLoader":
        return EpochLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=dataset.collate,
            persistent_workers=self.num_workers > 0,
        )
