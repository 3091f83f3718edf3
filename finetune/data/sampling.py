"""Which samples make up which batch: a function of (seed, epoch) and of nothing else, shared among the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from finetune.errors import FinetuneError

Key = tuple[int, int]  # (epoch, row): workers need no idea of the epoch


class EpochBatchSampler:
    """Every training row once per epoch, in ceil(n / batch_size) batches of nearly equal size.

    Equal sizes instead of a small last batch, whose gradient and batch statistics would weigh as much as a full one's.
    `batch_size` is over all ranks: rank r takes [r::world_size] of each batch. The order of an epoch follows from
    (seed, epoch), so a run that was resumed at an epoch sees what it would have seen.
    """

    def __init__(
        self,
        rows: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ):
        self.rows = np.asarray(rows, dtype=np.int64)
        self.seed, self.rank, self.world_size, self.shuffle = seed, rank, world_size, shuffle
        self.epoch = 0
        _check(batch_size, rank, world_size)
        self._batches = -(-len(self.rows) // batch_size)
        if self._batches and len(self.rows) // self._batches < world_size:
            raise FinetuneError(
                f"data.batch_size={batch_size} over all processes leaves some of trainer.devices={world_size} without "
                f"a sample ({len(self.rows)} training images); use a larger batch or fewer devices."
            )

    def set_epoch(self, epoch: int) -> None:
        """The epoch (from 0) that the next iteration belongs to."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, rows = self.epoch, self.rows
        if self.shuffle:
            rows = np.random.default_rng([self.seed, epoch]).permutation(rows)
        for batch in np.array_split(rows, self._batches) if self._batches else []:
            yield [(epoch, int(row)) for row in batch[self.rank :: self.world_size]]


class EvalBatchSampler:
    """Rows in order, in batches that are the same for every number of ranks: batch b belongs to rank b % world_size.

    All ranks give the same number of batches, since they wait for each other: one that is short repeats a batch, and
    whoever gathers the answers drops what came twice by its index.
    """

    def __init__(self, rows: Sequence[int] | np.ndarray, batch_size: int, *, rank: int = 0, world_size: int = 1):
        _check(batch_size, rank, world_size)
        order: list[int] = np.asarray(rows, dtype=np.int64).tolist()
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        self.batches = batches[rank::world_size]
        if len(self.batches) < -(-len(batches) // world_size):
            self.batches.append(batches[0])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _check(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise FinetuneError(f"data.batch_size={batch_size} must be 1 or more.")
    if not 0 <= rank < world_size:
        raise FinetuneError(f"rank={rank} must lie between 0 and world_size - 1 = {world_size - 1}.")
