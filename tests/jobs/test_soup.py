"""Averages, views, a teacher and a soup through the command line's own function."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune.__main__ import main
from finetune.steps import soup as soups
from tests.jobs.test_fit import TINY, draw

FEW = ["evaluation.resamples=20", "evaluation.thumbnails=0", "evaluation.novelty=8"]
FIT = [*TINY, *FEW, "data=folder", "data.root=images", "optimizer.lr=3e-3", "evaluation.tta=[flip]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with three fits: two equal ones, and one that learned from a teacher."""
    folder = tmp_path_factory.mktemp("place")
    draw(folder / "images", 20)
    old = os.getcwd()
    os.chdir(folder)
    main([*FIT, "averaging=ema", "averaging.decay=0.9", "hydra.run.dir=runs/a"])
    main([*FIT, "averaging=ema", "averaging.decay=0.9", "hydra.run.dir=runs/b"])
    student = ["averaging=swa", "averaging.start=0", "teacher=runs/a", "teacher_weight=0.7"]
    main([*FIT, *student, "seed=1", "hydra.run.dir=runs/student"])
    yield folder
    os.chdir(old)


def environment(run):
    return json.loads(Path("runs", run, "environment.json").read_text())


def scores(run):
    return json.loads(Path("runs", run, "scores.json").read_text())


def test_the_run_says_which_weights_its_model_holds(place):
    assert environment("a")["best"]["weights"] == "ema"
    assert "the exponential moving average of the weights" in Path("runs/a/report.html").read_text()
    best = torch.load("runs/a/checkpoints/best.ckpt", weights_only=True)
    model = load_file("runs/a/model.safetensors")
    assert best["weights"] == "ema"
    assert all(torch.equal(value, best["state_dict"][f"network.{name}"]) for name, value in model.items())
    assert finetune.load("runs/a").provenance["best"]["weights"] == "ema"


def test_views_are_the_same_in_fit_evaluation_and_prediction(place):
    main(["job=evaluate", "model=runs/a", *FEW, "hydra.run.dir=runs/evaluated"])
    first, again = (pd.read_csv(f"runs/{name}/predictions_test.csv") for name in ("a", "evaluated"))
    np.testing.assert_allclose(first["logit_warm"], again["logit_warm"], atol=1e-6)
    assert scores("a")["test"]["overall"] == scores("evaluated")["test"]["overall"]
    model = finetune.load("runs/a")
    assert model.tta == ("flip",)
    files = [f"images/{name}" for name in first["sample"]]
    np.testing.assert_allclose(model.predict(files)["prob_warm"], first["prob_warm"], atol=1e-5)
    model.tta = ()
    assert not np.allclose(model.predict(files)["prob_warm"], first["prob_warm"], atol=1e-6)
    main(["job=predict", "model=runs/a", "input=images", "output=preds.csv", "hydra.run.dir=runs/predicted"])
    table = pd.read_csv("preds.csv").set_index("path").loc[files]
    np.testing.assert_allclose(table["prob_warm"], first["prob_warm"], atol=1e-5)


def test_views_cannot_be_typed_for_an_evaluation(place, capsys):
    with pytest.raises(SystemExit):
        main(["job=evaluate", "model=runs/a", "evaluation.tta=[]", "hydra.run.dir=runs/wrong"])
    assert "evaluation.tta is fitted on val by a fit and travels in the model" in capsys.readouterr().err


def test_a_student_names_its_teacher(place):
    teacher = environment("student")["teacher"]
    assert teacher["weights_hash"] == finetune.load("runs/a").weights_hash
    assert (teacher["weight"], teacher["temperature"], teacher["warnings"]) == (0.7, 2.0, [])
    assert finetune.load("runs/student").provenance["teacher"] == teacher
    assert teacher["weights_hash"] in Path("runs/student/report.html").read_text()
    assert torch.load("runs/student/checkpoints/last.ckpt", weights_only=True)["weights"] == "swa"


def test_a_fit_with_a_teacher_is_resumed_with_the_same_teacher_alone(place, capsys):
    words = [*FIT, "averaging=ema", "averaging.decay=0.9", "teacher=taught", "hydra.run.dir=runs/resumed"]
    shutil.copytree("runs/a", "taught")
    main([*words, "trainer.max_epochs=1"])
    shutil.rmtree("taught")
    shutil.copytree("runs/student", "taught")
    with pytest.raises(SystemExit):
        main(["resume=runs/resumed", "trainer.max_epochs=2"])
    assert "teacher=taught/model.safetensors is not the model that the run learned from" in capsys.readouterr().err
    shutil.rmtree("taught")
    shutil.copytree("runs/a", "taught")
    main(["resume=runs/resumed", "trainer.max_epochs=2"])
    assert finetune.load("runs/resumed").provenance["best"]["weights"] == "ema"


