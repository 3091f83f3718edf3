"""What a fit fits on val and ships, what an evaluation makes of it, and the count of openings of the test split."""

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
from finetune.runs import known_images as seen
from tests.jobs.test_fit import TINY

FEW = ["evaluation.resamples=60", "data.num_workers=0"]


def clinic(folder: Path, n: int = 240) -> Path:
    """Dark and bright noise, two images a patient, a split, a site and an age of each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    patient = np.arange(n) // 2
    shown = rng.integers(0, 2, n)
    label = np.where(rng.random(n) < 0.15, 1 - shown, shown)  # no network gets all right
    for i in range(n):
        image = rng.integers(0, 120, (16, 16)) + rng.integers(40, 100) * shown[i]
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
    found = scores("first")
    assert set(found) == {"val", "test"}
    assert not {"calibration", "operating_points", "subgroups"} & set(found["val"])
    test = found["test"]
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
    found = openings("first")
    assert len(found) == 3
    assert "job=evaluate model=runs/first" in found[1]["command"]
    assert found[2]["images"] == found[0]["images"]
    page = Path("runs/first/report.html").read_text()
    assert "opened 3 times" in page


def test_other_images_of_the_same_names_are_no_opening(place):
    """They are told apart by their pixels: another hospital numbers its images as well."""
    before = len(openings("first"))
    clinic(place / "namesake", 60)
    table = pd.read_csv("namesake/table.csv").drop(columns=["patient", "split"])
    table.to_csv("namesake/table.csv", index=False)
    main(["job=evaluate", "model=runs/first", "data=csv", "data.table=namesake/table.csv", "data.label=[Nodule]", *FEW,
          "data.audit.near=false", "hydra.run.dir=runs/namesake"])  # fmt: skip
    assert len(openings("first")) == before
    assert set(scores("namesake")) == {"all"}


def test_all_of_other_data_is_scored_and_test_of_its_own(place, capsys):
    """Without split=: 60 of 60 images of another clinic, whatever split its table gives; of its own the 86 of test."""
    Path("far/a").mkdir(parents=True)
    for number in range(60):
        noise = np.random.default_rng(number + 900).integers(0, 250, (16, 16))
        Image.fromarray(noise.astype(np.uint8)).save(f"far/a/{number}.png")
    rows = [(f"a/{number}.png", number % 2, ("train", "val", "test")[number % 3]) for number in range(60)]
    pd.DataFrame(rows, columns=["path", "Nodule", "split"]).to_csv("far/table.csv", index=False)
    far = ["data=csv", "data.table=far/table.csv", "data.label=[Nodule]", "data.split=split", "data.audit.near=false"]
    main(["job=evaluate", "model=runs/first", *far, *FEW, "hydra.run.dir=runs/far"])
    said = capsys.readouterr().out
    assert "All 60 images are asked about: these are not the model's own data." in said
    assert "table: 60 images;" in said
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
    assert "20 of 60 images are asked about (split=val)" in capsys.readouterr().out
    own = clinical()  # typed, and the model by its file: its own data all the same
    main(["job=evaluate", "model=runs/first/model.safetensors", *own, *FEW, "hydra.run.dir=runs/own"])
    assert "86 of 240 images are asked about (split=test)" in capsys.readouterr().out
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
    told = scores("elsewhere")["all"]["prevalence"]
    assert told["given"] == {"Nodule": 0.05}
    assert set(told["operating_points"]) == {"sure", "sensitivity_90", "threshold_0.5"}
    point = told["operating_points"]["sure"]["classes"]["Nodule"]
    assert point["ppv_at_prevalence"]["value"] < point["ppv"]["value"]
    probabilities = pd.read_csv("runs/elsewhere/calibrated_all.csv")
    assert probabilities.columns.tolist() == ["sample", "patient", "calibrated_Nodule", "adjusted_Nodule"]
    assert (probabilities["adjusted_Nodule"] < probabilities["calibrated_Nodule"]).all()


def test_images_of_the_fit_are_recognised_under_other_names(place, capsys):
    seen = pd.read_csv("runs/first/samples.csv", dtype=str)
    assert list(seen) == ["sample", "patient", "split", "digest"]
    assert len(seen) == 240
    Path("copies/a").mkdir(parents=True)
    for number, name in enumerate(seen.loc[seen["split"] == "train", "sample"].head(5)):
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
    said = capsys.readouterr().err
    assert "5 of 20 images are those that the model was trained on" in said
    assert "data.audit.on_leak=warn" in said
    main([*words, "data.audit.on_leak=warn", "hydra.run.dir=runs/refused"])  # the stopped one left nothing that counts
    assert "trained on" in scores("refused")["all"]["warnings"][0]
    Path("alone").mkdir()
    shutil.copy("runs/first/model.safetensors", "alone")
    main([*words[:1], "model=alone/model.safetensors", *words[2:], "hydra.run.dir=runs/moved"])
    assert scores("moved")["all"]["warnings"][0].startswith("There is no samples.csv beside the model")
    (Path("alone") / "samples.csv").write_text("")
    (Path("alone") / "novelty_test.csv").write_text("")
    main([*words[:1], "model=alone/model.safetensors", *words[2:], "hydra.run.dir=runs/damaged"])
    assert "is unknown" in scores("damaged")["all"]["warnings"][0]
    assert "nothing is said of novelty" in capsys.readouterr().out


def test_patients_of_the_same_id_are_a_warning_and_blank_images_are_ignored(place):
    Path("ward/a").mkdir(parents=True)
    for number in range(12):
        noise = np.random.default_rng(number + 50).integers(0, 200, (16, 16)) if number else np.zeros((16, 16))
        Image.fromarray(noise.astype(np.uint8)).save(f"ward/a/{number}.png")
    rows = [(f"a/{number}.png", number % 2, number) for number in range(12)]
    pd.DataFrame(rows, columns=["path", "Nodule", "patient"]).to_csv("ward/table.csv", index=False)
    made = pd.read_csv("runs/first/samples.csv", dtype=str, keep_default_na=False)
    model = finetune.load("runs/first")
    table = CsvTable("ward/table.csv", label=["Nodule"], patient="patient").table()
    images = ImageCache.build(table, model.preprocessing, "off")
    met = seen.find(model, table, images, np.arange(12))
    common = len({str(n) for n in range(12)} & set(made.loc[made["split"] == "train", "patient"]))
    assert (met.known, met.same_set, met.sentences) == (True, False, {})
    assert met.same_patient_ids.startswith(
        f"{common} of 12 patients have the ids of patients that the model was trained on"
    )
    assert seen.digests(images).tolist()[0] == ""
    assert met.stop("all", "stop") == [met.same_patient_ids]


def test_a_sweep_of_evaluations_reads_the_data_of_the_run(place):
    main(["-m", "job=evaluate", "model=runs/first", "split=test,val", *FEW, "hydra.sweep.dir=runs/sweep"])
    assert scores("sweep/0_split_test")["test"]["macro"] == scores("first")["test"]["macro"]
    assert "val" in scores("sweep/1_split_val")


def test_training_images_are_scored_when_the_split_names_them(place):
    main(["job=evaluate", "model=runs/first", "split=train", *FEW, "hydra.run.dir=runs/train"])
    assert "images are those that the model was trained on" in scores("train")["train"]["warnings"][0]
    main(["job=evaluate", "model=runs/first", "split=test", *FEW, "hydra.run.dir=runs/test_again"])
    assert not [w for w in scores("test_again")["test"]["warnings"] if "too good" in w]


def test_another_split_of_the_same_data_is_refused(place, capsys):
    """Half of a patient's images lie in another split than in the fit."""
    table = pd.read_csv("clinic/table.csv")
    table["split"] = np.where(table.index % 4 < 2, "test", "train")
    table.to_csv("clinic/other_split.csv", index=False)
    words = [word.replace("table.csv", "other_split.csv") for word in clinical()]
    with pytest.raises(SystemExit):
        main(["job=evaluate", "model=runs/first", *words, *FEW, "hydra.run.dir=runs/other_split"])
    assert "images are those that the model was trained on" in capsys.readouterr().err


