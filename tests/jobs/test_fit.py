"""The main job through the command line's own function: a tiny fit, and the other jobs on its folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import finetune
from finetune.__main__ import main
from finetune.data.loading.module import ImageData
from finetune.errors import FinetuneError

TINY = [
    "backbone=resnet20_cifar",
    "backbone.weights=none",
    "data.image_size=16",
    "data.num_workers=0",
    "trainer.max_epochs=2",
]
TINY += ["trainer.accelerator=cpu"]
FILES = {
    "config.yaml", "environment.json", "audit.json", "metrics.csv", "checkpoints", "predictions_val.csv",
    "predictions_test.csv", "scores.json", "report.html", "model.safetensors",
}  # fmt: skip


def draw(folder: Path, n: int = 30, classes=("cold", "warm"), seed: int = 0) -> Path:
    """A folder per class: dark squares and bright ones, noisy, as RGB."""
    rng = np.random.default_rng(seed)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            image = rng.integers(0, 150, (20, 24, 3)) + 50 * k
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with images in it."""
    folder = tmp_path_factory.mktemp("place")
    draw(folder / "images")
    old = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(old)


@pytest.fixture(scope="module")
def run(place):
    main([*TINY, "data=folder", "data.root=images", "optimizer.lr=3e-3", "hydra.run.dir=runs/first"])
    return place / "runs" / "first"


def test_the_run_folder_is_complete_and_latest_points_to_it(run, place):
    assert {path.name for path in run.iterdir()} >= FILES
    assert (place / "outputs" / "latest").resolve() == run
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["image_size"] == 16
    environment = json.loads((run / "environment.json").read_text())
    assert environment["weights"]["random"] is True
    assert environment["data"]["synthetic"] is False
    assert "data.root=images" in environment["command"]
    scores = json.loads((run / "scores.json").read_text())
    assert scores["test"]["macro"]["auroc"]["value"] > 0.9
    assert scores["test"]["macro"]["auroc"]["low"] <= scores["test"]["macro"]["auroc"]["value"]
    assert set(scores["val"]["classes"]) == {"cold", "warm"}


def test_the_model_file_predicts_as_the_evaluation_whatever_the_batch_size(run):
    table = pd.read_csv(run / "predictions_test.csv")
    model = finetune.load(run)
    assert model.classes == ["cold", "warm"]
    for batch_size in (1, 7, 64):
        answers = model.predict([f"images/{name}" for name in table["sample"]], batch_size=batch_size)
        np.testing.assert_allclose(answers["prob_warm"], table["prob_warm"], atol=1e-5)
    arrays = [np.asarray(Image.open(f"images/{name}")) for name in table["sample"][:3]]
    np.testing.assert_allclose(model.predict(arrays)["prob_warm"], table["prob_warm"][:3], atol=1e-5)


def test_the_model_file_knows_its_labels_and_samples(run):
    model = finetune.load(run)
    assert model.verify().samples == "The samples.csv beside it is that of its fit."
    assert model.record.labels.meaning == "exclusive"
    assert model.record.data.table == json.loads((run / "environment.json").read_text())["data"]["hash"]
    assert "No config.json beside the model, as timm has no network resnet20_cifar: " in (run / "log.txt").read_text()
    assert not (run / "config.json").exists()


def test_evaluate_on_the_data_of_the_fit_repeats_the_scores(run):
    main(["job=evaluate", "model=runs/first", "hydra.run.dir=runs/again"])
    repeated, first = (json.loads((Path("runs") / name / "scores.json").read_text()) for name in ("again", "first"))
    assert repeated["test"] == first["test"]


