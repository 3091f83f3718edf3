"""Masks of any origin: two folders whose files have the same names."""

import numpy as np
import pytest
from PIL import Image

from finetune.errors import BadImage, FinetuneError
from finetune.evaluation.segmentation.folders import score_folders

NAMES = ["background", "liver"]
TRUTH = np.array([[0, 1, 1], [0, 0, 255]], np.uint8)
PREDICTION = np.array([[0, 1, 0], [0, 1, 0]], np.uint8)


def write(folder, **masks):
    folder.mkdir(exist_ok=True)
    for name, mask in masks.items():
        Image.fromarray(mask).save(folder / f"{name}.png")
    return folder


def test_masks_are_matched_by_their_names(tmp_path):
    labels = write(tmp_path / "labels", b=TRUTH, a=TRUTH)
    predictions = write(tmp_path / "predictions", a=PREDICTION)
    np.save(predictions / "b.npy", PREDICTION.astype(np.int64))
    (labels / "notes.txt").write_text("no mask")
    table = score_folders(predictions, labels, NAMES, patients={"a": "p", "b": "p"}, spacing=(1, 1))
    assert table.frame["sample"].tolist() == ["a", "b"]
    assert list(table.patients) == ["p", "p"]
    assert table.scores("dice").tolist() == [[0.5], [0.5]]
    assert table.unit == "mm"
    one = score_folders(predictions, labels, NAMES, spacing={"a": (1, 1)})
    assert (one.unit, list(one.patients)) == ("mixed", ["a", "b"])


def test_black_and_white_masks_need_a_word(tmp_path):
    white = np.array([[0, 255]], np.uint8)
    labels, predictions = write(tmp_path / "l", a=white), write(tmp_path / "p", a=white)
    with pytest.raises(FinetuneError, match=r"the values 0 and 255 alone\. .*values=\{255: 1\}"):
        score_folders(predictions, labels, NAMES)
    assert score_folders(predictions, labels, NAMES, values={255: 1}).scores("dice").tolist() == [[1.0]]
    single = tmp_path / "q"
    single.mkdir()
    Image.fromarray(white).convert("1").save(single / "a.png")
    assert score_folders(single, labels, NAMES, values={255: 1}).scores("dice").tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ({"a": TRUTH}, {"a": PREDICTION[:1]}, r"a: prediction and truth have 1 x 3 and 2 x 3 pixels"),
        ({"a": TRUTH}, {"a": PREDICTION * 9}, r"a: the prediction holds the value 9, which is no region"),
        ({"a": TRUTH + 2}, {"a": PREDICTION}, r"a: the truth holds the value 3.*or 255 for unknown"),
        (
            {"a": TRUTH, "c": TRUTH},
            {"a": PREDICTION, "b": TRUTH},
            r"1 of predictions have none in labels, such as b\.png",
        ),
        ({"a": TRUTH}, {}, r"predictions=.*predictions has no masks: no file ends in \.png"),
        ({"a": TRUTH}, {"a": np.zeros((2, 3, 3), np.uint8)}, r"is no mask: it must be gray.*not of mode RGB"),
    ],
)
def test_folders_that_cannot_be_scored(tmp_path, labels, predictions, message):
    folders = write(tmp_path / "predictions", **predictions), write(tmp_path / "labels", **labels)
    with pytest.raises(FinetuneError, match=message):
        score_folders(*folders, NAMES)


def test_files_that_are_no_masks(tmp_path):
    labels, predictions = write(tmp_path / "l", a=TRUTH), tmp_path / "p"
    with pytest.raises(FinetuneError, match=r"predictions=.*p is no folder"):
        score_folders(predictions, labels, NAMES)
    predictions.mkdir()
    (predictions / "a.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match="cannot be read as a mask"):
        score_folders(predictions, labels, NAMES)
    (predictions / "a.png").unlink()
    np.save(predictions / "a.npy", PREDICTION.astype(float))
    with pytest.raises(BadImage, match=r"whole numbers \(H, W\), not float64 \(2, 3\)"):
        score_folders(predictions, labels, NAMES)
    write(predictions, a=PREDICTION)
    with pytest.raises(FinetuneError, match=r"two masks of one name: a\.npy and a\.png"):
        score_folders(predictions, labels, NAMES)
