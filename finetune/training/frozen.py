"""What is frozen is computed once: activations of frozen parts, stored for the later epochs of a training.

A frozen part in eval mode gives an image the same activations in every epoch. They are computed with the network of the
training, in batches of the training's size, so that reading them changes no bit of the weights that follow. (A
convolution of this stack gives an image the same bits in every batch of more than a few images, measured on CPU.)
"""

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from finetune.data.cache.store import default_directory, file_size, locked, reserve
from finetune.data.loading.activations import StoredActivations, as_stored
from finetune.data.loading.dataset import ImageDataset
from finetune.data.loading.module import EpochLoader, ImageData
from finetune.data.loading.sampling import Key
from finetune.errors import FinetuneError
from finetune.heads.features import gives, takes
from finetune.inference import eval_mode
from finetune.training.frozen_key import key_of
from finetune.training.frozen_ranges import FrozenRange, frozen_ranges
from finetune.training.module import FineTuning

KEEP_DAYS = 7
"""Stored activations that no training has read for so long are removed."""
FACTS = "facts.json"
READ_RATE, WRITE_RATE = 1e9, 3e8  # bytes per second of a disk
FLOP_RATE = {"cpu": 3e10, "cuda": 1e13}  # operations per second, of a thread and of a GPU


class FrozenActivations:
    """(split, epoch) -> stored activations, computed when the first epoch of a range begins.

    Args:
        mode: auto (where it pays), on (wherever it is possible), half (the same, stored in 16 bits), off.
        averaged: whether the validation sees an average of the weights.
        facts: what the activations depend on beside the weights: the network, preprocessing and augmentation.
        directory: where they are stored; by default beside the decoded images.
        say: takes a sentence for the user.

    Raises:
        FinetuneError: on or half, where nothing can be stored; with the reason.
    """

    def __init__(
        self,
        module: FineTuning,
        data: ImageData,
        max_epochs: int,
        *,
        mode: str = "auto",
        averaged: bool = False,
        facts: dict[str, Any] | None = None,
        directory: Path | None = None,
        say: Callable[[str], Any] = lambda sentence: None,
    ):
        self.module, self.data, self.mode, self.say = module, data, mode, say
        self.averaged = averaged
        self.directory = (directory or default_directory()) / "activations"
        self.facts = facts or {}
        self.ranges = [] if mode == "off" else frozen_ranges(
            module.plan, list(module.parts), module.new_parts, max_epochs
        )  # fmt: skip
        self.opened: dict[tuple[str, int], StoredActivations | None] = {}
        self.to_remove: list[Path] = []
        if mode != "off" and (reason := self.obstacle()):
            if mode != "auto":
                raise FinetuneError(f"frozen_cache={mode}: {reason} Use frozen_cache=auto.")
            self.ranges = []

    def obstacle(self) -> str | None:
        """Why nothing can be stored; None where something can."""
        network = self.module.network
        if not self.ranges:
            return "no part is frozen in two successive epochs, with frozen norms, from the stem on."
        if self.data.train_dataset.annotated is not None:
            return "masks and boxes are moved with their image, so that activations alone do not serve."
        if gives(network.head) != "classes":
            return f"a head that gives {gives(network.head)} needs the size of the images."
        if any(takes(part) == "maps" for part in (network.neck, network.head)):
            return "the neck or head reads several maps."
        if getattr(self.module.objective, "needs_images", False):
            return "the teacher reads the images."
        if network._compiled_call_impl is not None:
            return "compile=true computes frozen parts with other bits."
        return None

    def versions(self) -> int | None:
        """Versions of each training image; None where every epoch has its own."""
        dataset = self.data.train_dataset
        if dataset.mixing is not None or dataset.progressive is not None:
            return None
        return 1 if dataset.augment is None else dataset.versions

    def __call__(self, split: str, epoch: int) -> StoredActivations | None:
        number = next((n for n, held in enumerate(self.ranges) if epoch in held.epochs), None)
        if number is None:
            return None
        if (split, number) not in self.opened:
            self.opened[split, number] = self._open(split, self.ranges[number], epoch)
        return self.opened[split, number]

    def remove(self) -> None:
        """Remove what no other training can read: activations of parts that this training has changed."""
        for path in self.to_remove:
            aside = path.with_name(f"{path.name}.part-{secrets.token_hex(4)}")
            with contextlib.suppress(OSError):
                path.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def trained_before(self, held: FrozenRange) -> bool:
        """Whether a part below `held.start` was trained in an earlier epoch."""
        below = list(self.module.parts)[: list(self.module.parts).index(held.start)]
        return any(self.module.states_in(e)[part].trainable for e in range(held.epochs.start) for part in below)

    # -- one range and split -------------------------------------------------------------------------------------------

    def _open(self, split: str, held: FrozenRange, epoch: int) -> StoredActivations | None:
        versions = self.versions() if split == "train" else 1
        rows = self.data.rows(split)
        trainer = self.module.trainer
        limit = trainer.limit_train_batches if split == "train" else trainer.limit_val_batches
        is_limited = not (isinstance(limit, float) and limit == 1.0)
        if versions is None or len(held.epochs) <= versions or not len(rows) or is_limited:
            return None
        if split == "val" and self.averaged and self.trained_before(held):
            return None  # the average still moves while the parts are frozen
        folder = self._decide(split, held, rows, versions, held.epochs.stop - epoch)
        if folder is None:
            return None
        if trainer.local_rank == 0:
            self._fill(folder, split, held, rows, versions)
        elif not (folder / FACTS).is_file():
            self._wait(folder)
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            (folder / FACTS).touch()  # the time of its last use
            dtype, computed = getattr(torch, facts["dtype"]), getattr(torch, facts["compute_dtype"])
            stored = StoredActivations(
                folder / "activations.npy", rows, self.data.train_dataset.targets, held.start, dtype, computed,
                facts["channels_last"], versions,
            )  # fmt: skip
        except (OSError, ValueError, KeyError):  # not stored, or removed by another training in this moment
            return None
        if self.trained_before(held):
            self.to_remove.append(folder)
        return stored

    def _decide(self, split: str, held: FrozenRange, rows: np.ndarray, versions: int, left: int) -> Path | None:
        """The folder to read, which may have to be filled, as the first process decides for all; None for none."""
        decision: list[str | None] = [None]
        if _world()[0] == 0:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                sizes = {len(batch) for batch in self._batches(split, rows, 1)}
                key = key_of(
                    self.module, self.data, split, held, rows, versions, sizes, {**self.facts, "mode": self.mode}
                )
                folder = self.directory / key
                if (folder / FACTS).is_file():
                    decision = [folder.name]
                elif (sentence := self._estimate(split, held, rows, versions, left)) is not None:
                    self._remove_unused()
                    self.say(sentence)
                    decision = [folder.name]
            except OSError as error:
                self._give_up(error)
        if dist.is_initialized():
            dist.broadcast_object_list(decision, 0, device=self.module.device)
        return None if decision[0] is None else self.directory / decision[0]

    def _give_up(self, error: OSError) -> None:
        """Say that nothing is stored, or raise where it was asked for."""
        if self.mode != "auto":
            raise FinetuneError(f"frozen_cache={self.mode}: {error}. Use frozen_cache=off.") from None
        self.say(f"The activations of frozen parts are not stored ({error}); they are computed in every epoch.")

    def _wait(self, folder: Path) -> None:
        """Wait for this machine's first process; `launch.Watch` ends this process where that one has failed."""
        while not ((folder / FACTS).is_file() or folder.with_suffix(".failed").is_file()):
            time.sleep(0.1)

    def _dataset(self, split: str) -> ImageDataset:
        return self.data.train_dataset if split == "train" else self.data.eval_dataset

    def _batches(self, split: str, rows: np.ndarray, versions: int) -> list[list[Key]]:
        """(version, row) in batches of the sizes that the training has."""
        size, world = self.data.batch_size, _world()[1]
        if split == "val":
            return [[(0, int(row)) for row in rows[at : at + size]] for at in range(0, len(rows), size)]
        parts = np.array_split(rows, -(-len(rows) // size) * world)
        return [[(version, int(row)) for row in part] for version in range(versions) for part in parts]

    def _run(self, held: FrozenRange, images: Tensor) -> Tensor:
        """Activations of images as the loaders of the training give them."""
        network, precision = self.module.network, self.module.trainer.precision_plugin
        images = self.data.network_input(images.to(self.module.device, non_blocking=True))
        images = precision.convert_input(images)
        with precision.forward_context():
            output = network.run(images, stop=held.start)
            if held.start == "head" and getattr(network.head, "takes_features", False):
                output = network.head.features(output)  # type: ignore[operator]
        assert isinstance(output, Tensor)  # obstacle() has looked
        return output

    def _estimate(self, split: str, held: FrozenRange, rows: np.ndarray, versions: int, left: int) -> str | None:
        """A sentence on what is about to be stored; None where it does not pay or has no space (mode=auto)."""
        dataset = self._dataset(split)
        image = dataset.__getitems__([(0, int(row)) for row in rows[:2]])["image"]
        with eval_mode(self.module.network), FlopCounterMode(display=False) as counter:
            output = self._run(held, image)
        numbers, n = output[0].numel(), len(rows)
        size = numbers * (2 if self.mode == "half" else output.element_size())
        flops = counter.get_total_flops() / len(image)
        device = self.module.device.type
        rate = FLOP_RATE["cpu"] * torch.get_num_threads() if device == "cpu" else FLOP_RATE["cuda"]
        saved = (left - versions) * flops / rate
        cost = left * size / READ_RATE + versions * size / WRITE_RATE
        total, free = size * n * versions, shutil.disk_usage(self.directory).free
        if self.mode == "auto" and (saved <= cost or total > free / 2):
            return None
        if total > free:
            raise FinetuneError(
                f"frozen_cache={self.mode}: the activations need {file_size(total)}, {file_size(free)} are free in "
                f"{self.directory}. Use frozen_cache=auto, or set FINETUNE_CACHE to another folder."
            )
        times = f" in {versions} versions" if versions > 1 else ""
        return (
            f"Frozen up to {held.start} in epochs {held.epochs.start} to {held.epochs.stop - 1}: the activations of "
            f"{n:,} {split} images{times} are computed once, {file_size(total)} in {self.directory}."
        )

    def _fill(self, folder: Path, split: str, held: FrozenRange, rows: np.ndarray, versions: int) -> None:
        """Compute and store what is not there; the folder appears by one rename."""
        failed = folder.with_suffix(".failed")
        part = self.directory / f"{folder.name}.part-{secrets.token_hex(4)}"
        try:
            with locked(self.directory, folder.name, lambda: self.say(f"Waiting for another process, at {folder}.")):
                if (folder / FACTS).is_file():
                    return
                failed.unlink(missing_ok=True)
                for left in self.directory.glob(f"{folder.name}.part-*"):  # of a killed process
                    shutil.rmtree(left, ignore_errors=True)
                part.mkdir()
                self._write(part, split, held, rows, versions)
                part.rename(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                failed.touch()
            self._give_up(error)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write(self, part: Path, split: str, held: FrozenRange, rows: np.ndarray, versions: int) -> None:
        dataset = self._dataset(split)
        batches = self._batches(split, rows, versions)
        workers = self.data.num_workers if split == "train" and self.data.augment is not None else 0
        loader: Any = EpochLoader(
            dataset, batch_sampler=batches, num_workers=workers, collate_fn=dataset.collate
        ).for_device(self.module.device)
        values: np.memmap | None = None
        place = 0
        with eval_mode(self.module.network), torch.set_grad_enabled(False):
            for batch in loader:
                output = self._run(held, batch["image"])
                dtype = torch.float16 if self.mode == "half" else output.dtype
                stored = as_stored(output, dtype)
                if values is None:
                    shape = (len(rows) * versions, *stored.shape[1:])
                    values = np.lib.format.open_memmap(part / "activations.npy", "w+", stored.dtype, shape)
                    reserve(part / "activations.npy")
                    last = output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last)
                    facts = {"dtype": _name(dtype), "compute_dtype": _name(output.dtype), "channels_last": last}
                values[place : place + len(stored)] = stored
                place += len(stored)
        assert values is not None  # rows are not empty
        values.flush()
        (part / FACTS).write_text(json.dumps(facts), encoding="utf-8")

    def _remove_unused(self) -> None:
        """Remove what was not read for KEEP_DAYS, and what a killed process has left."""
        old = time.time() - KEEP_DAYS * 86400
        for path in self.directory.iterdir():
            newest = path / FACTS if (path / FACTS).is_file() else path
            if path.is_dir() and newest.stat().st_mtime < old:
                shutil.rmtree(path, ignore_errors=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _world() -> tuple[int, int]:
    """Rank and number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
