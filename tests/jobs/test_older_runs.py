"""A run folder of version 0.1.0 loads, is evaluated, reported and resumed.

The fixture is such a folder (resnet20_cifar, head_then_full, two epochs, SGD, on the images of `draw`), its weights
replaced by constants so that it is small; report.html and all checkpoints but the last were left out.
"""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import finetune
from finetune.__main__ import main
from finetune.pages.report import write_report
from tests.jobs.test_fit import draw

ARCHIVE = Path(__file__).resolve().parents[1] / "fixtures" / "run_0_1_0.zip"
CPU = ["trainer.accelerator=cpu", "data.num_workers=0"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "pictures", 40)
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old")
    os.link("old/checkpoints/last.ckpt", "old/checkpoints/epoch_001.ckpt")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*format 1")
def test_it_loads_and_predicts(place):
    model = finetune.load("old")
    assert (model.classes, model.spec.backbone) == (["cold", "warm"], "resnet20_cifar")
    assert model.answers.calibration is not None
    answers = model.predict(["pictures/cold/0.png", "pictures/warm/0.png"])
    assert np.allclose(answers[["prob_cold", "prob_warm"]].sum(axis=1), 1)


@pytest.mark.filterwarnings("ignore:.*format 1")
def test_it_is_evaluated_on_its_test_images(place):
    main(["job=evaluate", "model=old", "hydra.run.dir=again", *CPU])
    then, now = (pd.read_csv(f"{run}/predictions_test.csv") for run in ("old", "again"))
    assert sorted(now["sample"]) == sorted(then["sample"])
    assert json.loads(Path("again/scores.json").read_text())["test"]["n"] == len(then)


def test_its_report_is_made_again(place):
    write_report("old")
    assert "pictures, resnet20_cifar" in Path("old/report.html").read_text(encoding="utf-8")
    run = finetune.read_run("old")
    assert run.scores["test"]["macro"]["auroc"]["value"] is not None


def test_it_trains_longer_on_its_training_images(place):
    samples = Path("old/samples.csv").read_text()
    main(["resume=old", "trainer.max_epochs=3"])
    assert len(pd.read_csv("old/metrics.csv")) == 3
    assert Path("old/samples.csv").read_text() == samples
    assert Path("old/scores.json").is_file()
    assert yaml.safe_load(Path("old/config.yaml").read_text())["trainer"]["max_epochs"] == 3
