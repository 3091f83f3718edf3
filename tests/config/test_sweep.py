"""A multirun: runs have names, one that fails does not end the others, Ctrl-C does, equal data are audited once."""

import json
import os
from pathlib import Path

import pytest

from finetune import jobs
from finetune.__main__ import main
from finetune.config.sweep import Sweep, headline
from finetune.data.audit import audit
from tests.jobs.test_fit import TINY, draw

WORDS = [*TINY, "trainer.max_epochs=1", "data=folder", "data.root=images", "hydra.sweep.dir=runs"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "images", 12)
    return tmp_path


def test_names_and_number():
    sweep = Sweep(["backbone=resnet18,resnet34", "optimizer.lr=0.1", "backbone.weights=a/b.pth,c d", "seed=range(3)"])
    one = ["backbone=resnet18", "optimizer.lr=0.1", "backbone.weights=a/b.pth", "seed=1"]
    assert sweep.total == 12
    assert sweep.differing(one) == ["backbone=resnet18", "backbone.weights=a/b.pth", "seed=1"]
    assert sweep.folder_name(4, one) == "4_backbone_resnet18_backbone.weights_a_b.pth_seed_1"
    assert len(sweep.folder_name(4, [f"backbone={'x' * 300}"])) == 82
    assert Sweep(["seed=0"]).folder_name(0, ["seed=0"]) == "0"
    assert Sweep(["seed=0,1", "hydra/sweeper=mine"]).total is None


def test_a_failed_run_is_named_at_the_end_and_the_others_go_on(place, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["-m", *WORDS, "optimizer=sgd", "optimizer.lr=1e30,1e-3,1e-4", "trainer.max_epochs=2"])
    assert stopped.value.code == 1
    messages, error = capsys.readouterr()
    assert "run 2 of 3: optimizer.lr=0.001" in messages
    table = messages[messages.index("set by") :]
    assert "runs/0_optimizer.lr_1e+30 optimizer.lr=1e+30 failed" in " ".join(table.split())
    value = json.loads(Path("runs/1_optimizer.lr_0.001/scores.json").read_text())["test"]["macro"]["auroc"]["value"]
    assert f"{value:.3f}" in table
    assert "job=compare 'runs=[runs/1_optimizer.lr_0.001,runs/2_optimizer.lr_0.0001]'" in table
    last = error[error.index("error: 1 of 3 runs failed:") :]
    assert "run 1 of 3: optimizer.lr=1e+30: The " in last
    assert "Lower optimizer.lr" in last
    assert messages.count("audit: test has fewer than") == 1
    assert messages.count("audit: the same data as in 0_optimizer.lr_1e+30") == 2
    first, second = (Path(f"runs/{name}/audit.json").read_text() for name in os.listdir("runs") if "lr_0" in name)
    assert first == second


def test_each_run_is_checked_before_it_reads_anything(place, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "run_job", lambda *a, **k: None)
    with pytest.raises(SystemExit):
        main(["-m", *WORDS, "trainer.precision=32-true,transformer-engine"])
    error = capsys.readouterr().err
    assert "1 of 2 runs failed" in error
    assert "trainer.precision=transformer-engine is for transformers" in error
    assert not Path("runs/1_trainer.precision_transformer-engine").exists()


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (SystemExit(130), 130)])
def test_a_stop_by_hand_ends_the_sweep(place, monkeypatch, raised, status):
    began = []

    def stopped(config, folder, words):
        began.append(words)
        raise raised

    monkeypatch.setattr(jobs, "run_job", stopped)
    with pytest.raises(SystemExit) as end:
        main(["-m", *WORDS, "seed=0,1,2"])
    assert end.value.code == status
    assert len(began) == 1


def test_a_bug_in_one_run_keeps_its_traceback_and_the_others(place, monkeypatch, capsys):
    def wrong(config, folder, words):
        if config["seed"] == 0:
            raise KeyError("lost")

    monkeypatch.setattr(jobs, "run_job", wrong)
    with pytest.raises(SystemExit) as end:
        main(["-m", *WORDS, "seed=0,1"])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "run 1 of 2: seed=0: KeyError: 'lost'" in error


def test_other_data_are_audited_again(place, monkeypatch):
    audited = []
    whole = audit.audit_images
    monkeypatch.setattr(audit, "audit_images", lambda *a: audited.append(a) or whole(*a))
    main(["-m", *WORDS, "data.seed=0,1", "seed=0,1"])
    assert len(audited) == 2
    main([*WORDS[:-1], "hydra.run.dir=alone"])  # nothing is remembered beyond a sweep
    assert len(audited) == 3


def test_scores_that_are_undefined_are_left_out(tmp_path):
    assert headline(tmp_path) == {}
    score = {"value": 0.5, "low": None, "high": None}
    scores = {"val": {"macro": {"auroc": {"value": None}}}, "test": {"macro": {"auroc": score}, "overall": None}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    assert headline(tmp_path) == {"test macro AUROC": "0.500"}
