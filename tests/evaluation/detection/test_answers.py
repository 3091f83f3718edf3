"""What the boxes of a detector mean: columns and file by hand, places in stored images, what is fitted, folds."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.evaluation.answers import answers_named, comparable
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.detection.answers import DetectAnswers
from finetune.evaluation.detection.boxes_file import in_stored_image
from finetune.evaluation.detection.detections import Detections
from finetune.jobs.predict import discarded_on_error
from finetune.pages.comparison import fold_scores
from finetune.preprocessing import Preprocessing
from finetune.runs.group import FinishedRun, group_runs

POINTS = {"fp_1": {"thresholds": {"a": 0.4}, "goal": "false_positives", "value": 1.0, "split": "val"}}
ANSWERS = DetectAnswers(["a", "b"], None, POINTS)
CURVES = {"a": {"slope": 1.0, "offset": 0.0}}
PLATT = Calibration("platt", "multilabel", ["a", "b"], CURVES, {"a": 0.5}, {"split": "val"})
SQUARE = Preprocessing(image_size=10, in_channels=1, mean=(0.5,), std=(0.5,)).placement(20, 40)  # scales 1/4 and 1/2
OUTPUT = (
    np.array([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 2.0, 2.0], [8.0, 8.0, 12.0, 12.0]], np.float32),
    np.array([0.5, 0.4, 0.3], np.float32),
    np.array([0, 0, 1]),
)
NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def test_columns_count_boxes_from_the_threshold_on():
    columns = ANSWERS.columns([OUTPUT, NOTHING], [SQUARE, SQUARE])
    assert {name: list(values) for name, values in columns.items()} == {
        "boxes_a": [2, 0],
        "boxes_b": [0, 0],  # 0.3 is below 0.5, where no threshold is known
        "score_a": [0.5, 0],
        "score_b": [pytest.approx(0.3), 0],
        "decision": ["a", "none"],
    }
    assert [len(values) for values in ANSWERS.columns(np.zeros((0, 2)), []).values()] == [0] * 5
    assert ANSWERS.thresholds == {"a": {"threshold": 0.4, "point": "fp_1"}, "b": {"threshold": 0.5, "point": None}}
    assert ANSWERS.decision().endswith("a 0.4 (fp_1), b 0.5 (no operating point)")


def test_boxes_are_cut_at_the_border_of_the_stored_image():
    corners, scores, labels = in_stored_image(OUTPUT, SQUARE)
    assert corners.tolist() == [[4, 4, 20, 12], [0, 0, 8, 4], [32, 16, 40, 20]]
    assert (scores.dtype, labels.tolist()) == (np.float64, [0, 0, 1])


def test_boxes_in_the_border_that_padding_adds_are_left_out():
    """40 x 20 pixels in a square of 20: rows 5 to 14, scale 1/2."""
    place = Preprocessing(image_size=20, fit="pad").placement(20, 40)
    boxes = np.array([[0.0, 0.0, 20.0, 5.0], [2.0, 3.0, 6.0, 9.0]])
    corners, scores, _ = in_stored_image((boxes, np.array([0.9, 0.8]), np.array([0, 0])), place)
    assert corners.tolist() == [[4, 0, 12, 8]]
    assert scores.tolist() == [0.8]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["squash", "crop", "pad"]), st.integers(8, 300), st.integers(8, 300),
    st.lists(st.floats(0.05, 0.95), min_size=4, max_size=4),
)  # fmt: skip
def test_a_box_goes_to_the_square_and_back(fit, height, width, shares):
    place = Preprocessing(image_size=32, fit=fit).placement(height, width)
    left, top, right, bottom = place.visible
    (x0, x1), (y0, y1) = sorted((shares[0], shares[2])), sorted((shares[1], shares[3]))
    box = np.array([left + x0 * (right - left), top + y0 * (bottom - top),
                    left + x1 * (right - left) + 0.5, top + y1 * (bottom - top) + 0.5])  # fmt: skip
    box[2:] = np.minimum(box[2:], [right, bottom])
    placed = place.boxes_to_square(box[None])
    corners, _, _ = in_stored_image((placed.corners, np.ones(1), np.zeros(1, int)), place)
    np.testing.assert_allclose(corners, box[None], atol=1e-6)


def test_the_file_of_boxes_appears_when_it_is_closed(tmp_path):
    answers = DetectAnswers(["a", "b"], PLATT)
    writer = answers.writer(tmp_path / "out.csv", tmp_path)
    writer.add(["x.png"], [OUTPUT], [SQUARE])
    writer.add(["é.png", "y.png"], [NOTHING, OUTPUT], [SQUARE, SQUARE])
    assert not (tmp_path / "out.json").exists()
    assert writer.close() == f"6 boxes of any score, in pixels of the images as stored -> {tmp_path / 'out.json'}"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    boxes = json.loads((tmp_path / "out.json").read_text())
    assert boxes[0] == {"image_id": 1, "file_name": "x.png", "category_id": 1, "category": "a", "bbox": [4, 4, 16, 8],
                        "score": 0.5, "calibrated": pytest.approx(0.5)}  # fmt: skip
    assert [box["image_id"] for box in boxes] == [1, 1, 1, 3, 3, 3]
    assert "calibrated" not in boxes[2]  # of a class without a curve
    with pytest.raises(FinetuneError, match=r"Name the table \.csv"):
        answers.writer(tmp_path / "out.json", tmp_path)
    nothing = ANSWERS.writer(tmp_path / "none.csv", tmp_path)
    nothing.close()
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_an_error_leaves_no_unfinished_file_of_boxes(tmp_path):
    writer = ANSWERS.writer(tmp_path / "out.csv", tmp_path)
    writer.add(["x.png"], [OUTPUT], [SQUARE])
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(KeyboardInterrupt), discarded_on_error(writer):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_is_fitted_applies_to_some_of_the_classes():
    answers = DetectAnswers(["a", "b"], PLATT, POINTS)
    answers.check()
    assert answers.fitted(["a", "b"]).calibration == PLATT
    of_a = answers.fitted(["a"])
    assert (of_a.calibration.classes, list(of_a.calibration.curves)) == (["a"], ["a"])
    of_b = answers.fitted(["b"])
    assert of_b.calibration is None
    assert of_b.operating_points["fp_1"]["thresholds"] == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operating_points": {"p": {"thresholds": {"z": 0.5}}}}, "operating_points.p.thresholds has"),
        ({"operating_points": {"p": {"thresholds": {"a": 2.0}}}}, "a=2.0 must lie between 0 and 1"),
        ({"calibration": Calibration("platt", "multilabel", ["a"], CURVES, {"a": 0.5}, {})}, "of other classes"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(FinetuneError, match=message):
        DetectAnswers(["a", "b"], **fields).check()


def table_of(names, shift: float = 0.0, classes=("a", "b")) -> Detections:
    """An image per name with one box of each class, found with boxes moved by `shift`."""
    box = np.array([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    truth, found = (box, np.array([0, 1])), (box + shift, np.array([0.9, 0.8]), np.array([0, 1]))
    sites = pd.DataFrame({"site": ["x"] * len(names)})
    return Detections.from_arrays(names, names, classes, [truth] * len(names), [found] * len(names), sites)


def run_of(path, table, fold) -> FinishedRun:
    return FinishedRun(path, {"seed": "0", "data.fold": str(fold), "data.folds": "2"}, table, task="detect")


def test_folds_are_put_together_and_scored(tmp_path):
    tables = [table_of([f"{k}{i}" for i in range(12)], 3.0 * k) for k in (0, 1)]
    candidates, folds, _ = group_runs([run_of(tmp_path / str(k), table, k) for k, table in enumerate(tables)])
    pooled = candidates[0].members[0]
    assert (len(pooled), len(pooled.truths), len(pooled.boxes)) == (24, 48, 48)
    assert pooled.images["fold"].tolist() == [0] * 12 + [1] * 12
    assert pooled.metadata == ["site", "fold"]
    assert Detections.read(pooled.write(tmp_path / "oof.csv")).truths.corners.tolist() == pooled.truths.corners.tolist()
    scores = fold_scores(folds[0], n_boot=10)
    assert scores["folds"]["0"]["macro"]["ap50"]["value"] == pytest.approx(1)
    assert scores["mean"]["ap50"]["folds"] == 2
    twice = [run_of(tmp_path / str(k), tables[0], k) for k in (0, 1)]
    with pytest.raises(FinetuneError, match="00 is in two of their test splits"):
        group_runs(twice)
    other = [run_of(tmp_path / "0", tables[0], 0), run_of(tmp_path / "1", table_of(["z"], classes=("a", "c")), 1)]
    with pytest.raises(FinetuneError, match="cannot be put together: fold 1 has other classes"):
        group_runs(other)


def test_runs_of_a_task_without_a_comparison_are_refused(monkeypatch):
    from finetune.evaluation import answers

    assert comparable("detect") is DetectAnswers is answers_named("detect")
    monkeypatch.setitem(answers.ANSWERS, "mine", type("Mine", (), {"task": "mine"}))
    with pytest.raises(FinetuneError, match="task=mine cannot be compared: its class Mine has no fold_scores, compare"):
        comparable("mine")
