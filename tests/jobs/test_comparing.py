"""job=compare on runs that a fit left: folds of one table, seeds of one setting, and samples that are not the same."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from finetune.__main__ import main
from tests.jobs.test_evaluating import FEW, clinic, clinical
from tests.jobs.test_fit import TINY

SHORT = [*TINY, *clinical(), *FEW, "trainer.max_epochs=1", "evaluation.subgroups=[]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    old = os.getcwd()
    os.chdir(folder)
    clinic(folder / "clinic", 160)
    drawn = ["data.split=null", "data.folds=2"]
    main(["-m", *SHORT, *drawn, "data.fold=0,1", "hydra.sweep.dir=runs/folds"])
    main(["-m", *SHORT, "seed=0,1", "hydra.sweep.dir=runs/seeds"])
    main([*SHORT, "optimizer.lr=1e-5", "hydra.run.dir=runs/slow"])
    yield folder
    os.chdir(old)


def test_folds_of_one_table_are_collected(place, capsys):
    main(["job=compare", "runs=runs/folds", *FEW, "hydra.run.dir=runs/oof"])
    said = capsys.readouterr().out
    assert "macro AUROC pooled" in said
    assert "mean of 2 folds" in said
    table = pd.read_csv("runs/oof/predictions_oof.csv")
    assert len(table) == table["sample"].nunique() == 160
    told = json.loads(Path("runs/oof/compare.json").read_text())
    assert set(told["out_of_fold"][0]["folds"]) == {"0", "1"}
    assert told["out_of_fold"][0]["pooled"]["n"] == 160


def test_a_run_of_a_multirun_has_its_own_command(place):
    """Of seed=0,1 each has one: typed again, it is that run."""
    for seed in (0, 1):
        command = json.loads(Path(f"runs/seeds/{seed}_seed_{seed}/environment.json").read_text())["command"]
        assert f"seed={seed}" in command.split()
        assert "0,1" not in command


def test_seeds_are_averaged_and_settings_compared(place, capsys):
    main(["job=compare", "runs=[runs/seeds,runs/slow]", *FEW, "hydra.run.dir=runs/compared"])
    said = capsys.readouterr().out
    assert "under" in said
    assert "seed noise" in said
    told = json.loads(Path("runs/compared/compare.json").read_text())
    assert [len(candidate["seeds"]) for candidate in told["candidates"]] == [2, 1]
    assert "optimizer.lr" in told["candidates"][0]["label"]
    page = Path("runs/compared/compare.html").read_text()
    assert page.count("<svg") == 2
    assert str(place) not in page
    assert not Path("outputs/latest").resolve().name.startswith("compared")


def test_other_samples_are_refused_and_what_differs_is_named(place, capsys):
    with pytest.raises(SystemExit):
        main(["job=compare", "runs=[runs/slow,runs/folds/0_data.fold_0]", *FEW, "hydra.run.dir=runs/refused"])
    said = capsys.readouterr().err
    assert "cannot be compared: of their samples" in said
    assert "data.folds=5 and 2" in said
    assert not Path("runs/refused/compare.json").exists()


def test_unfinished_runs_in_a_folder_are_left_out_and_named(place, capsys):
    for name in ("seeds/7", "seeds/8"):  # one stopped, one failed before its configuration was written
        Path(f"runs/{name}").mkdir()
    Path("runs/seeds/7/config.yaml").write_text("job: fit\nseed: 7\n")
    main(["job=compare", "runs=[runs/seeds,runs/slow]", *FEW, "hydra.run.dir=runs/without"])
    assert "1 unfinished run left out (no scores.json): runs/seeds/7." in capsys.readouterr().out
    told = json.loads(Path("runs/without/compare.json").read_text())
    assert any("runs/seeds/7" in said for said in told["warnings"])
    assert [len(candidate["seeds"]) for candidate in told["candidates"]] == [2, 1]
    with pytest.raises(SystemExit):  # named itself it is no oversight
        main(["job=compare", "runs=[runs/seeds/7,runs/slow]", "hydra.run.dir=runs/named"])
    assert "Continue it by resume=runs/seeds/7" in capsys.readouterr().err
    Path("runs/stopped/a b").mkdir(parents=True)
    Path("runs/stopped/a b/config.yaml").write_text("job: fit\n")
    with pytest.raises(SystemExit):
        main(["job=compare", "runs=runs/stopped", "hydra.run.dir=runs/named"])
    assert "holds no finished run. Continue one by 'resume=runs/stopped/a b'" in capsys.readouterr().err


def test_one_run_alone_is_not_compared(place, capsys):
    with pytest.raises(SystemExit):
        main(["job=compare", "runs=runs/slow", "hydra.run.dir=runs/alone"])
    assert "is a single run. Name two or more: runs=[a,b]" in capsys.readouterr().err
