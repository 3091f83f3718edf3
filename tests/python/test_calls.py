"""A fit from Python is that of the command to the last bit, and leaves the process as it was."""

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.version import getbase
from safetensors.torch import load_file

import finetune
from finetune.config import process
from finetune.errors import FinetuneError
from finetune.training.callbacks import PrintEpoch
from tests.jobs.test_fit import draw

TINY = {
    "backbone": "resnet20_cifar", "weights": None, "image_size": 16, "num_workers": 0, "epochs": 2,
    "accelerator": "cpu", "evaluation__resamples": 20, "evaluation__thumbnails": 0, "evaluation__novelty": 0,
}  # fmt: skip
COMMAND = [
    "backbone=resnet20_cifar", "backbone.weights=none", "data.image_size=16", "data.num_workers=0",
    "trainer.max_epochs=2", "trainer.accelerator=cpu", "evaluation.resamples=20", "evaluation.thumbnails=0",
    "evaluation.novelty=0", "data=csv", "data.table=images.csv", "data.label=what it is", "data.patient=who",
    "hydra.run.dir=runs/command",
]  # fmt: skip


def table() -> pd.DataFrame:
    paths = sorted(str(path) for path in Path("images").rglob("*.png"))
    who = [f"p{i // 2}" for i in range(len(paths))]
    return pd.DataFrame({"path": paths, "what it is": [Path(p).parent.name for p in paths], "who": who})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with images, their table, and the run of a process of its own by the command."""
    folder = tmp_path_factory.mktemp("place")
    old = os.getcwd()
    os.chdir(folder)
    draw(Path("images"))
    table().to_csv("images.csv", index=False)
    root = str(Path(finetune.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *COMMAND],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    yield folder
    os.chdir(old)


@pytest.fixture(scope="module")
def run(place):
    return finetune.fit("images.csv", label="what it is", patient="who", folder="runs/python", **TINY)


def equal(first: str | Path, second: str | Path) -> bool:
    """Whether two runs have the same weights, to the last bit."""
    a, b = (load_file(Path(run) / "model.safetensors") for run in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_bits_are_those_of_the_command_in_a_process_of_its_own(run, place):
    assert equal("runs/command", run.folder)
    assert run.config == finetune.read_run("runs/command").config
    assert "data=csv data.table=images.csv" in run.environment["command"]


def test_a_run_shows_its_scores_and_opens_its_model(run):
    auroc = run.scores["test"]["macro"]["auroc"]
    assert f"test: macro AUROC {auroc['value']:.3f}" in repr(run)
    html = run._repr_html_()
    assert "<th>val</th><th>test</th>" in html
    assert f"{auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]" in html
    assert run.report.is_file()
    assert run.model.classes == ["cold", "warm"]
    assert finetune.read_run(run.folder).scores == run.scores
    unfinished = finetune.read_run("runs/python")
    unfinished.scores, unfinished.folder = {}, None
    assert "<table>" not in unfinished._repr_html_()
    with pytest.raises(FinetuneError, match="was not read from a folder"):
        _ = unfinished.report


class Sentinel(logging.Handler):
    def emit(self, record):
        pass


def test_a_second_fit_in_a_changed_process_has_the_same_bits_and_leaves_no_trace(run, place, tmp_path):
    """State of every kind is set before, and is the same after."""
    (tmp_path / "mine.yaml").write_text("x: 3\n")
    mine, handler = logging.getLogger("mine"), Sentinel()
    logging.root.addHandler(handler)
    old_signal = signal.signal(signal.SIGTERM, lambda *_: None)
    threads, level = torch.get_num_threads(), logging.getLogger("lightning.pytorch").level
    with initialize_config_dir(str(tmp_path), version_base="1.2"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mine")
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        hydra, base, filters = GlobalHydra.instance().hydra, getbase(), list(warnings.filters)
        before = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy())
        facts = dict(os.environ), os.getcwd(), list(sys.argv), sys.stdout, sys.stderr
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            with torch.no_grad():
                second = finetune.fit(
                    table(), label="what it is", patient="who", root=place, folder="runs/second", **TINY
                )
                assert not torch.is_grad_enabled()
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        assert (dict(os.environ), os.getcwd(), list(sys.argv), sys.stdout, sys.stderr) == facts
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        assert (np.random.get_state()[1] == before[2]).all()
        assert warnings.filters == filters
        assert GlobalHydra.instance().hydra is hydra
        assert getbase() == base
        assert hydra_compose("mine").x == 3
    signal.signal(signal.SIGTERM, old_signal)
    assert handler in logging.root.handlers
    logging.root.removeHandler(handler)
    assert not mine.disabled
    assert torch.get_num_threads() == threads
    assert logging.getLogger("lightning.pytorch").level == level
    assert equal(run.folder, second.folder)
    assert second.config["data"]["table"] == str(place / "runs/second/table.csv")
    pd.testing.assert_frame_equal(pd.read_csv("runs/second/table.csv"), table())
    assert "data.table=" + str(place / "runs/second/table.csv") in second.environment["command"]


def test_a_folder_with_a_run_keeps_its_table(run, place):
    before = Path("runs/second/table.csv").read_bytes()
    with pytest.raises(FinetuneError, match="holds a run already"):
        finetune.fit(table().head(4), label="what it is", folder="runs/second", **TINY)
    assert Path("runs/second/table.csv").read_bytes() == before


def test_a_frame_that_fails_before_the_run_begins_leaves_nothing(place):
    with pytest.raises(FinetuneError, match=r"data\.label=nonsense is not a column"):
        finetune.fit(table(), label="nonsense", folder="runs/none", **TINY)
    assert not Path("runs/none").exists()


def test_in_a_running_loop_and_in_a_thread_and_one_at_a_time(run, place):
    async def cell():
        return finetune.evaluate(run, folder="runs/in_loop", evaluation__resamples=20)

    assert asyncio.run(cell()).scores["test"]["macro"] == run.scores["test"]["macro"]
    results: list = []
    thread = threading.Thread(target=lambda: results.append(finetune.data_module("images", **TINY)))
    thread.start()
    thread.join()
    assert results[0].classes == ["cold", "warm"]
    with process.restored(), pytest.raises(FinetuneError, match="Another job of finetune runs in this process"):
        finetune.evaluate(run)


def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_bits(run, place, monkeypatch, capsys):
    data = {"label": "what it is", "patient": "who"}
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(PrintEpoch, "on_train_epoch_start", stop_in_epoch_1)
        with pytest.raises(KeyboardInterrupt, match=r"finetune\.resume\('.*runs/stopped'\)"):
            finetune.fit("images.csv", **data, **TINY, folder="runs/stopped")
    assert signal.getsignal(signal.SIGINT) is handler  # Lightning ignores it from then on
    assert "epoch 0/1" in capsys.readouterr().out
    unfinished = finetune.read_run("runs/stopped")
    assert "scores.json is missing." in unfinished.problems
    with pytest.raises(FinetuneError, match=r"'optimizer.lr=1' cannot be set in a resume"):
        finetune.resume(unfinished, lr=1)
    resumed = finetune.resume(unfinished)
    assert equal(run.folder, resumed.folder)
    assert "resume=" in resumed.environment["resumed"][0]["command"]


def test_further_processes_know_the_modules_of_this_one(place, monkeypatch):
    """Ranks of devices=2 are not started in the folder of the script, which holds the user's modules."""
    monkeypatch.syspath_prepend("/beside/the script")
    found: list[str] = []
    monkeypatch.setattr("finetune.python.start.do_job", lambda *_: found.append(os.environ["PYTHONPATH"]))
    finetune.run_job("preview", "images", **TINY, folder="runs/nothing")
    assert "/beside/the script" in found[0].split(os.pathsep)


def test_a_launcher_of_several_processes_is_told_the_ways(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FinetuneError, match=r"WORLD_SIZE=2\).*give devices=N; under torchrun or srun use the command"):
        finetune.fit("images")


def stop_in_epoch_1(self, trainer, module):
    if trainer.current_epoch == 1:
        raise KeyboardInterrupt
