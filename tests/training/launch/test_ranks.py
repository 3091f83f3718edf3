"""Two processes: they stay identical under a plan that unfreezes, and a rank that drifts is detected."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.two_ranks import run_two


def check_drift(rank: int) -> None:
    from finetune.errors import FinetuneError
    from finetune.training.launch import ranks

    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    net[1].running_mean.fill_(rank)
    ranks.assert_ranks_identical(net)
    assert net[1].running_mean.tolist() == [0, 0]
    with torch.no_grad():
        net[0].bias[1] += rank * 1e-7  # the smallest step that a float32 of this size can take
    with pytest.raises(FinetuneError, match=r"no longer hold the same network: 0\.bias and 0 other"):
        ranks.assert_ranks_identical(net)


def check_unfreezing(rank: int) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    from finetune.plan import Phase, Plan
    from finetune.training.launch import ranks
    from tests.training.tiny import data, module, state, trainer

    plan = Plan(phases={"head": Phase(0, ["head"]), "last": Phase(1, ["stage3", "head"]), "all": Phase(2)})
    model = module(plan)
    before = state(model.network)
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(Path(folder), 3, devices=2, strategy=DDPStrategy(find_unused_parameters=True))
        run.fit(model, datamodule=data())
    changed = {name for name, value in model.network.named_parameters() if not torch.equal(value, before[name])}
    assert {"backbone.conv1.weight", "backbone.layer3.0.conv1.weight", "head.fc.weight"} <= changed
    parameters = {name: value.detach() for name, value in model.network.named_parameters()}
    for value in parameters.values():
        first = value.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, value)
    ranks.assert_ranks_identical(model.network)


def test_two_processes():
    run_two("tests.training.launch.test_ranks")


if __name__ == "__main__":
    number = int(sys.argv[1])
    dist.init_process_group("gloo", rank=number, world_size=2)
    check_drift(number)
    check_unfreezing(number)
    dist.barrier()  # a rank that ends first takes the store, or a connection, from the other at work
    dist.destroy_process_group()
