"""task=detect through the command line: trained, resumed, evaluated, predicted and compared, on tiny nets."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import finetune
from finetune.__main__ import main
from finetune.config import build, compose
from finetune.errors import FinetuneError
from finetune.evaluation.detection.detections import Detections
from finetune.files import SCORES
from tests.tasks.squares import SQUARES, draw

TRUST = "trust=[tests.tasks.squares]"
DATA = ["data=folder", "data.root=images", f"data.source._target_={SQUARES}", "data.cache=off", "data.num_workers=0"]
DATA += ["data.audit.near=false"]
NET = ["backbone=resnet20_cifar", "backbone.weights=none", "backbone.in_channels=1", "neck.channels=8", "neck.finest=2"]
HEAD = ["head.hidden=16", "head.rpn_top_n_train=60", "head.rpn_top_n_test=40"]
FIT = ["task=detect", TRUST, *DATA, *NET, "data.image_size=48", "data.batch_size=8", "trainer.accelerator=cpu"]
FIT += ["optimizer.lr=0.01", "evaluation.resamples=20", "evaluation.novelty=20", "evaluation.thumbnails=3"]
FASTER = [*FIT, *HEAD]
FILES = (
    "cases.json",
    "model.safetensors",
    "novelty_test.csv",
    "predictions_test.csv",
    "report.html",
    "typical.safetensors",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with images and a finished run of three epochs, `run`."""
    folder = tmp_path_factory.mktemp("boxes")
    old = os.getcwd()
    os.chdir(folder)
    draw(folder / "images", 48)
    main([*FASTER, "trainer.max_epochs=3", "callbacks.keep_all_checkpoints=true", "hydra.run.dir=run"])
    yield folder
    os.chdir(old)


def scores(run: str, split: str = "test") -> dict:
    return json.loads(Path(run, SCORES).read_text())[split]