def test_two_processes_evaluate_as_a_single_one(run, place):
    """An odd number of images: a sampler with equal shares would count an image twice."""
    (draw(place / "odd", 5, seed=1) / "cold" / "0.png").unlink()
    words = ["job=evaluate", "model=runs/first", "data=folder", "data.root=odd", "data.num_workers=0", "split=all"]
    for devices in (1, 2):
        main([*words, "trainer.accelerator=cpu", f"trainer.devices={devices}", f"hydra.run.dir=runs/odd{devices}"])
    single, double = (pd.read_csv(f"runs/odd{devices}/predictions_all.csv") for devices in (1, 2))
    assert len(single) == 9
    pd.testing.assert_frame_equal(single, double, rtol=0, atol=1e-6)
    single, double = (json.loads(Path(f"runs/odd{devices}/scores.json").read_text()) for devices in (1, 2))
    assert single["all"]["macro"] == double["all"]["macro"]


def test_evaluate_on_another_set_and_everything(run, place):
    draw(place / "others", 5, seed=2)
    words = ["data=folder", "data.root=others", "data.num_workers=0", "split=all"]
    main(["job=evaluate", "model=runs/first", *words, "hydra.run.dir=runs/others"])
    assert len(pd.read_csv("runs/others/predictions_all.csv")) == 10


def test_predict_writes_a_row_for_an_unreadable_image_and_continues(run, place, capsys):
    mixed = place / "mixed"
    mixed.mkdir()
    Image.fromarray(np.full((9, 9), 200, np.uint8)).save(mixed / "good.png")
    (mixed / "bad.png").write_text("no image")
    (mixed / "notes.txt").write_text("no image by its name")
    main(["job=predict", "model=runs/first", "input=mixed", "output=preds.csv", "hydra.run.dir=runs/predict"])
    output = capsys.readouterr().out
    assert "1 of 2 images cannot be read" in output
    assert "1 image predicted, 1 unreadable -> preds.csv" in output
    assert "1 other file in these folders is no image by name." in output
    table = pd.read_csv("preds.csv", keep_default_na=False)
    assert table.columns.tolist() == ["path", "prob_cold", "prob_warm", "decision", "error"]
    assert table["path"].tolist() == ["mixed/bad.png", "mixed/good.png"]
    bad, good = table.iloc[0], table.iloc[1]
    assert (bad["prob_cold"], bad["decision"]) == ("", "")
    assert bad["error"].startswith("is not an image in a known format")
    assert (good["decision"], good["error"]) == ("warm", "")
    (mixed / "good.png").unlink()
    with pytest.raises(SystemExit):
        main(["job=predict", "model=runs/first", "input=mixed", "output=preds.csv", "hydra.run.dir=runs/predict"])
    assert "none of 1 image can be read" in capsys.readouterr().err
    assert pd.read_csv("preds.csv")["path"].tolist() == ["mixed/bad.png"]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_fit_may_leave_test_closed_and_one_evaluation_opens_it(run, place, monkeypatch, capsys, devices):
    loaded_splits: list[str] = []
    eval_loader = ImageData.eval_loader
    monkeypatch.setattr(
        ImageData, "eval_loader", lambda d, split, **o: loaded_splits.append(split) or eval_loader(d, split, **o)
    )
    words = [*TINY, "data=folder", "data.root=images", "optimizer.lr=3e-3", f"trainer.devices={devices}"]
    closed = Path(f"runs/closed{devices}")
    main([*words, "evaluation.test=false", f"hydra.run.dir={closed}"])
    images = len(pd.read_csv(run / "predictions_test.csv"))
    sentence = f"The test split ({images} images) was not predicted and not scored (evaluation.test=false)."
    assert sentence in capsys.readouterr().out
    assert sentence in (closed / "report.html").read_text()
    assert set(loaded_splits) == {"val"}
    assert set(json.loads((closed / "scores.json").read_text())) == {"val"}
    names = {path.name for path in closed.iterdir()}
    assert not names & {"predictions_test.csv", "novelty_test.csv", "test_openings.jsonl"}
    assert (place / "outputs" / "latest").resolve() == closed.resolve()
    main(["job=evaluate", f"model={closed}", "split=test", f"hydra.run.dir=runs/opened{devices}"])
    assert f"This is opening 1 of the test split of {closed}." in capsys.readouterr().out
    assert len((closed / "test_openings.jsonl").read_text().splitlines()) == 1
    opened = json.loads(Path(f"runs/opened{devices}/scores.json").read_text())
    if devices == 1:
        open_model, closed_model = finetune.load(run), finetune.load(closed)
        assert (open_model.weights_hash, open_model.answers.calibration) == (
            closed_model.weights_hash,
            closed_model.answers.calibration,
        )
        assert open_model.answers.operating_points == closed_model.answers.operating_points
        # the same seed gives the same weights, thresholds and scores as a fit that opens test
        expected = json.loads((run / "scores.json").read_text())["test"]
        assert {key: opened["test"][key] for key in expected if key != "harms"} == {
            key: expected[key] for key in expected if key != "harms"
        }


