"""job=explain on runs that a fit left, the worst errors that the fit keeps, and boxes that disturb nothing."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import finetune
from finetune.__main__ import main
from finetune.data.phantom.dataset import make_phantoms
from finetune.data.sources.chestxray import ChestXray
from tests.jobs.test_evaluating import FEW, clinic, clinical
from tests.jobs.test_fit import TINY, draw

PHANTOMS = ["data=chestxray", "data.root=phantoms", "data.findings=[Cardiomegaly,Effusion]", "data.audit.near=false"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    old = os.getcwd()
    os.chdir(folder)
    make_phantoms(folder / "phantoms", n_images=60, size=32, workers=1)
    short = [*TINY, *FEW, "trainer.max_epochs=1", "data.test_fraction=0.5"]
    main([*short, *PHANTOMS, "hydra.run.dir=runs/phantoms"])
    draw(folder / "images", classes=("cold", "mild", "warm"))
    main([*short, "data=folder", "data.root=images", "hydra.run.dir=runs/classes"])
    yield folder
    os.chdir(old)


def read(name: str) -> dict:
    return json.loads(Path(f"runs/{name}").read_text())


def image(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def test_a_fit_keeps_its_worst_errors(place):
    file = Path("runs/phantoms/worst_errors.json")
    told = json.loads(file.read_text())
    assert 0 < len(told) <= 12
    assert file.stat().st_size < 300_000
    assert set(told[0]) == {"sample", "patient", "class", "kind", "probability", "image", "heat"}
    table = pd.read_csv("runs/phantoms/predictions_test.csv").set_index("sample")
    for one in told:
        assert one["kind"] in ("missed", "false alarm")
        assert table.loc[one["sample"], f"target_{one['class']}"] == (1 if one["kind"] == "missed" else 0)
        assert one["probability"] == pytest.approx(table.loc[one["sample"], f"prob_{one['class']}"])
        assert image(one["image"]).mode == "L"
        assert one["heat"] == "" or image(one["heat"]).mode == "RGB"
    several = read("classes/worst_errors.json")
    assert {"true", "answer", "class"} <= set(several[0])
    assert all(one["true"] != one["answer"] == one["class"] for one in several)


def test_none_are_kept_where_none_are_wanted(place, capsys):
    words = ["evaluation.thumbnails=0", "trainer.max_epochs=1", "hydra.run.dir=runs/none"]
    main([*TINY, *FEW, "data=folder", "data.root=images", *words])
    assert not Path("runs/none/worst_errors.json").exists()
    with pytest.raises(SystemExit):
        main([*TINY, "data=folder", "data.root=images", "evaluation.thumbnails=-1"])
    assert "evaluation.thumbnails=-1 must be 0 or more" in capsys.readouterr().err


def test_boxes_are_in_no_table_of_metadata(place):
    table = pd.read_csv("runs/phantoms/predictions_test.csv", keep_default_na=False)
    assert "boxes" not in table
    scores = read("phantoms/scores.json")["test"]
    assert "boxes" not in scores.get("subgroups", {})
    assert "sex" in scores["subgroups"]
    assert "boxes" not in json.dumps(read("phantoms/audit.json"))


def test_a_split_is_explained_with_errors_boxes_and_the_randomisation_test(place, capsys):
    before = len(Path("runs/phantoms/test_openings.jsonl").read_text().splitlines())
    main(["job=explain", "model=runs/phantoms", *FEW, "worst=4", "hydra.run.dir=runs/explained"])
    said = capsys.readouterr().out
    told = read("explained/explain.json")
    assert len(told["errors"]) == 4
    assert {"sample", "class", "kind", "probability", "target", "maximum"} <= set(told["errors"][0])
    assert told["data"]["synthetic"] is True
    assert told["seen"] is False
    assert told["grid"] == [4, 4]
    assert [stage["part"] for stage in told["sanity"]["stages"]] == ["head", "stage3", "stage2", "stage1", "stem"]
    scores = told["localisation"]["all"]
    table = pd.read_csv("runs/phantoms/predictions_test.csv", keep_default_na=False)
    samples = ChestXray(Path("phantoms")).table()
    entries = [samples.annotations["boxes"][samples.paths.index(name)] for name in table["sample"]]
    named = [set(boxes.labels) & {"Cardiomegaly", "Effusion"} for boxes in entries]
    assert scores["n"] == sum(map(len, named)) > 2
    assert {"value", "low", "high", "chance", "elsewhere"} == set(scores["pointing"])
    assert 0 < len(told["located"]) <= 8
    for sentence in (told["sanity"]["sentence"], told["localisation"]["sentence"]):
        assert sentence in said
    page = Path("runs/explained/explain.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 + len(told["located"])
    assert page.count("alt=") == page.count("<img")
    assert "SYNTHETIC" in page
    assert str(place) not in page
    with Image.open("runs/explained/explanations.png") as sheet:
        assert sheet.width > 900
    assert len(Path("runs/phantoms/test_openings.jsonl").read_text().splitlines()) == before + 1
    assert "opening 2 of the test split" in said


def test_chosen_images_need_no_data(place, capsys):
    words = ["model=runs/phantoms", "images=[images/cold/0.png,images/warm/1.png]", "method=occlusion"]
    main(["job=explain", *words, "finding=Effusion", "hydra.run.dir=runs/chosen"])
    told = read("chosen/explain.json")
    assert [one["class"] for one in told["images"]] == ["Effusion", "Effusion"]
    model = finetune.load("runs/phantoms")
    answers = model.predict(["images/cold/0.png", "images/warm/1.png"])["prob_Effusion"]
    np.testing.assert_allclose([one["probability"] for one in told["images"]], answers, atol=1e-6)
    assert told["sanity"]["method"] == "occlusion"
    assert "errors" not in told
    assert "page: " in capsys.readouterr().out


def test_other_data_and_classes(place):
    words = ["model=runs/classes", "split=all", "sanity=false", "method=integrated_gradients", "worst=3"]
    main(["job=explain", *words, *FEW, "data=folder", "data.root=images", "hydra.run.dir=runs/all"])
    told = read("all/explain.json")
    assert "sanity" not in told
    assert "localisation" not in told
    assert told["data"]["images"] == 90
    assert told["seen"] is True
    assert all(one["target"] == 0 for one in told["errors"])  # the map is of the answer, which is wrong
    clinic(place / "clinic", 40)
    with pytest.raises(SystemExit):
        main(["job=explain", "model=runs/classes", *clinical(), "hydra.run.dir=runs/no"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=lime"], "method=lime is not known. Choose from grad_cam, grad_cam_pp, occlusion"),
        (["finding=Mass"], "finding=Mass is not known. Choose from Cardiomegaly, Effusion"),
        (["split=best"], "split=best is not known"),
        (["worst=-1"], "worst=-1 must be 0 or more"),
        (["images=[nowhere.png]"], "images=nowhere.png does not exist"),
    ],
)
def test_what_cannot_be_explained_is_said(place, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["job=explain", "model=runs/phantoms", *words, "hydra.run.dir=runs/wrong"])
    assert message in capsys.readouterr().err
    assert not Path("runs/wrong/config.yaml").exists()
