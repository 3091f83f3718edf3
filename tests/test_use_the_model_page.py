"""docs/use_the_model.md is true: its snippets run, one after the other, in a folder with a finished run."""

import hashlib
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.model_record import Data, Labels, Record
from finetune.runs.folder import RunFolder
from finetune.steps.assess import write_model
from tests.conftest import ROOT
from tests.test_timm_config import model_of

PAGE = (ROOT / "docs" / "use_the_model.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"(?m)^## ", PAGE)[1:]}
CLASSES = ["cat", "dog"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    run = RunFolder(folder / "outputs" / "latest")
    run.path.mkdir(parents=True)
    run.samples.write_text("sample,patient,split,digest\n")
    model = model_of("resnet18", classes=CLASSES, fit="crop", crop_fraction=0.875)
    sha = hashlib.sha256(run.samples.read_bytes()).hexdigest()
    model.record = Record(labels=Labels("exclusive"), data=Data("0" * 64, sha))
    write_model(run, model, print)
    run.scores.write_text("{}")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)).save(folder / "a.png")
    return folder


def ran(section, place, monkeypatch):
    """The names that the snippets of a section define."""
    monkeypatch.chdir(place)
    names: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"transformers|huggingface_hub|torch\.")
        for block in re.findall(r"(?s)```python\n(.*?)```", SECTIONS[section]):
            exec(block, names)
    return names


@pytest.fixture(scope="module")
def ours(place):
    from finetune import load

    row = load(place / "outputs" / "latest").predict([place / "a.png"]).iloc[0]
    return {name: row[f"prob_{name}"] for name in CLASSES}


def test_python(place, monkeypatch, ours, capsys):
    names = ran("Python", place, monkeypatch)
    assert names["table"][[f"prob_{name}" for name in CLASSES]].iloc[0].tolist() == list(ours.values())
    assert capsys.readouterr().out.endswith("The samples.csv beside it is that of its fit.\n")


def test_timm(place, monkeypatch, ours):
    assert ran("timm", place, monkeypatch)["probabilities"] == pytest.approx(ours, abs=1e-6)


def test_transformers(place, monkeypatch, ours):
    answers = ran("transformers", place, monkeypatch)["answers"]
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(ours, abs=1e-6)


def test_torchvision(place, monkeypatch):
    net = ran("torchvision", place, monkeypatch)["net"]
    assert torch.isfinite(net.eval()(torch.zeros(1, 3, 32, 32))).all()
