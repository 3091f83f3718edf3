"""job=predict says when an image is unlike the model's own, and a model is asked about labels of another kind."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import finetune
from finetune.__main__ import main
from finetune.evaluation import novelty
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.novelty import FeatureGaussian
from tests.jobs.test_fit import TINY, draw

FEW = ["evaluation.resamples=40", "data.num_workers=0", "data.audit.near=false"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A fit of 240 dark and bright squares, and images of another world: stripes, and one colour."""
    folder = tmp_path_factory.mktemp("place")
    old = os.getcwd()
    os.chdir(folder)
    draw(folder / "squares", n=120)
    words = ["data=folder", "data.root=squares", "data.val_fraction=0.3", "optimizer.lr=3e-3"]
    main([*TINY, *FEW, *words, "hydra.run.dir=runs/first"])
    Path("foreign").mkdir()
    for number in range(20):
        stripes = np.tile(np.where(np.arange(24) // (2 + number % 6) % 2, 255, 0), (20, 1))
        Image.fromarray(stripes.astype(np.uint8)).save(f"foreign/{number}.png")
    yield folder
    os.chdir(old)


def predicted(words: list[str]) -> pd.DataFrame:
    main(["job=predict", *words, "output=out.csv", "hydra.run.dir=runs/predict"])
    return pd.read_csv("out.csv", keep_default_na=False)


def test_foreign_images_are_called_unusual_and_its_own_are_not(place, capsys):
    foreign = predicted(["model=runs/first", "input=foreign"])
    assert (foreign["unusual"] == "yes").mean() > 0.9
    assert (foreign["novelty"] > 99).mean() > 0.9
    said = capsys.readouterr().out
    assert "resnet20_cifar of cold, warm: 20 images of foreign" in said
    assert "decision: the most probable class" in said
    assert "% of the 72 validation images. What the model says of images unlike its own is not to be relied on" in said
    table = pd.read_csv("runs/first/samples.csv", dtype=str)
    test = [f"squares/{name}" for name in table.loc[table["split"] == "test", "sample"]]
    own = finetune.load("runs/first").predict(test)
    assert (own["unusual"] == "yes").mean() < 0.15
    assert 20 < own["novelty"].median() < 80
    assert set(own["decision"]) == {"cold", "warm"}
    assert (own["decision"] == np.where(own["prob_warm"] > 0.5, "warm", "cold")).all()


def test_a_model_without_its_run_has_no_novelty(place, capsys):
    Path("alone").mkdir()
    shutil.copy("runs/first/model.safetensors", "alone")
    table = predicted(["model=alone/model.safetensors", "input=foreign"])
    assert not {"novelty", "unusual"} & set(table)
    assert "No novelty: there is no typical.safetensors beside the model" in capsys.readouterr().out
    FeatureGaussian(np.zeros(3), np.zeros((0, 3)), np.zeros(0), 1.0, np.arange(30.0)).save(Path("alone"), "another")
    predicted(["model=alone/model.safetensors", "input=foreign"])
    assert "belongs to another model" in capsys.readouterr().out
    Path("alone/typical.safetensors").write_text("{}")
    predicted(["model=alone/model.safetensors", "input=foreign"])
    assert "is damaged" in capsys.readouterr().out


def test_what_is_usual_of_too_few_images_is_not_said(tmp_path):
    gaussian = FeatureGaussian(np.zeros(3), np.zeros((0, 3)), np.zeros(0), 1.0, np.arange(19.0))
    gaussian.save(tmp_path, "mine")
    read, reason = novelty.read(tmp_path, "mine")
    assert (read.val_distances.tolist(), reason) == (list(range(19)), "")
    many = FeatureGaussian(np.zeros(3), np.zeros((0, 3)), np.zeros(0), 1.0, np.arange(1.0, 201))
    assert many.percentile(np.array([0.5, 100.5, 999])).tolist() == [0, 50, 100]
    assert many.unusual(np.array([199.0, 199.5])).tolist() == [False, True]  # 199 is the 99th percentile of 1 to 200
    assert gaussian.unusual(np.array([18.0, 18.1])).tolist() == [False, True]  # of few: beyond all of them


def test_a_decision_by_the_thresholds_that_are_shipped():
    points = {"sure": {"thresholds": {"a": 0.9}}, "youden": {"thresholds": {"a": 0.1, "b": 0.2}}}
    answers = ClassAnswers(["a", "b", "c"], "multilabel", operating_points=points)
    assert answers.thresholds == {
        "a": {"threshold": 0.9, "point": "sure"},
        "b": {"threshold": 0.2, "point": "youden"},
        "c": {"threshold": 0.5, "point": None},
    }
    logits = np.array([[2.0, -1, 1], [2.0, -2, -1], [3.0, -1, 1]])  # a 0.88, 0.95; b 0.27, 0.12; c 0.73, 0.27
    assert answers.columns(logits)["decision"] == ["b|c", "none", "a|b|c"]


def test_a_multiclass_model_on_a_finding(place, capsys):
    """cold against warm, scored on a column Warmth of 1, 0 and blank."""
    draw(place / "clinic", n=20, seed=5)
    rows = [(f"{name}/{i}.png", "" if i == 0 else int(name == "warm")) for name in ("cold", "warm") for i in range(20)]
    pd.DataFrame(rows, columns=["path", "Warmth"]).to_csv("clinic/table.csv", index=False)
    words = ["job=evaluate", "model=runs/first", "data=csv", "data.table=clinic/table.csv", "data.label=[Warmth]", *FEW]
    with pytest.raises(SystemExit):
        main([*words, "hydra.run.dir=runs/refused"])
    said = capsys.readouterr().err
    assert "'data.map={warm: Warmth}' scores the probability of the one against the other" in said
    assert not Path("runs/refused/config.yaml").exists()
    main([*words, "data.map={warm: Warmth}", "prevalence=0.1", "hydra.run.dir=runs/mapped"])
    told = json.loads(Path("runs/mapped/scores.json").read_text())["all"]
    table = pd.read_csv("runs/mapped/predictions_all.csv")
    answers = finetune.load("runs/first").predict([f"clinic/{name}" for name in table["sample"]])
    np.testing.assert_allclose(table["prob_warm"], answers["prob_warm"], atol=1e-5)
    known = table["target_warm"].notna()
    wanted = roc_auc_score(table["target_warm"][known], answers["prob_warm"][known])
    assert (known.sum(), told["kind"], list(told["classes"])) == (38, "multilabel", ["warm"])
    assert told["classes"]["warm"]["auroc"]["value"] == pytest.approx(wanted)
    assert "calibration" not in told
    assert told["prevalence"]["given"] == {"warm": 0.1}
    own, other = (pd.read_csv(path) for path in ("runs/first/novelty_test.csv", "runs/mapped/novelty_all.csv"))
    assert abs(own["energy"].median() - other["energy"].median()) < 0.5  # of both classes, though one is asked about
    assert "warm against Warmth" in Path("runs/mapped/report.html").read_text()
    main(["job=explain", *words[1:], "data.map={warm: Warmth}", "finding=warm", "hydra.run.dir=runs/explained"])
    explained = json.loads(Path("runs/explained/explain.json").read_text())
    point, about = next(iter(finetune.load("runs/first").operating_points.items()))
    shown = f"warm {about['thresholds']['warm']:.3g} ({point})"
    assert explained["rule"] == f"an answer is yes from the threshold of prob_: {shown}"
    assert "(an answer is yes from the threshold of prob_" in capsys.readouterr().out


def test_its_own_predictions_are_scored_against_its_own_table(place, capsys):
    """Absolute paths in one table, relative ones in the other."""
    predicted([f"input={place}/squares", "model=runs/first"])
    rows = [(f"{name}/{i}.png", name, "north" if i % 2 else "south") for name in ("cold", "warm") for i in range(120)]
    pd.DataFrame(rows, columns=["path", "temperature", "site"]).to_csv("truth.csv", index=False)
    words = ["job=evaluate", "predictions=out.csv", "labels=truth.csv", "label=temperature", "evaluation.resamples=40"]
    main([*words, "hydra.run.dir=runs/table"])
    told = json.loads(Path("runs/table/scores.json").read_text())["test"]
    assert told["n"] == 240
    assert "calibration" not in told
    assert set(told["subgroups"]["site"]["groups"]) == {"north", "south"}
    main([*words, "model=runs/first", "hydra.run.dir=runs/with_model"])
    shipped = json.loads(Path("runs/with_model/scores.json").read_text())["test"]
    assert shipped["overall"] == told["overall"]
    model = finetune.load("runs/first")
    assert ("calibration" in shipped) == (model.answers.calibration is not None)
    assert "matched by the end of their paths" in capsys.readouterr().out


def test_a_map_is_nothing_for_a_fit(place, capsys):
    with pytest.raises(SystemExit):
        main([*TINY, "data=folder", "data.root=squares", "data.map={a: b}", "hydra.run.dir=runs/fit"])
    assert "job=evaluate and job=explain read it" in capsys.readouterr().err
