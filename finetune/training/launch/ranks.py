"""The processes of a job: which of them this one is, how the first starts or finds the others, and what they share.

Rank 0 alone reads the command line, makes run folders and resolves the configuration; it hands both to the others,
whoever started them: this program (trainer.devices=2), torchrun or SLURM. A rank that composed the configuration
itself could compose another one (a sampling sweeper, a time stamp), and ranks of one job would train different things
without a word.
"""

import contextlib
import gc
import itertools
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from finetune.errors import FinetuneError
from finetune.training.launch.children import Children, log_file
from finetune.training.launch.link import Link, Watch, connect


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its job; the default is that of a process alone."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its number among those of its machine."""
    node: int = 0
    """The machine's number."""
    launcher: str = ""
    """The variable by which a launcher says how many processes there are."""


def here() -> Place | None:
    """This process's place as a launcher set it; None where nobody started it as one of several.

    torchrun before SLURM: `srun torchrun` sets the variables of both. An interactive shell under SLURM has the
    SLURM_NTASKS that was asked for, but is a single process.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        local, node = int(env.get("LOCAL_RANK", 0)), int(env.get("GROUP_RANK", env.get("NODE_RANK", 0)))
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), local, node, "WORLD_SIZE")
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    if "SLURM_PROCID" not in env or int(env.get(tasks, 1)) == 1 or env.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    local, node = (int(env.get(name, 0)) for name in ("SLURM_LOCALID", "SLURM_NODEID"))
    return Place(int(env["SLURM_PROCID"]), int(env[tasks]), local, node, tasks)


def rank() -> int:
    """This process's number among all ranks, also before anything is initialised."""
    return (here() or Place()).rank


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


def check(trainer: Mapping[str, Any]) -> int:
    """How many processes `trainer.devices` on `trainer.num_nodes` machines are.

    Raises:
        FinetuneError: a launcher started another number, or there are several machines and no launcher.
    """
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    wanted, place = count(devices, trainer["accelerator"]) * nodes, here()
    if place is None and nodes > 1:
        raise FinetuneError(
            f"trainer.num_nodes={nodes}, but only a launcher starts processes on other machines: "
            f"torchrun --nnodes={nodes} --nproc_per_node=N -m finetune ..., or srun."
        )
    if place is not None and place.size != wanted:
        raise FinetuneError(
            f"trainer.devices={devices} on trainer.num_nodes={nodes} means {wanted} process(es), but a launcher says "
            f"{place.launcher}={place.size}. Make trainer.devices the number of processes on each machine."
        )
    return wanted


# -- the line between the processes ------------------------------------------------------------------------------------

PREFIX = "finetune"  # of all messages: torchrun's store holds its own as well
_link: Link | None = None  # of a process that a launcher, or a first rank, started
_times = itertools.count()  # a second command of the same processes must not read the first one's messages


def join(place: Place) -> Link:
    """This process's end of the line: to torchrun's own store, or to one that rank 0 keeps."""
    global _link
    env = os.environ
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    prefix = f"{PREFIX}/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_times)}"
    if _link is None:
        serve = place.rank == 0 and not agent
        _link = connect(*address(), place.rank, place.size, serve=serve, prefix=prefix)
    else:  # the store of an earlier command: a new one at the same port might not be the one that the others reach
        _link = Link(_link.tcp, prefix, place.rank, place.size)
    return _link


