"""Each image of a split predicted once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch.distributed as dist

from finetune.inference import Forward, best_device, by_index, mean_of_views, predict, run
from finetune.steps.task import Subject

SplitOutputs = Callable[[Mapping[str, Any], Any], list[Any]]
"""Takes a batch and the network's outputs for it, as arrays; returns a value for each image of the batch."""


def predict_arrays(subject: Subject, forward: Forward | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """The rows of the table that can be read, ascending, and the outputs (N, K); None on all ranks but the first."""
    rank, world = rank_and_size()
    loader = subject.data.rows_loader(subject.rows, rank=rank, world_size=world)
    forward = forward or mean_of_views(subject.network, subject.tta)
    index, outputs = predict(subject.network, loader, best_device(subject.accelerator), forward)
    if world > 1:
        gathered = gather((index, outputs), world)
        index, outputs = (np.concatenate([part[i] for part in gathered]) for i in (0, 1))
    return None if rank != 0 else by_index(index, outputs)


def predict_each(
    subject: Subject, split_outputs: SplitOutputs, forward: Forward | None = None
) -> dict[int, Any] | None:
    """Row of the table -> the value of `split_outputs` for its image, ascending; None on all ranks but the first."""
    rank, world = rank_and_size()
    loader = subject.data.rows_loader(subject.rows, rank=rank, world_size=world)
    outputs: dict[int, Any] = {}
    forward = forward or mean_of_views(subject.network, subject.tta)
    for batch, output in run(subject.network, loader, best_device(subject.accelerator), forward):
        outputs |= zip(np.asarray(batch["index"]).tolist(), split_outputs(batch, output), strict=True)
    if world > 1:
        outputs = {row: value for part in gather(outputs, world) for row, value in part.items()}
    return None if rank != 0 else dict(sorted(outputs.items()))


def rank_and_size() -> tuple[int, int]:
    """This process's number and the number of processes."""
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)


def broadcast_from_first(make: Callable[[], Any]) -> Any:
    """The result of `make` on the first rank, sent to all ranks."""
    rank, world = rank_and_size()
    values = [make() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(part: Any, world: int) -> list[Any]:
    """The parts of all processes, in their order."""
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, part)
    return gathered