def test_a_teacher_that_knows_the_test_images_is_an_error(place, capsys):
    words = [*FIT, "teacher=runs/a", "data.seed=5", "trainer.max_epochs=1"]
    with pytest.raises(SystemExit):
        main([*words, "hydra.run.dir=runs/leak"])
    message = capsys.readouterr().err
    assert "teacher=runs/a: of test" in message
    assert "images are those that the model was trained on" in message
    main([*words, "data.audit.on_leak=warn", "hydra.run.dir=runs/leaking"])
    assert "WARNING: teacher=runs/a: of test" in capsys.readouterr().out
    assert "teacher=runs/a: of test" in Path("runs/leaking/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher=nowhere"], "teacher=nowhere does not exist"),
        (["teacher=runs/a", "teacher_weight=0"], "teacher_weight=0 must be above 0"),
        (["teacher=runs/a", "teacher_weight=2"], "teacher_weight=2 must be 1 or less"),
        (["averaging=swa"], "averaging.start=0.75 of trainer.max_epochs=2 leaves 1 epoch"),
        (["averaging=ema", "averaging.decay=1"], "averaging.decay=1 must be at least 0 and below 1"),
        (["evaluation.tta=[turn]"], "evaluation.tta=turn is not known"),
    ],
)
def test_what_does_not_go_is_named(place, capsys, words, message):
    with pytest.raises(SystemExit):
        main([*FIT, *words, "hydra.run.dir=runs/wrong"])
    assert message in capsys.readouterr().err


def test_a_soup_of_two_equal_runs_is_the_run(place, capsys):
    main(["job=soup", "runs=[runs/a,runs/b]", "hydra.run.dir=runs/soup"])
    output = capsys.readouterr().out
    assert "is the mean of 2 of 2 runs" in output
    assert "It adds nothing to the best run." in output
    assert "start from random weights" in output
    a, soup = (load_file(f"runs/{name}/model.safetensors") for name in ("a", "soup"))
    assert all(torch.equal(value, soup[name]) for name, value in a.items())
    assert scores("soup")["test"]["overall"] == scores("a")["test"]["overall"]
    assert len(Path("runs/soup/test_openings.jsonl").read_text().splitlines()) == 1
    assert "It adds nothing to the best run" in Path("runs/soup/report.html").read_text()
    assert "metrics.csv is missing" not in Path("runs/soup/report.html").read_text()
    assert finetune.load("runs/soup").provenance["soup"]["ingredients"][0]["chosen"]
    main(["job=evaluate", "model=runs/soup", *FEW, "hydra.run.dir=runs/soup_again"])
    assert scores("soup_again")["test"]["overall"] == scores("soup")["test"]["overall"]
    main(["job=compare", "runs=[runs/a,runs/soup]", "hydra.run.dir=runs/compared", "evaluation.resamples=20"])


def test_a_soup_of_different_runs(place):
    main(["job=soup", "runs=[runs/a,runs/student]", "method=uniform", "hydra.run.dir=runs/mixed"])
    record = environment("mixed")["soup"]
    assert [ingredient["chosen"] for ingredient in record["ingredients"]] == [True, True]
    assert record["score"] == record["uniform"]
    a, b, soup = (load_file(f"runs/{name}/model.safetensors") for name in ("a", "student", "mixed"))
    torch.testing.assert_close(soup["head.fc.weight"], (a["head.fc.weight"] + b["head.fc.weight"]) / 2)
    main(["job=soup", "runs=[runs/a,runs/student]", "evaluation.test=false", "hydra.run.dir=runs/greedy"])
    record = environment("greedy")["soup"]
    assert record["score"] >= record["best_run"]
    assert not Path("runs/greedy/predictions_test.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=[runs/a]"], "is a single run"),
        (["runs=[runs/a,runs/b]", "optimizer.lr=1"], "optimizer.lr cannot be set for a soup"),
        (["runs=[runs/a,runs/b]", "method=best"], "method=best is not known. Choose from greedy, uniform"),
        (["runs=[runs/a,runs/wide]"], "runs/a and runs/wide have another network"),
        (["runs=[runs/a,runs/other]"], "runs/a and runs/other differ in"),
        (["runs=[runs/a,runs/evaluated]"], "is of job=evaluate, which trains no network"),
    ],
)
def test_runs_that_cannot_be_averaged_are_named(place, capsys, words, message):
    if "other" in words[0] and not Path("runs/other").exists():
        main([*FIT, "data.seed=5", "trainer.max_epochs=1", "hydra.run.dir=runs/other"])
    if "wide" in words[0] and not Path("runs/wide").exists():
        main([*FIT, "backbone=resnet32_cifar", "trainer.max_epochs=1", "hydra.run.dir=runs/wide"])
    with pytest.raises(SystemExit):
        main(["job=soup", *words, "hydra.run.dir=runs/wrong"])
    assert message in capsys.readouterr().err


def test_the_mean_of_states_by_hand():
    states = [{"w": torch.tensor([value]), "n": torch.tensor(number)} for number, value in enumerate((1.0, 2.0, 6.0))]
    mean = soups.mean_of(states)
    assert (mean["w"].item(), mean["n"].item()) == (pytest.approx(3.0), 0)
    assert states[0]["w"].item() == 1.0