def test_novelty_of_other_data_against_the_own_test(place, capsys):
    assert set(pd.read_csv("runs/first/novelty_test.csv")) == {"sample", "patient", "energy", "mahalanobis"}
    Path("strange/a").mkdir(parents=True)
    for number in range(30):
        stripes = np.tile(np.arange(16) * (number + 1) % 256, (16, 1))
        Image.fromarray(stripes.astype(np.uint8)).save(f"strange/a/{number}.png")
    rows = [(f"a/{number}.png", number % 2) for number in range(30)]
    pd.DataFrame(rows, columns=["path", "Nodule"]).to_csv("strange/table.csv", index=False)
    words = ["job=evaluate", "model=runs/first", "data=csv", "data.table=strange/table.csv", "data.label=[Nodule]"]
    main([*words, "split=all", "data.audit.on_leak=warn", *FEW, "hydra.run.dir=runs/strange"])
    told = scores("strange")["all"]["novelty"]
    assert (told["own"], told["images"]) == ("table", 30)
    assert told["scores"]["mahalanobis"]["auroc"]["value"] > 0.9
    assert "novelty by mahalanobis: AUROC" in capsys.readouterr().out
    assert len(pd.read_csv("runs/strange/novelty_all.csv")) == 30


def test_predict_gives_sets_where_the_model_ships_them(place):
    table = finetune.load("runs/first").predict(["clinic/0.png", "clinic/1.png"])
    assert set(table["set_Nodule"]) <= {"yes", "no", "yes|no", "neither"}
    told = scores("first")["test"]
    assert 0.7 < told["conformal"]["classes"]["Nodule"]["yes"]["value"] <= 1
    assert told["selective"]["Nodule"]["point"] == "sensitivity_90"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prevalence=1.5"], "prevalence=1.5 of Nodule must lie between 0 and 1"),
        (["prevalence={Mass: 0.1}"], "prevalence=Mass is not known"),
        (["evaluation.calibration=isotonic"], "is fitted on val by a fit and travels in the model"),
        (["evaluation.subgroups=[scanner]"], "no such metadata column"),
    ],
)
def test_what_an_evaluation_cannot_do_is_said(place, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["job=evaluate", "model=runs/first", *FEW, *words, "split=train", "hydra.run.dir=runs/wrong"])
    assert message in capsys.readouterr().err
    for path in Path("runs/wrong").glob("*"):
        path.unlink()


def test_a_fit_refuses_subgroups_of_no_column_before_it_trains(place, capsys):
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
    assert finetune.load("runs/small").calibration is None
    assert "calibration" not in scores("small")["test"]
    assert any("no operating point" in note for note in scores("small")["val"]["notes"])
