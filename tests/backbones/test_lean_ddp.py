"""Lean training in two processes: gradients are averaged, as parameters are inputs of the autograd functions."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parents[2]


def one_rank(rank: int) -> None:
    """Averaged gradients of standard networks, made by hand, are those of lean networks in DistributedDataParallel."""
    from tests.backbones.lean_cases import assert_same, batch, make, step

    dist.init_process_group("gloo", rank=rank, world_size=2)
    x, target = batch(4)
    half = slice(2 * rank, 2 * rank + 2)
    for case, memory in [("bottleneck", "lean"), ("dense", "minimal")]:
        standard = make(case).double()
        wanted = step(standard, x[half], target[half])
        for name, value in wanted.items():
            if name.startswith("d"):
                dist.all_reduce(value)
                wanted[name] = value / 2
        lean = make(case, memory).double()
        parallel = DistributedDataParallel(lean, broadcast_buffers=False, gradient_as_bucket_view=True)
        found = step(parallel, x[half], target[half])
        assert_same({name.replace("dmodule.", "d").replace("module.", ""): v for name, v in found.items()}, wanted)
    dist.destroy_process_group()


def test_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.backbones.test_lean_ddp"]
    ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=env, stderr=subprocess.PIPE) for rank in range(2)]
    try:
        errors = [rank.communicate(timeout=240)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    one_rank(int(sys.argv[1]))
