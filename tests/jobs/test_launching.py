"""Several processes under any launcher: one run folder, one configuration, and nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch.distributed as dist
import yaml

from finetune.__main__ import main
from tests.jobs.test_fit import FILES, TINY, draw
from tests.two_ranks import ROOT

WORDS = [*TINY, "trainer.max_epochs=1", "data=folder", "data.root=images", "data.batch_size=8"]
TWO = [*WORDS, "trainer.devices=2"]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS")

LEFT = (*LAUNCHED, "OMP_NUM_THREADS", "NODE_RANK", "GROUP_RANK", "HYDRA_FULL_ERROR")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    draw(tmp_path / "images")
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def commands(place: Path, *lines: list[str]) -> str:
    path = place / "commands.json"
    path.write_text(json.dumps(lines))
    return str(path)


def listening() -> list[str]:
    """Inodes of this process's sockets that listen."""
    mine = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [line[9] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in mine]


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")
def test_a_sweep_on_two_devices_leaves_two_runs_and_nothing_else(place, capsys):
    """Stopped by steps in the middle of an epoch, both of them."""
    before, ports, started = {name: os.environ.get(name) for name in LEFT}, listening(), children()
    main(["-m", *TWO, "trainer.max_steps=3", "seed=0,1", "hydra.sweep.dir=runs"])
    output = capsys.readouterr().out
    assert output.count("Training was ended by trainer.max_steps=3 in the middle of epoch 0/0") == 2
    for seed in (0, 1):
        run = Path(f"runs/{seed}_seed_{seed}")
        assert {path.name for path in run.iterdir()} >= FILES
        assert (run / "checkpoints" / "stopped.ckpt").is_file()
        assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == seed
    assert {name: os.environ.get(name) for name in LEFT} == before
    assert not dist.is_initialized()
    assert listening() == ports
    assert children() == started


def test_torchrun_fits_resumes_evaluates_sweeps_and_fails(place):
    """In one pair of processes: state left by a command would disturb the next."""
    lines = commands(
        place,
        [*TWO, "trainer.max_steps=3", "hydra.run.dir=run"],
        ["resume=run", "trainer.max_steps=-1"],
        ["job=evaluate", "model=run", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.run.dir=again"],
        ["-m", *TWO, "optimizer=sgd", "optimizer.lr=1e30,1e-3", "hydra.sweep.dir=runs"],
        [*WORDS, "hydra.run.dir=one"],
        [*TWO, "data.root=nowhere"],
    )
    torchrun = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "tests.under_a_launcher", lines],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ended [0, 0, 0, 1, 1, 1]") == 2
    assert done.stdout.count("resuming run") == 1  # only rank 0 prints
    assert done.stderr.count("error:") == 4, done.stderr  # the failed run, its sweep, the number of processes, no data
    assert (
        "trainer.devices=1 on trainer.num_nodes=1 means 1 process(es), but a launcher says WORLD_SIZE=2" in done.stderr
    )
    assert "1 of 2 runs failed:\n  run 1 of 2: optimizer.lr=1e+30: The " in done.stderr
    assert {path.name for path in Path("run").iterdir()} >= FILES
    assert pd.read_csv("run/metrics.csv")["step"].tolist() == [6]
    assert {path.name for path in Path("runs/1_optimizer.lr_0.001").iterdir()} >= FILES
    assert sorted(path.name for path in place.iterdir()) == [
        "again",
        "commands.json",
        "images",
        "outputs",
        "run",
        "runs",
    ]
    assert [path.name for path in Path("outputs").iterdir()] == ["latest"]
    again, first = (pd.read_csv(f"{name}/predictions_test.csv") for name in ("again", "run"))
    pd.testing.assert_frame_equal(again, first)


