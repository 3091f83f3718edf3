"""Sweeps whose runs are done elsewhere: outcomes come back through files, cores are shared, all can be stopped."""

import io
import json
import os
import time
from pathlib import Path

import pytest

from finetune import jobs
from finetune.__main__ import main
from finetune.config import launchers, running
from finetune.config.board import Board, Outcome
from finetune.config.launchers import Launcher, cores_of_run
from finetune.config.running import LinePrefix
from finetune.config.sweep import KILLED
from finetune.errors import FinetuneError, Terminated
from finetune.training.launch import cores
from tests.jobs.test_fit import TINY, draw

WORDS = [*TINY, "trainer.max_epochs=1", "data=folder", "data.root=images"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "images", 12)
    return tmp_path


@pytest.fixture
def launched(place, monkeypatch):
    """A sweep that Hydra's own launcher runs as if it were another: with a copy of the task, and outcomes in files."""
    monkeypatch.setattr(launchers, "chosen", lambda words, total: Launcher("test", place / "runs", None))
    return place


@pytest.mark.parametrize("name", ["joblib", "ray", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed(monkeypatch, name):
    monkeypatch.setattr(launchers, "find_spec", lambda module: None)
    extra = name.partition("_")[0]
    with pytest.raises(
        FinetuneError, match=rf'={name} needs hydra-{extra}-launcher, .*: pip install -e "\.\[{extra}\]"'
    ):
        launchers.check([f"hydra/launcher={name}", "seed=0,1"], sweep=True)


def test_launchers_that_have_nothing_to_launch(monkeypatch):
    launchers.check(["seed=0"], sweep=False)
    launchers.check(["hydra/launcher=basic", "seed=0,1"], sweep=True)
    with pytest.raises(FinetuneError, match=r"starts the runs of a sweep\. Add -m"):
        launchers.check(["hydra/launcher=joblib"], sweep=False)
    with pytest.raises(FinetuneError, match="must name a single launcher: basic, joblib, ray"):
        launchers.check(["hydra/launcher=joblib,ray"], sweep=True)
    monkeypatch.setattr(launchers, "is_installed", lambda extra: True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        FinetuneError, match=r"has started 2 already: WORLD_SIZE=2\. Start the sweep as a single process"
    ):
        launchers.check(["hydra/launcher=joblib"], sweep=True)


def test_hydras_own_launcher_needs_no_other_process():
    assert launchers.chosen(["seed=0,1", "data=csv,folder"], 4) is None


def test_cores_are_shared(monkeypatch):
    monkeypatch.setenv(cores.CORES, "8")
    assert cores.cores() == 8
    for jobs_at_once, total, share in ((2, 10, 4), (-1, 10, 1), (-1, 2, 4), (-2, None, 1), (3, 4, 2), (16, 16, 1)):
        assert cores_of_run("joblib", {"n_jobs": jobs_at_once}, total) == share
    assert cores_of_run("submitit_local", {"cpus_per_task": None}, 4) == 2
    assert cores_of_run("submitit_local", {"cpus_per_task": 3}, 4) == 3
    assert cores_of_run("ray", {"ray": {"remote": {}}}, 4) == 1
    assert cores_of_run("ray", {"ray": {"remote": {"num_cpus": 4}}}, 4) == 4
    assert cores_of_run("submitit_slurm", {}, 4) is None
    monkeypatch.delenv(cores.CORES)
    assert cores.cores() == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def test_outcomes_are_read_in_the_order_of_the_runs(tmp_path):
    board = Board.below(tmp_path / "a" / "sweep")
    outcomes = [Outcome(n, tmp_path / str(n), f"seed={n}", "fit", "late" if n == 3 else None) for n in (10, 3)]
    for outcome in outcomes:
        board.post(outcome)
    assert board.outcomes() == outcomes[::-1]
    assert Board.below(tmp_path / "a" / "sweep").outcomes() == []
    board.remove()
    assert not board.folder.exists()


def test_a_stop_acts_as_ctrl_c(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.config.board.POLL", 0.01)
    board = Board.below(tmp_path)
    with board.obeyed():
        time.sleep(0.05)
    board.stop()
    assert board.is_stopped()
    with pytest.raises(KeyboardInterrupt), board.obeyed():
        time.sleep(10)


def test_lines_of_runs_beside_each_other_can_be_told_apart():
    stream = io.StringIO()
    prefixed = LinePrefix(stream, "[2] ")
    assert not prefixed.isatty()
    assert prefixed.write("half a ") == 7
    assert stream.getvalue() == ""
    prefixed.writelines(["line\n\n", "two\nthree\n"])
    assert stream.getvalue() == "[2] half a line\n\n[2] two\n[2] three\n"


def test_outcomes_come_back_from_other_processes(launched, monkeypatch, capsys):
    def fail_some(config, folder, words):
        assert words[-1] == f"seed={config['seed']}"
        if config["seed"] == 1:
            raise FinetuneError("No room.")
        if config["seed"] == 2:
            raise Terminated
        if config["seed"] == 3:
            raise KeyError("lost")

    monkeypatch.setattr(jobs, "run_job", fail_some)
    with pytest.raises(SystemExit) as stopped:
        main(["-m", *WORDS, "seed=0,1,2,3"])
    assert stopped.value.code == 1
    output, error = capsys.readouterr()
    assert "[3] run 3 of 4: seed=2" in output
    assert "[2] error: No room." in error
    last = error[error.index("error: 3 of 4 runs failed:") :].splitlines()
    assert last[1] == "  run 2 of 4: seed=1: No room."
    assert last[2].startswith("  run 3 of 4: seed=2: It was stopped by SIGTERM. Continue it by resume=")
    assert last[3] == "  run 4 of 4: seed=3: KeyError: 'lost'"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["0_seed_0", "2_seed_2", "3_seed_3", "multirun.yaml"]


def test_a_launcher_that_ends_early_is_an_error_with_what_is_known(launched, monkeypatch, capsys):
    """As joblib does when one of its processes is killed: the run has begun, and says nothing more."""

    class Killed(BaseException):
        pass

    def die(config, folder, words):
        if config["seed"] == 1:
            monkeypatch.setattr(Board, "post", lambda self, outcome: None)
            raise Killed

    start_hydra = running._start_hydra

    def start(task, words, multirun):
        try:
            start_hydra(task, words, multirun=multirun)
        except Killed:
            raise RuntimeError("A worker process was terminated.\nMore.") from None

    monkeypatch.setattr(jobs, "run_job", die)
    monkeypatch.setattr(running, "_start_hydra", start)
    with pytest.raises(SystemExit):
        main(["-m", *WORDS, "seed=0,1,2"])
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "error: The sweep ended early: hydra/launcher=test: A worker process was terminated.",
        "  2 of 3 runs had begun.",
        f"  run 2 of 3: seed=1: {KILLED}",
    ]


def test_ctrl_c_stops_the_runs_elsewhere(launched, monkeypatch):
    def stop(config, folder, words):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "run_job", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["-m", *WORDS, "seed=0,1"])
    assert stopped.value.code == 130
    (board,) = (Board(path) for path in Path("runs").glob(".sweep_*"))
    assert board.is_stopped()
    assert [(o.number, o.error) for o in board.outcomes()] == [(1, "It was stopped.")]


def test_joblib(place, capfd):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib is not installed")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with pytest.raises(SystemExit) as stopped:
        main(["-m", *launcher, *WORDS, "optimizer=sgd", "optimizer.lr=1e-3,1e30", "hydra.sweep.dir='it\\'s'"])
    assert stopped.value.code == 1
    output, error = capfd.readouterr()
    assert "[1] epoch 0/0" in output
    assert "run 2 of 2: optimizer.lr=1e+30: The network's outputs are not finite" in error
    assert sorted(path.name for path in Path("it's").iterdir()) == [
        "0_optimizer.lr_0.001",
        "1_optimizer.lr_1e+30",
        "multirun.yaml",
    ]
    scores = json.loads(Path("it's/0_optimizer.lr_0.001/scores.json").read_text())
    assert f"{scores['test']['macro']['auroc']['value']:.3f}" in output
    assert Path("outputs/latest").resolve().name == "0_optimizer.lr_0.001"
