"""Lean training in two processes: gradients are averaged, as parameters are inputs of the autograd functions."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.two_ranks import run_two


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
        result = step(parallel, x[half], target[half])
        assert_same({name.replace("dmodule.", "d").replace("module.", ""): v for name, v in result.items()}, wanted)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes():
    run_two("tests.backbones.test_lean_ddp", "-W", "error::UserWarning")


if __name__ == "__main__":
    torch.set_num_threads(1)
    one_rank(int(sys.argv[1]))
