"""Which samples make up which batch: a function of only (seed, epoch), shared among the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from finetune.errors import FinetuneError, one_of

Key = tuple[int, int]  # (epoch, row): workers need not know the epoch


SAMPLERS = ("none", "balanced", "sqrt")


def row_weights(targets: np.ndarray, sampler: str) -> np.ndarray | None:  # (N, K) -> (N,), of mean 1
    """How often each training row is to be drawn; None where every row comes once per epoch.

    The weight of a row is that of its rarest positive class, 1 / (rows that are positive for it). Rows without
    a positive form a separate class: with "balanced", single-label classes are drawn equally often. "sqrt" takes the
    square roots of these weights, half way to the original counts.
    """
    if sampler not in SAMPLERS:
        raise one_of("data.sampler", sampler, SAMPLERS)
    if sampler == "none":
        return None
    positive = np.nan_to_num(targets) >= 0.5
    positive = np.concatenate([positive, ~positive.any(axis=1, keepdims=True)], axis=1)
    per_class = 1.0 / np.maximum(positive.sum(axis=0), 1)
    weights = np.where(positive, per_class, 0.0).max(axis=1)
    weights = np.sqrt(weights) if sampler == "sqrt" else weights
    return weights / weights.mean()


class EpochBatchSampler:
    """Every training row once per epoch, in ceil(n / batch_size) batches of nearly equal size.

    With `weights` (one per row) as many rows are drawn with replacement instead, in proportion to the weights.

    Equal sizes instead of a small last batch, whose gradient and batch statistics would weigh as much as a full one's.
    `batch_size` is over all ranks: rank r takes [r::world_size] of each batch. The order of an epoch follows from
    (seed, epoch), so a run that was resumed at an epoch sees the same order.

    With `accumulate` = k each run of k batches, from which one optimizer step is made, holds the samples that one batch
    of k * batch_size would hold: the epoch is cut into these, then each of them into k. Where that would leave a rank
    without a sample (a few training images, or batches of few), the epoch is cut into single batches at once.
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
        weights: np.ndarray | None = None,
        accumulate: int = 1,
    ):
        self.rows = np.asarray(rows, dtype=np.int64)
        self.seed, self.rank, self.world_size, self.shuffle = seed, rank, world_size, shuffle
        self.chances = None if weights is None else np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.epoch = 0
        _check(batch_size, rank, world_size)
        groups = -(-len(self.rows) // (batch_size * accumulate))
        self.accumulate = accumulate if groups and len(self.rows) // groups >= accumulate * world_size else 1
        self._batches = groups * accumulate if self.accumulate > 1 else -(-len(self.rows) // batch_size)
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
        random = np.random.default_rng([self.seed, epoch])
        if self.chances is not None:
            rows = random.choice(rows, len(rows), p=self.chances)
        elif self.shuffle:
            rows = random.permutation(rows)
        for group in np.array_split(rows, self._batches // self.accumulate) if self._batches else []:
            for batch in np.array_split(group, self.accumulate):
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
