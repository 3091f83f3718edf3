"""Each image of a split predicted once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch.distributed as dist

from finetune.inference import Ask, best_device, by_index, predict, run
from finetune.steps.task import Subject

Keep = Callable[[Mapping[str, Any], Any], list[Any]]
"""Takes a batch and what the network answers, as arrays; gives what is kept of each image of the batch."""


def predict_arrays(subject: Subject, ask: Ask | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """The rows of the table that can be read, ascending, and the outputs (N, K); None on all ranks but the first."""
    rank, world = place()
    loader = subject.data.rows_loader(subject.rows, rank=rank, world_size=world)
    index, outputs = predict(subject.network, loader, best_device(subject.accelerator), ask)
    if world > 1:
        gathered = gather((index, outputs), world)
        index, outputs = (np.concatenate([part[i] for part in gathered]) for i in (0, 1))
    return None if rank != 0 else by_index(index, outputs)


def predict_each(subject: Subject, keep: Keep, ask: Ask | None = None) -> dict[int, Any] | None:
    """Row of the table -> what `keep` kept of its image, ascending; None on all ranks but the first."""
    rank, world = place()
    loader = subject.data.rows_loader(subject.rows, rank=rank, world_size=world)
    kept: dict[int, Any] = {}
    for batch, output in run(subject.network, loader, best_device(subject.accelerator), ask):
        kept |= zip(np.asarray(batch["index"]).tolist(), keep(batch, output), strict=True)
    if world > 1:
        kept = {row: value for part in gather(kept, world) for row, value in part.items()}
    return None if rank != 0 else dict(sorted(kept.items()))


def place() -> tuple[int, int]:
    """This process's number and how many there are."""
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)


def of_first_rank(make: Callable[[], Any]) -> Any:
    """What `make` gives on the first rank, on all of them."""
    rank, world = place()
    made = [make() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(made, src=0)
    return made[0]


def gather(part: Any, world: int) -> list[Any]:
    """The parts of all processes, in their order."""
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, part)
    return gathered