def test_evaluation_test_is_a_setting_of_fits_only(run, capsys):
    with pytest.raises(SystemExit):
        main(["job=evaluate", "model=runs/first", "evaluation.test=false"])
    assert "'evaluation.test=false' is for a fit." in capsys.readouterr().err


def test_resume_trains_longer_and_refuses_keys_that_would_change_the_past(run, place, capsys):
    with pytest.raises(SystemExit):
        main(["resume=runs/first"])
    assert "complete already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["resume=runs/first", "optimizer.lr=1"])
    assert "'optimizer.lr=1' cannot be set in a resume" in capsys.readouterr().err
    main(["resume=runs/first", "trainer.max_epochs=3"])
    assert pd.read_csv("runs/first/metrics.csv")["epoch"].tolist() == [0, 1, 2]
    assert '"command": "python -m finetune resume=runs/first' in (run / "test_openings.jsonl").read_text()
    assert (run / "scores.json").exists()


def test_an_unfinished_run_is_not_taken_for_a_finished_one(run, place, tmp_path):
    (tmp_path / "config.yaml").write_text("job: fit")
    with pytest.raises(FinetuneError, match=r"is not a finished run: it has no scores\.json"):
        finetune.load(tmp_path)


def test_multirun_leaves_one_folder_each(run, place):
    main(
        [
            "-m",
            *TINY,
            "trainer.max_epochs=1",
            "data=folder",
            "data.root=images",
            "seed=0,1",
            "hydra.sweep.dir=runs/sweep",
        ]
    )
    for number in "01":
        assert {path.name for path in (place / "runs/sweep" / f"{number}_seed_{number}").iterdir()} >= FILES


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_two_processes_stopped_and_resumed_give_the_result_of_one(run, place):
    """kill -9 in the middle, resume with one process; norms frozen, so that batches may be divided.

    With SGD: Adam divides by the gradient's size and enlarges rounding errors in the smallest gradients.
    """
    fit = [*TINY, "data=folder", "data.root=images", "finetuning.norms=frozen", "trainer.max_epochs=3"]
    fit += ["optimizer=sgd", "optimizer.lr=1e-3"]
    main([*fit, "hydra.run.dir=runs/one"])
    command = [sys.executable, "-m", "finetune", *fit, "trainer.devices=2", "hydra.run.dir=runs/two"]
    path = f"{Path(finetune.__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 180
    while not Path("runs/two/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("runs/two/scores.json").exists()
    main(["resume=runs/two", "trainer.devices=1"])
    single, double = (pd.read_csv(f"runs/{name}/predictions_test.csv") for name in ("one", "two"))
    np.testing.assert_allclose(double["prob_warm"], single["prob_warm"], atol=1e-5)
    rows = [pd.read_csv(f"runs/{name}/metrics.csv").drop(columns=["seconds", "peak_mib"]) for name in ("one", "two")]
    pd.testing.assert_frame_equal(*rows, atol=1e-5)