def weights(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def error(capsys, *words: str) -> str:
    """The one line with which a command fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(list(words))
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ")
    assert len(line.splitlines()) == 1
    return line


def test_a_fit_learns_and_leaves_a_whole_folder(place):
    metrics = pd.read_csv("run/metrics.csv")
    assert metrics["train/loss"].iloc[-1] < metrics["train/loss"].iloc[0]
    assert metrics["val/ap50"].notna().all()
    assert not [name for name in FILES if not Path("run", name).is_file()]
    test = scores("run")
    assert {"ap50", "froc"} <= set(test["macro"])
    assert set(test["classes"]) == {"bright", "striped"}
    table = Detections.read("run/predictions_test.csv")
    assert len(table) == test["n"] == 11  # of twelve, of which one is unknown
    assert "1 image, whose true boxes are not known, is not in the scores." in test["warnings"]
    assert (table.boxes.corners >= 0).all()
    sizes = table.images[["image_width", "image_height"]].to_numpy()
    assert (table.boxes.corners[:, 2:] <= sizes[table.boxes.image] + 1e-9).all()
    cases = json.loads(Path("run/cases.json").read_text())
    assert len(cases["false_positives"]) == 11
    assert {case["rank"] for case in cases["cases"]} == {"best", "median", "worst"}
    page = Path("run/report.html").read_text()
    assert "FROC" in page
    assert "striped" in page


def test_val_scores_of_the_training_are_those_of_its_table(place):
    """The network's square against stored pixels: the same boxes, so the same precision."""
    best = pd.read_csv("run/metrics.csv")["val/ap50"].max()
    assert scores("run", "val")["macro"]["ap50"]["value"] == pytest.approx(best, abs=0.02)


def test_a_resumed_fit_has_the_bits_of_one_that_never_stopped(place):
    shutil.copytree("run", "stopped")
    for name in (
        SCORES,
        "model.safetensors",
        "checkpoints/last.ckpt",
        *(f"checkpoints/epoch_00{n}.ckpt" for n in (1, 2)),
    ):
        Path("stopped", name).unlink()
    shutil.copy("stopped/checkpoints/epoch_000.ckpt", "stopped/checkpoints/last.ckpt")  # as if it was killed in epoch 1
    main(["resume=stopped", "trust=[tests.tasks.squares]"])
    whole, resumed = weights("run/checkpoints/last.ckpt"), weights("stopped/checkpoints/last.ckpt")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    columns = ["epoch", "train/loss", "val/loss", "val/ap50"]
    pd.testing.assert_frame_equal(*(pd.read_csv(f"{run}/metrics.csv")[columns] for run in ("run", "stopped")))
    assert scores("stopped") == scores("run")


def test_an_evaluation_repeats_the_scores_of_the_fit(place, capsys):
    words = ["job=evaluate", "model=run", TRUST, *DATA, "trainer.accelerator=cpu", "evaluation.resamples=20"]
    main([*words, "split=test", "hydra.run.dir=again"])
    assert "test: macro AP50" in capsys.readouterr().out
    for group in ("macro", "operating_points"):
        assert scores("again").get(group) == scores("run").get(group)
    line = error(capsys, *words, "evaluation.false_positives=[1]", "hydra.run.dir=fitted")
    assert "is fitted on val by a fit and travels in the model" in line
    draw(Path("others"), 12, seed=5, labels=("bright", "dotted"), unknown=0)
    main([*words, "data.root=others", "data.audit.on_leak=warn", "hydra.run.dir=others_scored"])
    assert "does not detect dotted: boxes of these labels are left out." in capsys.readouterr().out
    assert set(scores("others_scored", "all")["classes"]) == {"bright"}
    draw(Path("strange"), 12, seed=6, labels=("dark", "dotted"))
    line = error(capsys, *words, "data.root=strange", "hydra.run.dir=strange_scored")
    assert "no label is in both" in line
    line = error(capsys, *words, "data.root=others", "data.map={bright: dotted}", "hydra.run.dir=mapped")
    assert "task=detect compares labels by name" in line


def test_predictions_are_in_pixels_of_the_stored_images(place, capsys):
    main(["job=predict", "model=run", "input=images", "output=out.csv", "trainer.accelerator=cpu"])
    said = capsys.readouterr().out
    assert "decision: the classes with a box whose score reaches its threshold: bright" in said
    table, boxes = pd.read_csv("out.csv"), json.loads(Path("out.json").read_text())
    assert f"{len(boxes):,} boxes of any score" in said
    columns = ["path", "boxes_bright", "boxes_striped", "score_bright", "score_striped", "decision", "error"]
    assert list(table.columns) == columns
    assert not list(Path().glob(".out.json*"))
    model = finetune.load("run")
    limits = {name: about["threshold"] for name, about in model.answers.thresholds.items()}
    of_run = Detections.read("run/predictions_test.csv")
    for row, sample in enumerate(of_run.images["sample"]):
        mine = [box for box in boxes if Path(box["file_name"]).name == sample]
        theirs = of_run.boxes.take(np.flatnonzero(of_run.boxes.image == row))
        assert len(mine) == len(theirs)
        corners = np.array([box["bbox"] for box in mine]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, theirs.corners, atol=1e-3)
        line = table[[Path(path).name == sample for path in table["path"]]].iloc[0]
        for k, name in enumerate(model.classes):
            of_class = theirs.score[theirs.label == k]
            assert line[f"boxes_{name}"] == (of_class >= limits[name]).sum()
            assert line[f"score_{name}"] == pytest.approx(of_class.max(initial=0), abs=1e-6)


def test_the_boxes_of_a_prediction_are_scored_as_a_file(place, capsys):
    main(["job=predict", "model=run", "input=images", "output=scored.csv", "trainer.accelerator=cpu"])
    of_run = Detections.read("run/predictions_test.csv")
    rows = [["sample", "label", "left", "top", "right", "bottom"]]
    for row, sample in enumerate(of_run.images["sample"]):
        mine = of_run.truths.take(np.flatnonzero(of_run.truths.image == row))
        boxes = [[of_run.classes[k], *corners] for k, corners in zip(mine.label, mine.corners.tolist(), strict=True)]
        rows += [[sample, *box] for box in boxes or [["", "", "", "", ""]]]
    Path("truth.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    names = set(of_run.images["sample"])
    kept = [box for box in json.loads(Path("scored.json").read_text()) if Path(box["file_name"]).name in names]
    Path("scored.json").write_text(json.dumps(kept))
    words = ["job=evaluate", "task=detect", "predictions=scored.json", "evaluation.resamples=0"]
    main([*words, "labels=truth.csv", "hydra.run.dir=files"])
    assert "test: macro AP50" in capsys.readouterr().out
    value = scores("run")["macro"]["ap50"]["value"]
    assert scores("files")["macro"]["ap50"]["value"] == pytest.approx(value, abs=1e-3)
    assert Path("files/report.html").is_file()
    assert "needs labels=FILE" in error(capsys, *words, "hydra.run.dir=without")
    assert "have fixed names" in error(capsys, *words, "labels=truth.csv", "label=x", "hydra.run.dir=named")


def test_an_image_of_images_is_predicted_in_tiles(place, capsys):
    """Four images of 48 px beside each other: in tiles of 48 px, without overlap, the boxes of each, moved."""
    paths = [f"images/{i:03d}.png" for i in (0, 3, 6, 9)]
    pixels = [np.asarray(Image.open(path)) for path in paths]
    Path("large").mkdir()
    Image.fromarray(np.block([pixels[:2], pixels[2:]])).save("large/four.png")
    words = ["job=predict", "model=run", "trainer.accelerator=cpu", "batch_size=3"]
    main([*words, f"input=[{','.join(paths)}]", "output=alone.csv"])
    main([*words, "input=large", "tile=48", "overlap=0", "output=tiled.csv"])
    assert "larger than 48 px are cut into tiles of 48 px, overlap 0." in capsys.readouterr().out
    alone, tiled = (json.loads(Path(f"{name}.json").read_text()) for name in ("alone", "tiled"))
    assert len(alone) == len(tiled) > 0

    def rows(boxes, moved):
        return sorted([*np.add(b["bbox"], [*moved(b), 0, 0]), b["score"], b["category_id"]] for b in boxes)

    places = {paths[0]: [0, 0], paths[1]: [48, 0], paths[2]: [0, 48], paths[3]: [48, 48]}
    expected = rows(alone, lambda box: places[box["file_name"]])
    np.testing.assert_allclose(rows(tiled, lambda box: [0, 0]), expected, atol=1e-3)
    single, joint = pd.read_csv("alone.csv"), pd.read_csv("tiled.csv")
    for column in ("boxes_bright", "boxes_striped"):
        assert joint[column][0] == single[column].sum()
    many = finetune.load("run").predict(["large/four.png"], tile=48, overlap=0.5)
    assert list(many.columns) == [column for column in joint.columns if column != "error"]
    assert "tile=-1 must be the side of a tile" in error(capsys, *words, "input=large", "tile=-1")


def test_a_model_is_loaded_elsewhere_and_answers_for_arrays_of_any_size(place, tmp_path):
    shutil.copy("run/model.safetensors", tmp_path / "detector.safetensors")
    model = finetune.load(tmp_path / "detector.safetensors")
    assert (model.task, model.classes) == ("detect", ["bright", "striped"])
    assert "boxes: bright, striped" in repr(model)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 90, shape).astype(np.uint8) for shape in ((48, 48), (200, 60), (31, 77, 3))]
    together = model.predict(images)
    alone = pd.concat([model.predict([image]) for image in images], ignore_index=True)
    assert len(together) == 3
    for column in ("score_bright", "score_striped"):
        np.testing.assert_allclose(together[column], alone[column], atol=1e-5)
    assert list(model.predict([]).columns) == list(together.columns)