def address() -> tuple[str, int]:
    """Host and port at which rank 0 is found: as the launcher says; under SLURM the first host and the job's number."""
    env = os.environ
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    first = re.split(r"[,\s]", re.sub(r"\[(\w+)[^\]]*\]", r"\1", hosts))[0]  # node[03-05,9],other -> node03
    job, step = (int(env.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = 15000 + (job + 1000 * step) % 17000  # below the ports that systems give away
    return env.get("MASTER_ADDR", first), int(env.get("MASTER_PORT", port))


@contextmanager
def leading() -> Iterator[None]:
    """On rank 0 of a launcher's processes: however the block ends, the others end with it."""
    place = here()
    if place is None or place.size == 1:
        yield
        return
    link, status = join(place), 1
    try:
        yield
        status = 0
    except KeyboardInterrupt:
        status = 130
        raise
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        raise
    finally:
        with contextlib.suppress(RuntimeError):  # torchrun, which keeps the store, may be gone
            link.end(status)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """What this process says goes to `path`, which is removed again if that is nothing."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()


@contextmanager
def launched(config: Mapping[str, Any], run: Path) -> Iterator[Place]:
    """All processes of a run at work: started where nobody has, handed the run, and joined in a process group.

    When the block ends, so do the group and what was started here. When one process fails, all of them leave the block.

    Raises:
        FinetuneError: another process failed, and why.
    """
    size, place = check(config["trainer"]), here()
    if size == 1:
        yield place or Place()
        return
    environment, threads = dict(os.environ), torch.get_num_threads()
    children = Children(run)
    if own := place is None:
        place, link = Place(0, size), connect("127.0.0.1", 0, 0, size, serve=True, prefix=f"{PREFIX}/0/0")
    else:
        assert _link is not None  # `leading` or the order that this run came with
        link = _link

    def trouble() -> str | None:
        return link.failure() or children.failure()

    try:
        if own:
            children.start(size, link.tcp.port)
        if place.rank == 0:
            link.hand({"run": str(run.resolve()), "config": dict(config)}, trouble)
        link.meet("begin", trouble)
        with Watch(trouble, abort), group(link, place, config["trainer"]):
            yield place
            link.meet("end", trouble)  # a rank that left earlier would break the others' last collective
        if own:
            link.end(0)
            children.wait()
    except BaseException as error:
        first = link.fail(reason(error, run, place))
        # a collective that broke off says less than the process that broke it, whose end may be seen a little later
        killed = None if isinstance(error, FinetuneError) or not isinstance(error, Exception) else children.failure(2)
        if killed or not (first or isinstance(error, FinetuneError) or not isinstance(error, Exception)):
            raise FinetuneError(str(killed or link.failure())) from None
        raise
    finally:
        children.stop()
        if own:
            link.close()
        gc.collect()  # the store keeps its port for as long as anything refers to it
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def reason(error: BaseException, run: Path, place: Place) -> str:
    """What the other processes are told of `error`; a bug leaves its traceback in the log of its rank."""
    if isinstance(error, FinetuneError):
        return str(error)
    if not isinstance(error, Exception):
        return "it was stopped."
    if place.rank > 0:
        traceback.print_exception(error)
    text = traceback.format_exception_only(error)[-1].strip()
    return f"{text} (its traceback is in {log_file(run, place.rank)})" if place.rank > 0 else text


@contextmanager
def group(link: Link, place: Place, trainer: Mapping[str, Any]) -> Iterator[None]:
    """The process group of a run: nccl on GPUs, gloo elsewhere. Lightning takes the one there is."""
    devices, accelerator = trainer["devices"], trainer["accelerator"]
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(devices[place.local] if isinstance(devices, list | tuple) else place.local)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=link.group_store(), rank=place.rank, world_size=place.size
    )
    try:
        yield
    except BaseException:
        abort()  # others may be gone, and an orderly end would wait for them
        raise
    finally:
        dist.destroy_process_group()


def abort() -> None:
    """Break off the collectives at work."""
    if dist.is_initialized():
        dist.group.WORLD.abort()  # type: ignore[union-attr]


BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the integers that its bits are read as."""


@torch.no_grad()
def agree(network: nn.Module) -> None:
    """Hold the ranks to one network: parameters are compared bit by bit, buffers become those of the first rank.

    Gradients that some ranks did not share would let the ranks drift apart without a word. Running statistics differ
    by nature, each rank sees its own part of a batch: what is validated is what the first rank will save.

    Raises:
        FinetuneError: on every rank alike, naming the first parameter that differs.
    """
    named = dict(network.named_parameters())
    sums = [value.contiguous().view(BITS[value.element_size()]).sum(dtype=torch.int64) for value in named.values()]
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
