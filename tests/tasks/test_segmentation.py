"""task=segment through the command line: trained, resumed, evaluated, predicted and compared, on tiny nets."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import finetune
from finetune.__main__ import main
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.evaluation.segmentation.table import CaseTable
from finetune.files import SCORES
from finetune.placement import Placement
from finetune.preprocessing import Preprocessing

DATA = ["data=folder", "data.root=photos", "data.regions=[background,square]", "data.cache=off", "data.num_workers=0"]
DATA += ["data.audit.near=false", "data.audit.on_leak=warn"]
CPU = ["trainer.accelerator=cpu", "split=test"]
NET = ["backbone=resnet20_cifar", "backbone.weights=none", "backbone.in_channels=1"]
SMALL = ["neck.channels=8", "head.channels=8"]
FIT = ["task=segment", *DATA, *NET, *SMALL, "data.image_size=32", "data.batch_size=8", "trainer.accelerator=cpu"]
FIT += ["optimizer.lr=0.01", "evaluation.thumbnails=2", "evaluation.novelty=20"]
FILES = (
    "cases.json",
    "mean_shape.png",
    "model.safetensors",
    "novelty_test.csv",
    "predictions_test.csv",
    "report.html",
    "typical.safetensors",
)
SIZES = ((32, 32), (40, 32), (32, 44))  # width and height


def draw(folder: Path, n: int = 40, seed: int = 0, overlapping: bool = False) -> None:
    """Noise with a bright square, with none in each ninth; masks of one file, or of a folder per region."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for region in ("left", "square") if overlapping else ("",):
        (folder / "masks" / region).mkdir(parents=True)
    for i in range(n):
        width, height = SIZES[i % 3]
        pixels, mask = rng.integers(0, 90, (height, width)), np.zeros((height, width), np.uint8)
        if i % 9 != 8:
            side = int(rng.integers(12, 18))
            top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
            pixels[top : top + side, left : left + side] += 150
            mask[top : top + side, left : left + side] = 1
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i:02d}.png")
        if overlapping:
            half = np.zeros_like(mask)
            half[:, : width // 2] = 255
            Image.fromarray(half).save(folder / "masks/left" / f"{i:02d}.png")
        Image.fromarray(mask * 255 if overlapping else mask).save(
            folder / ("masks/square" if overlapping else "masks") / f"{i:02d}.png"
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with images and a finished run of four epochs, `run`."""
    folder = tmp_path_factory.mktemp("masks")
    old = os.getcwd()
    os.chdir(folder)
    draw(folder / "photos")
    main([*FIT, "trainer.max_epochs=4", "callbacks.keep_all_checkpoints=true", "hydra.run.dir=run"])
    yield folder
    os.chdir(old)


def scores(run: str, split: str = "test") -> dict:
    return json.loads(Path(run, SCORES).read_text())[split]


def error(capsys, *words: str) -> str:
    """The one line with which a command fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(list(words))
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ")
    assert len(line.splitlines()) <= 3  # the first file that is wrong has a line
    return line


def test_a_fit_learns_and_leaves_a_whole_folder(place):
    metrics = pd.read_csv("run/metrics.csv")
    assert metrics["train/loss"].iloc[-1] < metrics["train/loss"].iloc[0]
    assert metrics["val/dice"].max() > 0.5
    assert not [name for name in FILES if not Path("run", name).is_file()]
    test = scores("run")
    assert test["macro"]["dice"]["value"] > 0.5
    assert list(test["classes"]) == ["square"]
    table = CaseTable.read("run/predictions_test.csv")
    sizes = {width * height for width, height in SIZES}
    assert set(table.pixels) <= sizes  # of the images as stored
    page = Path("run/report.html").read_text()
    assert "square" in page
    assert "Beside the same mask in every image" in page
    assert test["baseline"]["mean_shape"]["classes"]["square"]["gain"]["value"] > 0
    shape = np.asarray(Image.open("run/mean_shape.png"))
    masks = []
    for row in pd.read_csv("run/samples.csv").query("split == 'train'")["sample"]:
        mask = Image.open(Path("photos/masks", Path(row).name))
        masks.append(np.asarray(mask.resize((32, 32), Image.Resampling.NEAREST)))
    np.testing.assert_array_equal(shape, np.mean(masks, axis=0) > 0.5)


def test_a_resumed_fit_has_the_bits_of_one_that_never_stopped(place):
    shutil.copytree("run", "stopped")
    later = [f"checkpoints/epoch_00{n}.ckpt" for n in (1, 2, 3)]
    for name in (SCORES, "model.safetensors", "checkpoints/last.ckpt", *later):
        Path("stopped", name).unlink()
    shutil.copy("stopped/checkpoints/epoch_000.ckpt", "stopped/checkpoints/last.ckpt")  # as if it was killed in epoch 1
    main(["resume=stopped"])
    whole, resumed = (
        torch.load(f"{run}/checkpoints/last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        for run in ("run", "stopped")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert scores("stopped") == scores("run")


def test_an_evaluation_repeats_the_scores_and_scores_masks_of_files(place, capsys):
    main(["job=evaluate", "model=run", *DATA, "trainer.accelerator=cpu", "split=test", "hydra.run.dir=again"])
    assert scores("again")["macro"] == scores("run")["macro"]
    assert scores("again")["baseline"] == scores("run")["baseline"]  # by the file beside the model
    Path("alone").mkdir()
    shutil.copy("run/model.safetensors", "alone")
    main(["job=evaluate", "task=segment", "model=alone/model.safetensors", *DATA, *CPU, "hydra.run.dir=moved"])
    moved = json.loads(Path("moved/scores.json").read_text())
    assert next(iter(moved.values()))["baseline"]["mean_shape"] is None
    assert "are not known here, so it is left out" in Path("moved/report.html").read_text().replace("\n", " ")
    main(["job=predict", "model=run", "input=photos/images", "output=out.csv", "trainer.accelerator=cpu"])
    out = pd.read_csv("out.csv")
    assert "40 masks -> out_masks/" in capsys.readouterr().out
    for row in out.itertuples():
        mask = np.asarray(Image.open(Path("out_masks") / Path(row.path).name))
        assert mask.shape == np.asarray(Image.open(row.path)).shape
        assert (mask == 1).sum() == row.pixels_square
    words = ["job=evaluate", *FIT[:1], "predictions=out_masks", "labels=photos/masks", *DATA[:3]]
    main([*words, "hydra.run.dir=files"])
    of_files, table = scores("files"), CaseTable.read("run/predictions_test.csv")
    assert of_files["n"] == 40
    of_run = CaseTable.read("files/predictions_test.csv").frame.set_index("sample")["intersection_square"]
    samples = [Path(sample).stem for sample in table.frame["sample"]]
    np.testing.assert_array_equal(of_run.loc[samples], table.frame["intersection_square"])
    answers = finetune.load("run").predict([np.asarray(Image.open(out["path"][0]))])
    assert answers["pixels_square"][0] == out["pixels_square"][0]


def test_regions_are_explained(place, capsys):
    words = ["job=explain", "model=run", "trainer.accelerator=cpu"]
    main([*words, *DATA, "worst=2", "split=all", "hydra.run.dir=explained"])
    said = capsys.readouterr().out
    result = json.loads(Path("explained/explain.json").read_text())
    assert (result["method"], result["subject"], result["grid"]) == ("seg_grad_cam", "region", [8, 8])
    lowest = result["worst_regions"]
    assert [region["class"] for region in lowest] == ["square"] * 2
    assert lowest[0]["dice"] <= lowest[1]["dice"]
    assert 0 < len(result["regions"]) <= 8
    for region in (*lowest, *result["regions"]):
        assert region["inside"] is None or 0 <= region["inside"] <= 1
    mass = result["mass"]["all"]
    assert mass["n"] == mass["patients"] > 30
    assert mass["predicted"]["low"] <= mass["predicted"]["value"] <= mass["predicted"]["high"]
    assert 0 < mass["predicted"]["even"] < 0.5
    parts = [stage["part"] for stage in result["sanity"]["stages"]]
    assert parts == ["head", "neck", "stage3", "stage2", "stage1", "stem"]
    for sentence in (result["sanity"]["sentence"], result["mass"]["sentence"]):
        assert sentence in said
    page = Path("explained/explain.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 + len(result["regions"])
    assert "Seg-Grad-CAM" in page
    assert "Where the heat lies" in page
    files = "images=[photos/images/00.png,photos/images/08.png]"
    main([*words, files, "finding=square", "sanity=false", "hydra.run.dir=chosen"])
    chosen = json.loads(Path("chosen/explain.json").read_text())
    assert "sanity" not in chosen
    maps = finetune.explain(finetune.load("run"), ["photos/images/00.png", "photos/images/08.png"], region="square")
    assert [image["inside"] for image in chosen["images"]] == [maps.share(0), maps.share(1)]
    assert chosen["notes"] == []
    flipped = finetune.load("run")
    flipped.tta = ("flip",)
    flipped.save("flipped.safetensors")
    words_of_views = ["job=explain", "model=flipped.safetensors", "trainer.accelerator=cpu", "sanity=false"]
    main([*words_of_views, *FIT[:1], files, "hydra.run.dir=chosen_views"])
    note = "Heat maps and predicted outlines are of the image as it is; "
    notes = json.loads(Path("chosen_views/explain.json").read_text())["notes"]
    assert notes == [note + "masks of job=predict are of the mean over its views (flip)."]
    main([*words_of_views, *FIT[:1], *DATA, "split=all", "worst=1", "located=0", "hydra.run.dir=views"])
    page = Path("views/explain.html").read_text().replace("\n", " ")
    assert note + "Dice is of the mean over its views (flip)." in page
    assert "finding=heart is not known. Choose from square" in error(capsys, *words, "finding=heart")
    assert "of task=segment choose grad_cam" in error(capsys, *words, "method=occlusion")
    Path("broken.png").write_bytes(b"no image")
    assert "broken.png" in error(capsys, *words, "images=[broken.png]", "hydra.run.dir=broken")


def test_an_image_of_images_is_predicted_in_tiles(place, capsys):
    """Four images of 32 px beside each other: in tiles of 32 px, without overlap, their masks beside each other."""
    paths = [f"photos/images/{i:02d}.png" for i in (0, 3, 6, 9)]
    pixels = [np.asarray(Image.open(path)) for path in paths]
    Path("large").mkdir()
    Image.fromarray(np.block([pixels[:2], pixels[2:]])).save("large/four.png")
    words = ["job=predict", "model=run", "trainer.accelerator=cpu", "batch_size=3"]
    main([*words, f"input=[{','.join(paths)}]", "output=alone.csv"])
    alone = [np.asarray(Image.open(Path("alone_masks") / Path(path).name)) for path in paths]
    main([*words, "input=[large/four.png,photos/images/00.png]", "tile=32", "overlap=0", "output=tiled.csv",
          "hydra.run.dir=tiled"])  # fmt: skip
    assert "larger than 32 px are cut into tiles of 32 px, overlap 0." in capsys.readouterr().out
    mask = np.asarray(Image.open("tiled_masks/large/four.png"))
    np.testing.assert_array_equal(mask, np.block([alone[:2], alone[2:]]))
    np.testing.assert_array_equal(np.asarray(Image.open("tiled_masks/photos/images/00.png")), alone[0])
    table = pd.read_csv("tiled.csv")
    assert table["pixels_square"].tolist() == [(mask == 1).sum(), (alone[0] == 1).sum()]
    environment = json.loads(Path("tiled/environment.json").read_text())
    assert (environment["tile"], environment["overlap"]) == (32, 0)
    both = finetune.load("run").predict([np.asarray(Image.open("large/four.png"))], tile=32, overlap=0.5)
    assert 0 < both["pixels_square"][0] < 64 * 64
    main([*words, "input=large", "tile=32", "output=overlap.csv"])
    Path("large_truth").mkdir()
    truth = [np.asarray(Image.open(path.replace("images", "masks"))) for path in paths]
    Image.fromarray(np.block([truth[:2], truth[2:]])).save("large_truth/four.png")
    main(["job=evaluate", "task=segment", "predictions=overlap_masks", "labels=large_truth", *DATA[:3],
          "hydra.run.dir=large_scored"])  # fmt: skip
    assert scores("large_scored")["classes"]["square"]["dice"]["value"] > 0.3
    line = error(capsys, *words, "input=large", "tile=0")
    assert "tile=0 must be the side of a tile" in line
    assert "overlap=0.95 must lie between 0 and 0.9" in error(capsys, *words, "input=large", "overlap=0.95")


def test_overlapping_regions_learn_with_thresholds_of_val_and_runs_are_compared(place, capsys):
    draw(Path("both"), 40, overlapping=True)
    words = [*FIT[:1], "data=folder", "data.root=both", *DATA[3:], *FIT[len(DATA) + 1 :], "finetuning=head_then_full"]
    main([*words, "trainer.max_epochs=3", "hydra.run.dir=overlapping"])
    about = scores("overlapping")["baseline"]["mean_shape"]["classes"]  # the left half is in the same place everywhere
    assert about["left"]["dice"]["value"] > 0.99
    assert np.asarray(Image.open("overlapping/mean_shape.png")).max() <= 3
    assert set(scores("overlapping")["classes"]) == {"left", "square"}
    assert finetune.load("overlapping").answers.overlapping
    main([*words, "finetuning=linear_probe", "trainer.max_epochs=1", "hydra.run.dir=probe"])
    main(["job=compare", "runs=[overlapping,probe]", "hydra.run.dir=compared"])
    assert "Dice" in capsys.readouterr().out
    assert "macro_dice" in json.loads(Path("compared/compare.json").read_text())["pairs"][0]["scores"]
    explained = ["job=explain", "model=overlapping", "images=both/images", "sanity=false", "trainer.accelerator=cpu"]
    main([*explained, "finding=left", "hydra.run.dir=left"])
    shares = [image["inside"] for image in json.loads(Path("left/explain.json").read_text())["images"]]
    assert len(shares) == 40
    main(["job=preview", *words, "steps=1", "hydra.run.dir=preview"])
    assert Path("preview/batch.png").is_file()


def test_bad_input_is_one_line(place, capsys):
    fit = [*FIT, "trainer.max_epochs=1", "hydra.run.dir=bad"]
    assert "gives logits for the whole image" in error(
        capsys, *(word for word in fit if word not in SMALL), "head=classify"
    )
    assert "is not for masks" in error(capsys, *fit, "loss=bce")
    assert "data.target=mask" in error(capsys, "task=segment", "data=kermany", "data.root=photos", "hydra.run.dir=bad")
    shutil.copytree("photos", "odd")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save("odd/masks/00.png")
    line = error(capsys, *fit, "data.root=odd")
    assert "5 x 5" in line
    assert "32 x 32" in line
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save("odd/masks/00.png")
    assert "holds 7" in error(capsys, *fit, "data.root=odd", "hydra.run.dir=worse")
    assert not Path("bad/scores.json").exists()


def test_two_processes_count_the_cases_of_one(place):
    main([*FIT, "trainer.max_epochs=1", "trainer.devices=2", "hydra.run.dir=two", "finetuning.norms=frozen"])
    main(["job=evaluate", "model=two", *DATA, "trainer.accelerator=cpu", "split=test", "hydra.run.dir=one"])
    one, two = (pd.read_csv(f"{run}/predictions_test.csv") for run in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


# -- on the pixels of the image ---------------------------------------------------------------------------------------


def test_a_label_map_by_hand():
    answers = SegmentAnswers(["background", "a"], False)
    logits = np.full((2, 4, 4), -5.0)
    logits[0, :, :2] = logits[1, :, 2:] = 5.0  # the right half is a
    square = Placement((4, 4), (0, 0, 4, 4), (4, 4), 0, 0, 4)
    np.testing.assert_array_equal(answers.label_map(logits, square)[0], [0, 0, 1, 1])
    wide = Preprocessing(image_size=4, in_channels=1, mean=(0.0,), std=(1.0,), fit="pad").placement(4, 8)
    assert answers.label_map(logits, wide).shape == (4, 8)
    np.testing.assert_array_equal(answers.label_map(logits, wide)[0], [0, 0, 0, 0, 1, 1, 1, 1])
    cut = Preprocessing(image_size=4, in_channels=1, mean=(0.0,), std=(1.0,), fit="crop").placement(4, 8)
    everywhere = np.stack([np.full((4, 4), -5.0), np.full((4, 4), 5.0)])
    np.testing.assert_array_equal(answers.label_map(everywhere, cut)[0], [0, 0, 1, 1, 1, 1, 0, 0])  # 0: not seen


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["squash", "pad", "crop"]), st.integers(1, 70), st.integers(1, 70), st.integers(8, 40))
def test_constant_values_come_back_to_the_stored_pixels(fit, height, width, side):
    placement = Preprocessing(image_size=side, in_channels=1, mean=(0.0,), std=(1.0,), fit=fit).placement(height, width)
    stored = placement.values_to_stored(np.full((side, side), 0.25, np.float32))
    assert stored.shape == (height, width)
    left, top, right, bottom = placement.visible
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    seen = ((y >= top - 1e-9) & (y <= bottom + 1e-9))[:, None] & ((x >= left - 1e-9) & (x <= right + 1e-9))
    np.testing.assert_allclose(stored[~np.isnan(stored)], 0.25, atol=1e-6)
    assert (~np.isnan(stored) <= seen).all()
    assert np.isnan(stored).sum() <= (~seen).sum() + height + width  # but for pixels right at the border