def test_boxes_are_explained(place, capsys):
    words = ["job=explain", "model=run", TRUST, "trainer.accelerator=cpu"]
    main([*words, *DATA, "worst=3", "split=all", "hydra.run.dir=explained"])
    said = capsys.readouterr().out
    result = json.loads(Path("explained/explain.json").read_text())
    assert (result["method"], result["subject"], result["grid"]) == ("box_gradient", "box", [12, 12])
    assert len(result["wrong_boxes"]) <= 3
    assert {box["kind"] for box in result["wrong_boxes"]} <= {"false positive"}
    shown = [*result["wrong_boxes"], *result["boxes"]]
    assert shown
    thresholds = finetune.load("run").answers.thresholds
    below = [box["score"] < thresholds[box["class"]]["threshold"] for box in shown]
    assert [box["kind"] == "below the threshold" for box in shown] == below
    mass = result["mass"]["all"]
    assert mass["n"] >= len(result["boxes"])
    assert mass["true"]["n"] <= mass["predicted"]["n"] <= mass["n"]
    parts = [stage["part"] for stage in result["sanity"]["stages"]]
    assert parts == ["head", "neck", "stage3", "stage2", "stage1", "stem"]
    assert result["sanity"]["positions"] > 0
    assert "1 image without known true boxes: their boxes are not explained." in result["notes"]
    for sentence in (result["sanity"]["sentence"], result["mass"]["sentence"], *result["notes"]):
        assert sentence in said
    page = Path("explained/explain.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(shown)
    assert "Where the heat lies" in page
    main([*words, "images=[images/000.png,images/003.png]", "finding=bright", "sanity=false", "hydra.run.dir=chosen"])
    chosen = json.loads(Path("chosen/explain.json").read_text())
    table = finetune.load("run").predict(["images/000.png", "images/003.png"]).set_index("path")["score_bright"]
    first = {image["sample"]: image["score"] for image in reversed(chosen["images"])}
    assert first == {name: pytest.approx(score, abs=1e-5) for name, score in table.items() if score}
    assert {*first, *chosen["without_boxes"]} == set(table.index)
    assert "finding=dotted is not known. Choose from bright, striped" in error(capsys, *words, "finding=dotted")
    assert "of task=detect choose grad_cam" in error(capsys, *words, "method=occlusion")
    Path("broken.png").write_bytes(b"no image")
    assert "broken.png" in error(capsys, *words, "images=[broken.png]", "hydra.run.dir=broken")


def test_two_processes_train_and_predict_as_one(place, monkeypatch):
    """Their mean loss is that of one process, for a head that draws nothing, and each image is predicted once."""
    path = f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    words = [*FIT, "head=retinanet", "finetuning.norms=frozen", "trainer.max_epochs=1", "evaluation.novelty=0"]
    main([*words, "hydra.run.dir=one"])
    main([*words, "trainer.devices=2", "hydra.run.dir=two"])
    one, two = (Detections.read(f"{run}/predictions_test.csv") for run in ("one", "two"))
    assert list(one.images["sample"]) == list(two.images["sample"])
    first, second = (pd.read_csv(f"{run}/metrics.csv").iloc[0] for run in ("one", "two"))
    for name in ("train/loss", "val/loss"):
        assert second[name] == pytest.approx(first[name], rel=1e-4), name
    assert len(two.boxes) == pytest.approx(len(one.boxes), rel=0.01)  # a box beside the least score may be cut


def test_plans_train_head_and_pyramid_first(place):
    words = [*FASTER, "evaluation.novelty=0", "evaluation.test=false", "callbacks.keep_all_checkpoints=true"]
    main([*words, "finetuning=linear_probe", "trainer.max_epochs=2", "hydra.run.dir=probe"])
    main([*words, "finetuning=head_then_full", "finetuning.phases.full.epoch=1", "trainer.max_epochs=2",
          "hydra.run.dir=phases"])  # fmt: skip

    def changed(run: str) -> set[str]:
        first, last = (weights(f"{run}/checkpoints/epoch_00{n}.ckpt") for n in (0, 1))
        return {name.split(".")[1] for name, value in first.items() if not torch.equal(value, last[name])}

    assert changed("probe") == {"neck", "head"}
    assert changed("phases") == {"backbone", "neck", "head"}
    assert "test" not in json.loads(Path("phases", SCORES).read_text())


def test_finished_runs_are_compared(place, capsys):
    main([*FASTER, "seed=1", "trainer.max_epochs=1", "hydra.run.dir=other", "evaluation.novelty=0"])
    capsys.readouterr()
    main(["job=compare", "runs=[run,other]", "evaluation.resamples=20", "hydra.run.dir=compared"])
    said = capsys.readouterr().out
    assert "macro AP50" in said
    result = json.loads(Path("compared/compare.json").read_text())
    assert set(result["pairs"][0]["scores"]) == {"macro_ap50", "macro_froc"}
    assert "AP50 of striped" in Path("compared/compare.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=classify", "head=faster_rcnn"], "head=faster_rcnn gives boxes.*the task learns classes"),
        (
            ["task=detect", "head=classify"],
            "head=classify gives logits.*learns detections.*Choose faster_rcnn, retinanet",
        ),
        (["task=detect", "neck=none"], "Add neck=pyramid"),
        (["task=detect", "loss=bce"], "With task=detect the head brings its losses: leave loss=auto"),
        (
            ["task=detect", "data=coco", "data.sampler=balanced"],
            "data.sampler=balanced is by the classes of whole images",
        ),
        (["task=detect", "compile=true"], "compile=true"),
        (
            ["task=detect", "evaluation=default"],
            "is not a finetune.evaluation.detection.assessment.DetectionAssessment",
        ),
        (["task=detect", "evaluation.false_positives=[0]"], "must be a number above 0"),
        (["task=detect", "evaluation.thumbnails=-1"], "evaluation.thumbnails=-1 must be 0 or more"),
    ],
)
def test_what_does_not_go_together_is_one_line_before_data_are_read(words, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        build.check(compose.plain(compose.compose(words)))
    assert len(str(caught.value).splitlines()) == 1


def test_heads_bring_their_necks_and_what_is_typed_wins():
    def neck(*words):
        return compose.plain(compose.compose(["task=detect", *words]))["neck"]

    assert neck() == {"name": "pyramid", "channels": 256, "extra": "pool", "finest": None}
    assert neck("head=retinanet") == {"name": "pyramid", "channels": 256, "extra": "p6p7", "finest": 8}
    assert neck("head=retinanet", "neck.finest=4")["finest"] == 4
    assert neck("head=retinanet", "neck=pyramid")["extra"] == "none"
    config = compose.plain(compose.compose(["task=detect", "data.image_size=96", "transforms=none"]))
    assert (config["data"]["image_size"], config["data"]["target"], config["transforms"]) == (96, "boxes", {})


def test_the_commands_of_the_page_compose():
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")
    page = re.sub(r" *\\\n *", " ", page)  # a command over two lines
    commands = re.findall(r"^python -m finetune (.+?)(?: +#.*)?$", page, re.MULTILINE)
    assert len(commands) == 11
    for command in commands:
        words = shlex.split(command)
        extra = ["task=detect"] if "data=coco" in words and "task=detect" not in words else []
        assert compose.compose([*extra, *words]).job


def test_data_without_boxes_and_metadata_of_reserved_names_are_refused(place, capsys):
    draw(Path("no_boxes"), 12)
    path = Path("no_boxes/boxes.json")
    rows = json.loads(path.read_text())
    train = {name: {**row, "boxes": []} if row["split"] == "train" else row for name, row in rows.items()}
    path.write_text(json.dumps(train))
    assert "no train image has a box" in error(capsys, *FASTER, "data.root=no_boxes", "hydra.run.dir=nothing")
    assert not Path("nothing").exists()
