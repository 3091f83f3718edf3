"""The masks of job=predict: each has the place of its image, and none is written over another."""

import numpy as np
from PIL import Image

from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.evaluation.segmentation.folders import masks_in, score_folders
from finetune.preprocessing import Preprocessing
from finetune.steps.image_files import common_folder

PLACE = Preprocessing(image_size=4).placement(4, 4)


def test_each_image_has_its_mask_at_its_place(tmp_path):
    names = ["a/x.png", "b/x.png", "x_1.png", "x.png", "x.jpg", "c.npz::images/3"]
    writer = SegmentAnswers(["background", "lung"], False).writer(tmp_path / "out.csv", tmp_path / "in")
    logits = np.zeros((len(names), 2, 4, 4), np.float32)
    logits[np.arange(len(names)), 1, 0] = np.linspace(-1, 1, len(names))[:, None]  # the first row, in the last three
    for i, name in enumerate(names):  # batch after batch
        writer.add([str(tmp_path / "in" / name)], logits[i : i + 1], [PLACE])
    masks = masks_in(tmp_path / "out_masks", "predictions")
    assert set(masks) == {"a/x", "b/x", "x_1", "x", "x_2", "c.npz/images/3"}
    marked = [int(np.asarray(Image.open(masks[key])).sum()) for key in ("a/x", "b/x", "x_1", "x", "x_2")]
    assert marked == [0, 0, 0, 4, 4]
    assert writer.close().startswith("6 masks -> ")
    for i, key in enumerate(masks):
        (tmp_path / "truth" / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), i % 2, np.uint8)).save(tmp_path / "truth" / f"{key}.png")
    assert len(score_folders(tmp_path / "out_masks", tmp_path / "truth", ["background", "lung"])) == 6


def test_an_image_elsewhere_has_its_name_alone(tmp_path):
    writer = SegmentAnswers(["background", "lung"], False).writer(tmp_path / "out.csv", tmp_path / "in")
    writer.add(["0", str(tmp_path / "y.dcm")], np.zeros((2, 2, 4, 4), np.float32), [PLACE, PLACE])
    assert set(masks_in(tmp_path / "out_masks", "predictions")) == {"0", "y"}


def test_the_folder_of_all_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/x.png").touch()
    assert common_folder("in") == tmp_path / "in"
    assert common_folder(["in/a/x.png"]) == tmp_path / "in/a"
    assert common_folder(["in/a", "in/y.png"]) == tmp_path / "in"