def test_two_tasks_of_srun_make_one_run_and_end_together_when_it_cannot_begin(place):
    lines = commands(place, [*TWO, "hydra.run.dir=run"], [*TWO, "data.fold=77"])
    slurm = {"SLURM_JOB_ID": str(free_port()), "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_JOB_NAME": "python", "SLURM_STEP_NODELIST": "localhost"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.under_a_launcher", lines],
            env=environment(**slurm, SLURM_PROCID=str(number), SLURM_LOCALID=str(number)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 0)  # the first to start waits
    ]
    try:
        (silent, quiet), (_, error) = (task.communicate(timeout=240) for task in tasks)
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0]
    assert (silent, quiet) == ("ended [0, 1]\n", "")
    assert error == "error: data.fold=77 must lie between 0 and data.folds - 1 = 4.\n"
    assert {path.name for path in Path("run").iterdir()} >= FILES


def test_a_process_that_is_killed_fails_its_run_alone(place, capsys, monkeypatch):
    """The second rank of the first run is killed; the next run has a new one."""
    (place / "sitecustomize.py").write_text(
        "import os, signal, threading, time\n"
        "def end():\n"
        "    while not os.path.isfile('runs/0_seed_0/checkpoints/last.ckpt'): time.sleep(0.05)\n"
        "    if not os.path.isdir('runs/1_seed_1'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('RANK') == '1': threading.Thread(target=end, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{place}{os.pathsep}{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(SystemExit) as stopped:
        main(
            ["-m", *TWO, "seed=0,1", "trainer.max_epochs=300", "trainer.max_time='00:00:00:08'", "hydra.sweep.dir=runs"]
        )
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "1 of 2 runs failed:\n  run 1 of 2: seed=0: Rank 1 ended with exit status -9." in error
    assert "Traceback" not in error
    assert {path.name for path in Path("runs/1_seed_1").iterdir()} >= FILES


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_a_process_that_is_killed_under_a_launcher_ends_the_others(place, launcher):
    """torchrun stops the others itself; srun may leave that to us."""
    words, port = [*TWO, "trainer.max_epochs=100000", "hydra.run.dir=run"], str(free_port())
    if launcher == "torchrun":
        torchrun = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m", "finetune", *words]
        commands_and_places: list[tuple[list[str], dict[str, str]]] = [(torchrun, {})]
    else:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "python"}
        ranks = ({"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in (0, 1))
        commands_and_places = [(["finetune", *words], {**shared, **rank}) for rank in ranks]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment(**more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, more in commands_and_places
    ]
    try:
        deadline = time.monotonic() + 120
        while not Path("run/checkpoints/last.ckpt").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        inside = Path(f"/proc/{started[0].pid}/task/{started[0].pid}/children").read_text().split()
        rank_1 = int(inside[1]) if launcher == "torchrun" else started[1].pid
        os.kill(rank_1, signal.SIGKILL)
        error = started[0].communicate(timeout=30)[1]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert started[0].returncode == 1
    if launcher == "torchrun":
        assert f"Signal 9 (SIGKILL) received by PID {rank_1}" in error
    else:
        assert error.splitlines()[-1].startswith("error: Another process of this run ended without a message")
        assert "Traceback" not in error


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_any_precision_is_evaluated_in_32_bits(place, precision):
    import finetune

    main([*WORDS, f"trainer.precision={precision}", "hydra.run.dir=run"])
    model = finetune.load("run")
    assert {value.dtype.is_floating_point and value.dtype.itemsize for value in model.network.parameters()} == {4}
    table = pd.read_csv("run/predictions_test.csv")
    answers = model.predict([f"images/{name}" for name in table["sample"]])
    np.testing.assert_allclose(answers["prob_warm"], table["prob_warm"], atol=1e-5)


def test_a_share_of_less_than_one_batch_is_an_error_before_an_image_is_read(place, capsys):
    for key, least in (("limit_train_batches", "0.167"), ("limit_val_batches", "1")):
        with pytest.raises(SystemExit):
            main([*WORDS, f"trainer.{key}=0.1"])
        assert f"trainer.{key}=0.1 of" in (output := capsys.readouterr().err)
        assert f"at least {least}." in output
    assert not Path("outputs").exists()
