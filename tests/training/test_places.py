"""The place of a process among those of its job, under each launcher, and its agreement with the settings."""

import pytest

from finetune.errors import FinetuneError
from finetune.training.launch import ranks
from finetune.training.launch.ranks import Place

ONE_PROCESS = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "GROUP_RANK": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "1234567"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        (TORCHRUN, Place(5, 8, 1, 1, "WORLD_SIZE")),
        (SRUN, Place(3, 4, 1, 1, "SLURM_NTASKS")),
        (SRUN | TORCHRUN, Place(5, 8, 1, 1, "WORLD_SIZE")),  # srun torchrun
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # srun -n1 within a job of four
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # salloc
        (
            {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
            None,
        ),  # a batch script with trainer.devices=2
    ],
)
def test_launched_place(monkeypatch, environment, place):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.launched_place() == place
    assert ranks.rank() == (place.rank if place else 0)


def test_the_launcher_and_the_settings_must_agree(monkeypatch):
    assert ranks.check(ONE_PROCESS) == 1
    assert ranks.check(ONE_PROCESS | {"devices": 3}) == 3
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks.check(ONE_PROCESS | {"devices": 2, "num_nodes": 2}) == 4
    with pytest.raises(FinetuneError, match=r"trainer\.devices=3 on trainer\.num_nodes=1 means 3 .*WORLD_SIZE=4"):
        ranks.check(ONE_PROCESS | {"devices": 3})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node[03-05,9],other", "node03"),
        ("a,b", "a"),
        ("gpu7", "gpu7"),
        ("n[12]", "n12"),
        ("n[3,4]-ib", "n3-ib"),
    ],
)
def test_the_first_host_of_a_slurm_job(monkeypatch, nodes, host):
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    address, port = ranks.rank_zero_address()
    assert address == host
    assert 15000 <= port < 32000
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert ranks.rank_zero_address() != (host, port)  # two steps of one job
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert ranks.rank_zero_address() == ("elsewhere", 1)
