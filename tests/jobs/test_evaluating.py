"""Values fitted on val and shipped, their use in an evaluation, and the count of test openings."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import finetune
from finetune.__main__ import main
from finetune.data.cache.image_cache import ImageCache
from finetune.data.sources.csv_table import CsvTable
from finetune.evaluation.classification.predictions import Predictions
from finetune.runs import known_images
from tests.jobs.test_fit import TINY

FEW = ["evaluation.resamples=60", "data.num_workers=0"]


def clinic(folder: Path, n: int = 240) -> Path:
    """Dark and bright noise, two images a patient, a split, a site and an age of each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    patient = np.arange(n) // 2
    bright = rng.integers(0, 2, n)
    label = np.where(rng.random(n) < 0.15, 1 - bright, bright)  # so no network gets all right
    for i in range(n):
        image = rng.integers(0, 120, (16, 16)) + rng.integers(40, 100) * bright[i]
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i}.png")
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(n)], "Nodule": label, "patient": patient})
    table["split"] = rng.choice(["train", "val", "test"], n)[patient]
    table["site"] = rng.choice(["north", "south"], n)[patient]
    table["age"] = rng.integers(1, 95, n)[patient]
    table.to_csv(folder / "table.csv", index=False)
    return folder


def clinical(root: str = "clinic") -> list[str]:
    words = ["data=csv", f"data.table={root}/table.csv", "data.label=[Nodule]", "data.patient=patient"]
    return [*words, "data.split=split", "data.metadata=[site,age]", f"data.root={root}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    old = os.getcwd()
    os.chdir(folder)
    clinic(folder / "clinic")
    points = ["evaluation.operating_points.sure={specificity: 0.8}", "evaluation.operating_points.youden=null"]
    main([*TINY, *clinical(), *FEW, *points, "optimizer.lr=3e-3", "hydra.run.dir=runs/first"])
    yield folder
    os.chdir(old)


def scores(name: str) -> dict:
    return json.loads(Path(f"runs/{name}/scores.json").read_text())


def openings(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(f"runs/{name}/test_openings.jsonl").read_text().splitlines()]


def test_a_fit_ships_its_calibration_and_operating_points(place):
    model = finetune.load("runs/first")
    assert model.answers.calibration.method == "platt"
    assert model.answers.calibration.fitted_on["split"] == "val"
    assert set(model.answers.operating_points) == {"sure", "sensitivity_90"}  # youden was set to null
    table = Predictions.read("runs/first/predictions_test.csv")
    images = [f"clinic/{name}" for name in table.frame["sample"]]
    answers = model.predict(images)
    shipped = ["path", "prob_Nodule", "calibrated_Nodule", "set_Nodule", "decision", "novelty", "unusual"]
    assert answers.columns.tolist() == shipped
    np.testing.assert_allclose(answers["prob_Nodule"], table.probs[:, 0], atol=1e-5)
    np.testing.assert_allclose(
        answers["calibrated_Nodule"], model.answers.calibration.probabilities(table.logits)[:, 0], atol=1e-4
    )
    main(["job=predict", "model=runs/first", "input=clinic/0.png", "output=one.csv", "hydra.run.dir=runs/predict"])
    assert pd.read_csv("one.csv").columns.tolist() == [*shipped, "error"]


def test_scores_report_on_test_what_was_fitted_on_val(place):
    result = scores("first")
    assert set(result) == {"val", "test"}
    assert not {"calibration", "operating_points", "subgroups"} & set(result["val"])
    test = result["test"]
    assert {"ece", "brier", "log_loss", "bins"} <= set(test["calibration"]["classes"]["Nodule"]["after"])
    assert test["operating_points"]["sure"]["criterion"] == "specificity of 0.8"
    assert test["operating_points"]["sure"]["classes"]["Nodule"]["specificity"]["low"] is not None
    assert set(test["subgroups"]["site"]["groups"]) == {"north", "south"}
    columns = pd.read_csv("runs/first/predictions_test.csv").columns.tolist()
    assert columns[:5] == ["sample", "patient", "target_Nodule", "logit_Nodule", "prob_Nodule"]
    assert not [column for column in columns if column.startswith("calibrated")]


def test_openings_of_the_test_split_are_counted_and_shown(place, capsys):
    first = openings("first")
    assert len(first) == 1
    assert "hydra.run.dir=runs/first" in first[0]["command"]
    main(["job=evaluate", "model=runs/first", *FEW, "hydra.run.dir=runs/again"])
    assert "opening 2 of the test split" in capsys.readouterr().out
    assert scores("again")["test"] == scores("first")["test"]
    words = ["job=evaluate", "model=runs/first/model.safetensors", *clinical(), "split=all"]
    main([*words, "data.audit.on_leak=warn", *FEW, "hydra.run.dir=runs/all"])
    main(["job=evaluate", "model=runs/first", "split=val", *FEW, "hydra.run.dir=runs/val"])
    assert "calibration" not in scores("val")["val"]
    lines = openings("first")
    assert len(lines) == 3
    assert "job=evaluate model=runs/first" in lines[1]["command"]
    assert lines[2]["images"] == lines[0]["images"]
    page = Path("runs/first/report.html").read_text()
    assert "opened 3 times" in page


def test_other_images_of_the_same_names_are_no_opening(place):
    """Images are compared by their pixels: another hospital may use the same names."""
    before = len(openings("first"))
    clinic(place / "namesake", 60)
    table = pd.read_csv("namesake/table.csv").drop(columns=["patient", "split"])
    table.to_csv("namesake/table.csv", index=False)
    main(["job=evaluate", "model=runs/first", "data=csv", "data.table=namesake/table.csv", "data.label=[Nodule]", *FEW,
          "data.audit.near=false", "hydra.run.dir=runs/namesake"])  # fmt: skip
    assert len(openings("first")) == before
    assert set(scores("namesake")) == {"all"}


def test_by_default_all_of_other_data_is_scored_and_test_of_the_models_data(place, capsys):
    """Without split=: all 60 images of another clinic, whatever its split; of the model's data the 86 of test."""
    Path("far/a").mkdir(parents=True)
    for number in range(60):
        noise = np.random.default_rng(number + 900).integers(0, 250, (16, 16))
        Image.fromarray(noise.astype(np.uint8)).save(f"far/a/{number}.png")
    rows = [(f"a/{number}.png", number % 2, ("train", "val", "test")[number % 3]) for number in range(60)]
    pd.DataFrame(rows, columns=["path", "Nodule", "split"]).to_csv("far/table.csv", index=False)
    far = ["data=csv", "data.table=far/table.csv", "data.label=[Nodule]", "data.split=split", "data.audit.near=false"]
    main(["job=evaluate", "model=runs/first", *far, *FEW, "hydra.run.dir=runs/far"])
    output = capsys.readouterr().out
    assert "All 60 images are evaluated: these are not the data of the model's fit." in output
    assert "table: 60 images;" in output
    assert list(scores("far")) == ["all"]
    assert len(pd.read_csv("runs/far/predictions_all.csv")) == 60
    page = Path("runs/far/report.html").read_text()
    assert "resnet20_cifar, fine-tuned on table, evaluated on all of table: 60 images" in page
    assert "On all images of these data (60 images)" in page
    assert "all split" not in page
    assert "Parts of this report are missing" not in page
    assert "optimizer.lr" not in page
    assert "Most confident errors" in page
    main(["job=evaluate", "model=runs/first", *far, *FEW, "split=val", "hydra.run.dir=runs/far_val"])
    assert "20 of 60 images are evaluated (split=val)" in capsys.readouterr().out
    own_data = clinical()  # typed, and the model by its file: still the model's data
    main(["job=evaluate", "model=runs/first/model.safetensors", *own_data, *FEW, "hydra.run.dir=runs/own"])
    assert "86 of 240 images are evaluated (split=test)" in capsys.readouterr().out
    assert scores("own")["test"]["macro"] == scores("first")["test"]["macro"]
    assert "evaluated on the test split of table" in Path("runs/own/report.html").read_text()


def test_other_data_is_no_opening_and_a_prevalence_is_reported(place, capsys):
    before = len(openings("first"))
    clinic(place / "elsewhere", 60)
    table = pd.read_csv("elsewhere/table.csv")
    table["path"] = [f"other{i}.png" for i in range(60)]
    for i in range(60):
        os.rename(f"elsewhere/{i}.png", f"elsewhere/other{i}.png")
    table.to_csv("elsewhere/table.csv", index=False)
    words = ["job=evaluate", "model=runs/first", *clinical("elsewhere"), "split=all", "prevalence=0.05", *FEW]
    main([*words, "hydra.run.dir=runs/elsewhere"])
    assert len(openings("first")) == before
    result = scores("elsewhere")["all"]["prevalence"]
    assert result["given"] == {"Nodule": 0.05}
    assert set(result["operating_points"]) == {"sure", "sensitivity_90", "threshold_0.5"}
    point = result["operating_points"]["sure"]["classes"]["Nodule"]
    assert point["ppv_at_prevalence"]["value"] < point["ppv"]["value"]
    probabilities = pd.read_csv("runs/elsewhere/calibrated_all.csv")
    assert probabilities.columns.tolist() == ["sample", "patient", "calibrated_Nodule", "adjusted_Nodule"]
    assert (probabilities["adjusted_Nodule"] < probabilities["calibrated_Nodule"]).all()


def test_images_of_the_fit_are_recognised_under_other_names(place, capsys):
    samples = pd.read_csv("runs/first/samples.csv", dtype=str)
    assert list(samples) == ["sample", "patient", "split", "digest"]
    assert len(samples) == 240
    Path("copies/a").mkdir(parents=True)
    for number, name in enumerate(samples.loc[samples["split"] == "train", "sample"].head(5)):
        Image.open(f"clinic/{name}").save(f"copies/a/{number}.png", compress_level=1)
    for number in range(15):
        noise = np.random.default_rng(number + 1).integers(0, 200, (16, 16))
        Image.fromarray(noise.astype(np.uint8)).save(f"copies/a/new{number}.png")
    rows = [(f"a/{path.name}", int(path.name[0] == "n")) for path in sorted(Path("copies/a").iterdir())]
    pd.DataFrame(rows, columns=["path", "Nodule"]).to_csv("copies/table.csv", index=False)
    words = ["job=evaluate", "model=runs/first", "data=csv", "data.table=copies/table.csv", "data.label=[Nodule]"]
    words += ["split=all", *FEW]
    with pytest.raises(SystemExit):
        main([*words, "hydra.run.dir=runs/refused"])
    output = capsys.readouterr().err
    assert "5 of 20 images are those that the model was trained on" in output
    assert "data.audit.on_leak=warn" in output
    main([*words, "data.audit.on_leak=warn", "hydra.run.dir=runs/refused"])  # the stopped run is ignored
    assert "trained on" in scores("refused")["all"]["warnings"][0]
    Path("alone").mkdir()
    shutil.copy("runs/first/model.safetensors", "alone")
    main([*words[:1], "model=alone/model.safetensors", *words[2:], "hydra.run.dir=runs/moved"])
    assert scores("moved")["all"]["warnings"][0].startswith("There is no samples.csv beside the model")
    (Path("alone") / "samples.csv").write_text("")
    (Path("alone") / "novelty_test.csv").write_text("")
    main([*words[:1], "model=alone/model.safetensors", *words[2:], "hydra.run.dir=runs/damaged"])
    assert "is unknown" in scores("damaged")["all"]["warnings"][0]
    assert "no novelty is computed" in capsys.readouterr().out


def test_patients_of_the_same_id_are_a_warning_and_blank_images_are_ignored(place):
    Path("ward/a").mkdir(parents=True)
    for number in range(12):
        noise = np.random.default_rng(number + 50).integers(0, 200, (16, 16)) if number else np.zeros((16, 16))
        Image.fromarray(noise.astype(np.uint8)).save(f"ward/a/{number}.png")
    rows = [(f"a/{number}.png", number % 2, number) for number in range(12)]
    pd.DataFrame(rows, columns=["path", "Nodule", "patient"]).to_csv("ward/table.csv", index=False)
    samples = pd.read_csv("runs/first/samples.csv", dtype=str, keep_default_na=False)
    model = finetune.load("runs/first")
    table = CsvTable("ward/table.csv", label=["Nodule"], patient="patient").table()
    images = ImageCache.build(table, model.preprocessing, "off")
    overlap = known_images.find(model, table, images, np.arange(12))
    common = len({str(n) for n in range(12)} & set(samples.loc[samples["split"] == "train", "patient"]))
    assert (overlap.known, overlap.same_set, overlap.sentences) == (True, False, {})
    assert overlap.same_patient_ids.startswith(
        f"{common} of 12 patients have the ids of patients that the model was trained on"
    )
    assert known_images.digests(images).tolist()[0] == ""
    assert overlap.stop("all", "stop") == [overlap.same_patient_ids]


def test_a_sweep_of_evaluations_reads_the_data_of_the_run(place):
    main(["-m", "job=evaluate", "model=runs/first", "split=test,val", *FEW, "hydra.sweep.dir=runs/sweep"])
    assert scores("sweep/0_split_test")["test"]["macro"] == scores("first")["test"]["macro"]
    assert "val" in scores("sweep/1_split_val")


def test_training_images_are_scored_when_the_split_names_them(place):
    main(["job=evaluate", "model=runs/first", "split=train", *FEW, "hydra.run.dir=runs/train"])
    assert "images are those that the model was trained on" in scores("train")["train"]["warnings"][0]
    main(["job=evaluate", "model=runs/first", "split=test", *FEW, "hydra.run.dir=runs/test_again"])
    assert not [w for w in scores("test_again")["test"]["warnings"] if "too good" in w]


def test_another_split_of_the_same_data_is_an_error(place, capsys):
    """Half of a patient's images lie in another split than in the fit."""
    table = pd.read_csv("clinic/table.csv")
    table["split"] = np.where(table.index % 4 < 2, "test", "train")
    table.to_csv("clinic/other_split.csv", index=False)
    words = [word.replace("table.csv", "other_split.csv") for word in clinical()]
    with pytest.raises(SystemExit):
        main(["job=evaluate", "model=runs/first", *words, *FEW, "hydra.run.dir=runs/other_split"])
    assert "images are those that the model was trained on" in capsys.readouterr().err


def test_novelty_of_other_data_compared_with_the_models_test(place, capsys):
    assert set(pd.read_csv("runs/first/novelty_test.csv")) == {"sample", "patient", "energy", "mahalanobis"}
    Path("strange/a").mkdir(parents=True)
    for number in range(30):
        stripes = np.tile(np.arange(16) * (number + 1) % 256, (16, 1))
        Image.fromarray(stripes.astype(np.uint8)).save(f"strange/a/{number}.png")
    rows = [(f"a/{number}.png", number % 2) for number in range(30)]
    pd.DataFrame(rows, columns=["path", "Nodule"]).to_csv("strange/table.csv", index=False)
    words = ["job=evaluate", "model=runs/first", "data=csv", "data.table=strange/table.csv", "data.label=[Nodule]"]
    main([*words, "split=all", "data.audit.on_leak=warn", *FEW, "hydra.run.dir=runs/strange"])
    result = scores("strange")["all"]["novelty"]
    assert (result["own"], result["images"]) == ("table", 30)
    assert result["scores"]["mahalanobis"]["auroc"]["value"] > 0.9
    assert "novelty by mahalanobis: AUROC" in capsys.readouterr().out
    assert len(pd.read_csv("runs/strange/novelty_all.csv")) == 30


def test_predict_gives_sets_where_the_model_ships_them(place):
    table = finetune.load("runs/first").predict(["clinic/0.png", "clinic/1.png"])
    assert set(table["set_Nodule"]) <= {"yes", "no", "yes|no", "neither"}
    result = scores("first")["test"]
    assert 0.7 < result["conformal"]["classes"]["Nodule"]["yes"]["value"] <= 1
    assert result["selective"]["Nodule"]["point"] == "sensitivity_90"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prevalence=1.5"], "prevalence=1.5 of Nodule must lie between 0 and 1"),
        (["prevalence={Mass: 0.1}"], "prevalence=Mass is not known"),
        (["evaluation.calibration=isotonic"], "is fitted on val by a fit and travels in the model"),
        (["evaluation.subgroups=[scanner]"], "no such metadata column"),
    ],
)
def test_what_an_evaluation_cannot_do_is_an_error(place, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["job=evaluate", "model=runs/first", *FEW, *words, "split=train", "hydra.run.dir=runs/wrong"])
    assert message in capsys.readouterr().err
    for path in Path("runs/wrong").glob("*"):
        path.unlink()


def test_subgroups_without_a_column_are_an_error_before_the_training(place, capsys):
    with pytest.raises(SystemExit):
        main([*TINY, *clinical(), *FEW, "evaluation.subgroups=[scanner]", "hydra.run.dir=runs/early"])
    assert "evaluation.subgroups=['scanner']: no such metadata column" in capsys.readouterr().err
    assert not Path("runs/early/metrics.csv").exists()


def test_a_small_val_ships_no_calibration_and_gives_a_note(place, capsys):
    table = pd.read_csv("clinic/table.csv")
    table.loc[(table["split"] == "val") & (table["patient"] > 20), "split"] = "train"
    table.to_csv("clinic/small.csv", index=False)
    words = [*clinical(), "data.table=clinic/small.csv", *FEW, "trainer.max_epochs=1", "hydra.run.dir=runs/small"]
    main([*TINY, *words])
    assert "none is shipped" in capsys.readouterr().out
    assert finetune.load("runs/small").answers.calibration is None
    assert "calibration" not in scores("small")["test"]
    assert any("no operating point" in note for note in scores("small")["val"]["notes"])
