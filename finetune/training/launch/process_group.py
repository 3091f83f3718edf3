"""The process group of a run: made, aborted, and what its errors mean."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from finetune.errors import FinetuneError
from finetune.training.launch.interface import choose_interface
from finetune.training.launch.link import Link

BROKEN = (
    "Another process of this run ended without a message: it was killed, or its machine is gone. Its launcher's output "
    "may say more. Checkpoints of whole epochs stay: resume=RUN goes on from the last."
)


def is_broken(error: BaseException) -> bool:
    """Whether a collective failed because another process was no longer there."""
    if isinstance(error, dist.DistNetworkError | dist.DistBackendError):
        return True
    texts = ("Connection reset by peer", "Connection closed by peer", "Broken pipe")  # of gloo
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def on_gpu(accelerator: str) -> bool:
    """Whether `trainer.accelerator` means NVIDIA's or AMD's GPUs here."""
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


@contextmanager
def group(link: Link, local: int, trainer: Mapping[str, Any], host: str) -> Iterator[None]:
    """The process group of a run: nccl on GPUs, gloo elsewhere. Lightning uses it.

    Args:
        local: this process's number on its machine.
        host: the machine of rank 0.

    Raises:
        FinetuneError: the processes do not reach each other.
    """
    devices, uses_gpu = trainer["devices"], on_gpu(trainer["accelerator"])
    if uses_gpu:
        torch.cuda.set_device(devices[local] if isinstance(devices, list | tuple) else local)
    elif trainer["num_nodes"] > 1:
        choose_interface(host)
    backend = "nccl" if uses_gpu else "gloo"
    try:
        dist.init_process_group(backend, store=link.group_store(), rank=link.rank, world_size=link.size)
    except RuntimeError as error:
        named = os.environ.get(f"{backend.upper()}_SOCKET_IFNAME", "not set")
        raise FinetuneError(
            f"The processes do not reach each other ({backend}: {str(error).splitlines()[0][:120]}). Name the network "
            f"interface between the machines, as `ip address` does: {backend.upper()}_SOCKET_IFNAME=NAME (now {named})."
        ) from None
    try:
        yield
    except BaseException:
        abort()  # others may have ended, and an orderly end would wait for them
        raise
    finally:
        dist.destroy_process_group()


def abort() -> None:
    """Abort the running collectives."""
    if dist.is_initialized():
        dist.group.WORLD.abort()  # type: ignore[union-attr]
