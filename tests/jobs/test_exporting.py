"""job=export on the folder of a tiny fit: which images it compares on, and AUROC before and after 8 bits."""

import json
import os
import shutil
from pathlib import Path

import pytest

from finetune.__main__ import main
from tests.jobs.test_fit import TINY, draw

pytest.importorskip("onnxruntime")
FEW = ["evaluation.resamples=40", "data.num_workers=0", "data.audit.near=false"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder, old = tmp_path_factory.mktemp("place"), os.getcwd()
    os.chdir(folder)
    draw(folder / "squares", n=60)
    words = ["data=folder", "data.root=squares", "data.val_fraction=0.3", "optimizer.lr=3e-3"]
    main([*TINY, *FEW, *words, "hydra.run.dir=runs/first"])
    yield folder
    os.chdir(old)


def test_int8_is_measured_on_val(place, capsys):
    openings = Path("runs/first/test_openings.jsonl").read_text()
    main(["job=export", "model=runs/first", "precision=int8", "images=20", "hydra.run.dir=runs/export"])
    out = capsys.readouterr().out
    assert "on 20 images (of the val split)" in out
    assert "macro AUROC on val (36 images" in out
    about = json.loads(Path("runs/export/model.onnx.json").read_text())
    assert about["parity"]["fp32"]["largest"] <= 1e-4
    auroc = about["auroc"]
    assert auroc["value"] == pytest.approx(auroc["after"] - auroc["before"], abs=1e-9)
    assert Path("runs/export/run_onnx.py").is_file()
    assert Path("runs/first/test_openings.jsonl").read_text() == openings


def test_a_model_without_its_run_is_compared_on_noise(place, capsys):
    Path("alone").mkdir()
    shutil.copy("runs/first/model.safetensors", "alone")
    words = ["job=export", "model=alone/model.safetensors", "hydra.run.dir=runs/alone", "format=torchscript"]
    main([*words, "output=alone/m.pt"])
    assert "coloured noise, since the model has no run folder" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "precision=int8"])
    assert "precision=int8 does not go with format=torchscript" in capsys.readouterr().err
