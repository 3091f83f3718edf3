"""The processes of a job: the place of this process, how the first starts or reaches the others, and what they share.

Rank 0 alone reads the command line, makes run folders and resolves the configuration; it sends both to the others,
started by this program (trainer.devices=2), torchrun or SLURM. A rank that composed the configuration itself could
compose another one (a sampling sweeper, a time stamp), and the ranks of a job would silently train different models.
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
from finetune.training.launch.process_group import BROKEN, abort, group, is_broken


@dataclass(frozen=True)
class Place:
    """The place of a process among those of its job; the default is that of a single process."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its number on its machine."""
    node: int = 0
    """The machine's number."""
    launcher: str = ""
    """The environment variable with a launcher's number of processes."""


def launched_place() -> Place | None:
    """This process's place as set by a launcher; None for a process without a launcher.

    torchrun before SLURM: `srun torchrun` sets the variables of both. An interactive shell under SLURM has the
    SLURM_NTASKS of its allocation, but is a single process.
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
    """This process's number among all ranks, also before torch.distributed is initialised."""
    return (launched_place() or Place()).rank


def num_processes(devices: object, accelerator: str) -> int:
    """The number of processes of `trainer.devices` on this machine: a number, -1 or auto for all, or a list of ids."""
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
    """The number of processes of `trainer.devices` on `trainer.num_nodes` machines.

    Raises:
        FinetuneError: a launcher started another number, or there are several machines and no launcher.
    """
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    expected, place = num_processes(devices, trainer["accelerator"]) * nodes, launched_place()
    if place is None and nodes > 1:
        raise FinetuneError(
            f"trainer.num_nodes={nodes}, but only a launcher starts processes on other machines: "
            f"torchrun --nnodes={nodes} --nproc_per_node=N -m finetune ..., or srun."
        )
    if place is not None and place.size != expected:
        raise FinetuneError(
            f"trainer.devices={devices} on trainer.num_nodes={nodes} means {expected} process(es), but a launcher says "
            f"{place.launcher}={place.size}. Make trainer.devices the number of processes on each machine."
        )
    return expected


# -- the connection between the processes ------------------------------------------------------------------------------

PREFIX = "finetune"  # of all messages: torchrun's store holds others too
_link: Link | None = None  # of a process started by a launcher or by a first rank
_num_commands = itertools.count()  # a second command of the same processes must not read the messages of the first


def join(place: Place) -> Link:
    """This process's end of the connection: to torchrun's store, or to one of rank 0."""
    global _link
    env = os.environ
    has_agent_store = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    prefix = f"{PREFIX}/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_num_commands)}"
    if _link is None:
        serve = place.rank == 0 and not has_agent_store
        _link = connect(*rank_zero_address(), place.rank, place.size, serve=serve, prefix=prefix)
    else:  # reuse the store of an earlier command: the others might not reach a new one at the same port
        _link = Link(_link.tcp, prefix, place.rank, place.size)
    return _link


def rank_zero_address() -> tuple[str, int]:
    """Host and port of rank 0: those of the launcher; under SLURM the first host and a port from the job's number."""
    env = os.environ
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    first = re.split(r"[,\s]", re.sub(r"\[(\w+)[^\]]*\]", r"\1", hosts))[0]  # node[03-05,9],other -> node03
    job, step = (int(env.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = 15000 + (job + 1000 * step) % 17000  # below the ephemeral ports of systems
    return env.get("MASTER_ADDR", first), int(env.get("MASTER_PORT", port))


@contextmanager
def lead() -> Iterator[None]:
    """On rank 0 of a launcher's processes: the others end when the block ends, in whatever way."""
    place = launched_place()
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
        with contextlib.suppress(RuntimeError):  # torchrun, which holds the store, may have ended
            link.end(status)


@contextmanager
def redirect_output(path: Path) -> Iterator[None]:
    """Write this process's output to `path`, which is removed if it stays empty."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()


@contextmanager
def launch(config: Mapping[str, Any], run: Path) -> Iterator[Place]:
    """Run the block in all processes of a run: starts them without a launcher, sends the run, makes a process group.

    The group and the processes started here end with the block. When one process fails, all of them leave the block.

    Raises:
        FinetuneError: another process failed; with the reason.
    """
    size, place = check(config["trainer"]), launched_place()
    if size == 1:
        yield place or Place()
        return
    environment, threads = dict(os.environ), torch.get_num_threads()
    children = Children(run)
    if is_local := place is None:
        place, link = Place(0, size), connect("127.0.0.1", 0, 0, size, serve=True, prefix=f"{PREFIX}/0/0")
    else:
        assert _link is not None  # `lead`, or the message that this run came with
        link = _link

    def find_failure() -> str | None:
        return link.failure() or children.failure()

    try:
        if is_local:
            children.start(size, link.tcp.port)
        if place.rank == 0:
            link.send_run({"run": str(run.resolve()), "config": dict(config)}, find_failure)
        link.wait_for_all("begin", find_failure)
        with Watch(find_failure, abort), group(link, place.local, config["trainer"], rank_zero_address()[0]):
            yield place
            link.wait_for_all("end", find_failure)  # a rank that leaves earlier breaks the others' last collective
        if is_local:
            link.end(0)
            children.wait()
    except BaseException as error:
        first = link.report_failure(describe_error(error, run, place))
        # the failed process explains more than a broken collective, and its end may be seen a little later
        killed = None if isinstance(error, FinetuneError) or not isinstance(error, Exception) else children.failure(2)
        if killed or not (first or isinstance(error, FinetuneError) or not isinstance(error, Exception)):
            raise FinetuneError(str(killed or link.failure())) from None
        if is_broken(error):
            raise FinetuneError(BROKEN) from None
        raise
    finally:
        children.stop()
        if is_local:
            link.close()
        gc.collect()  # the store holds its port while anything refers to it
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def describe_error(error: BaseException, run: Path, place: Place) -> str:
    """The message about `error` for the other processes; the traceback of a bug goes to the log of its rank."""
    if isinstance(error, FinetuneError):
        return str(error)
    if not isinstance(error, Exception):
        return "it was stopped."
    if is_broken(error):
        return BROKEN
    if place.rank > 0:
        traceback.print_exception(error)
    text = traceback.format_exception_only(error)[-1].strip()
    return f"{text} (its traceback is in {log_file(run, place.rank)})" if place.rank > 0 else text


BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the integer type for reading its bits."""


@torch.no_grad()
def assert_ranks_identical(network: nn.Module) -> None:
    """Check that all ranks have the same parameters, bit by bit, and copy the first rank's buffers to the others.

    Gradients not shared by all ranks would silently let the ranks drift apart. Running statistics always differ, as
    each rank has a part of a batch: the validated buffers are those that the first rank saves.

    Raises:
        FinetuneError: on every rank, naming the first parameter that differs.
    """
    parameters = dict(network.named_parameters())
    sums = [value.contiguous().view(BITS[value.element_size()]).sum(dtype=torch.int64) for value in parameters.values()]
    own_sums = torch.stack(sums)
    all_sums = [torch.empty_like(own_sums) for _ in range(dist.get_world_size())]
    dist.all_gather(all_sums, own_sums)
    differing = (torch.stack(all_sums) != all_sums[0]).any(0).tolist()
    if any(differing):
        name = next(name for name, differs in zip(parameters, differing, strict=True) if differs)
        raise FinetuneError(
            f"The processes no longer hold the same network: {name} and {sum(differing) - 1} other parameters differ. "
            "A callback or strategy of your own may step or freeze on some of them only; trainer.devices=1 is safe."
        )
    for buffer in network.buffers():
        dist.broadcast(buffer, 0)
