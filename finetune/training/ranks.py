"""Starting the other ranks of a run on this machine, each from the resolved configuration of the run folder.

A rank that composed the configuration itself could compose another one (a sampling sweeper, a time stamp), and ranks of
one job would train different things without a word.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from finetune.errors import FinetuneError

RUN = "FINETUNE_RANK_RUN"
"""Set for a rank that was started here: the run folder whose config.yaml it obeys."""


def count(devices: object, accelerator: str) -> int:
    """How many processes `trainer.devices` means on this machine: a number, -1 or auto for all, or a list of ids."""
    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if devices in ("auto", -1, None):
        return max(1, gpus)
    if isinstance(devices, list | tuple):
        return max(1, len(devices))
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        raise FinetuneError(f"trainer.devices={devices} is not known. Give a number, a list of ids, -1 or auto.")
    if accelerator in ("gpu", "cuda") and devices > gpus:
        raise FinetuneError(f"trainer.devices={devices}, but this machine has {gpus} GPU(s).")
    return devices


def started_elsewhere() -> bool:
    """Whether a launcher (torchrun, SLURM) or a first rank started this process as one of several."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def rank() -> int:
    """This process's number among all ranks, also before anything is initialised."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


@contextmanager
def launched(run: Path, n: int) -> Iterator[None]:
    """The ranks 1 to n - 1 beside this process, which becomes rank 0; all end when one fails or the block ends."""
    if n == 1 or started_elsewhere():
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n), "NODE_RANK": "0"}
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // n))
    mine = {**shared, "LOCAL_RANK": "0", "RANK": "0"}
    before = {name: os.environ.get(name) for name in mine}
    threads = torch.get_num_threads()
    children = []
    done = threading.Event()
    try:
        for local in range(1, n):
            environment = {**os.environ, **shared, "LOCAL_RANK": str(local), "RANK": str(local), RUN: str(run)}
            log = (run / f"rank_{local}.log").open("w")
            with log:
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "finetune"], env=environment, stdout=log, stderr=subprocess.STDOUT
                    )
                )
        os.environ.update(mine)
        if "OMP_NUM_THREADS" in shared:
            torch.set_num_threads(int(shared["OMP_NUM_THREADS"]))
        threading.Thread(target=_watch, args=(children, run, done), daemon=True).start()
        yield
        done.set()
        for child in children:
            child.wait(timeout=60)
    finally:
        done.set()
        for child in children:
            if child.poll() is None:
                child.terminate()
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _watch(children: list[subprocess.Popen], run: Path, done: threading.Event) -> None:
    """End this process when another rank has failed: a collective would wait for it for half an hour."""
    while not done.is_set():
        for number, child in enumerate(children, start=1):
            if child.poll() not in (None, 0):
                time.sleep(2)  # this rank may be about to say the same thing better
                if done.is_set():
                    return
                tail = (run / f"rank_{number}.log").read_text(errors="replace").strip().splitlines()[-3:]
                print(
                    f"error: rank {number} stopped with exit status {child.poll()}:", *tail, sep="\n", file=sys.stderr
                )
                sys.stderr.flush()
                for other in children:
                    if other.poll() is None:
                        other.terminate()
                os._exit(1)
        time.sleep(0.5)


@contextmanager
def group(n: int) -> Iterator[None]:
    """The ranks' process group, where Lightning does not make it: nccl on GPUs, gloo elsewhere."""
    import torch.distributed as dist

    if n == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def agree(network: nn.Module) -> None:
    """Hold the ranks to one network: parameters are compared bit by bit, buffers become those of the first rank.

    Gradients that some ranks did not share would let the ranks drift apart without a word. Running statistics differ
    by nature, each rank sees its own part of a batch: what is validated is what the first rank will save.

    Raises:
        FinetuneError: on every rank alike, naming the first parameter that differs.
    """
    import torch.distributed as dist

    named = dict(network.named_parameters())
    sums = [value.float().contiguous().view(torch.int32).sum(dtype=torch.int64) for value in named.values()]
    mine = torch.stack(sums)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    differing = (torch.stack(everyone) != everyone[0]).any(0).tolist()
    if any(differing):
        name = next(name for name, differs in zip(named, differing, strict=True) if differs)
        raise FinetuneError(
            f"The processes no longer hold the same network: {name} and {sum(differing) - 1} other parameters differ. "
            "A callback or strategy of your own may step or freeze on some of them only; trainer.devices=1 is safe."
        )
    for buffer in network.buffers():
        dist.broadcast(buffer, 0)
