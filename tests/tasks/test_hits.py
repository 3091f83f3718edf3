"""Which boxes are wrong follows evaluation.hit, in the images of the report and in heat maps."""

from types import SimpleNamespace

import numpy as np
import pytest

from finetune.evaluation.detection.matching import IGNORED, RIGHT, WRONG
from finetune.preprocessing import Preprocessing
from finetune.tasks.detection.examples import worst_errors
from finetune.tasks.detection.explaining import boxes_of, kind_of, mass_of
from tests.evaluation.detection.worlds import table

SMALL = (10, 10, 14, 14)  # inside the true box, an IoU of 0.04
TABLE = table(
    [[((4, 4, 24, 24), 0)], [((0, 0, 16, 16), 0, True)]],
    [[(SMALL, 0.9, 0), ((5, 4, 9, 8), 0.7, 0)], [((1, 0, 16, 16), 0.8, 0)]],
)
DATA = SimpleNamespace(
    table=SimpleNamespace(paths=["0.png", "1.png"]),
    images=SimpleNamespace(sizes=np.array([[32, 32], [32, 32]])),
    preprocessing=Preprocessing(image_size=32),
)
LIMITS = np.array([0.5])


def test_errors_follow_the_rule():
    errors, false_positives = worst_errors(TABLE, LIMITS, "iou")
    assert errors.tolist() == [[1.0], [0.0]]  # the true box is missed
    assert false_positives.tolist() == [2, 0]
    errors, false_positives = worst_errors(TABLE, LIMITS, "centre")
    assert errors.tolist() == [[0.0], [0.0]]
    assert false_positives.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("hit", "statuses", "kinds"),
    [
        ("iou", [WRONG, WRONG, IGNORED], ["false positive", "false positive", "in an ignored place"]),
        ("centre", [RIGHT, IGNORED, IGNORED], ["", "another box of the same object", "in an ignored place"]),
    ],
)
def test_explained_boxes_follow_the_rule(hit, statuses, kinds):
    boxes = boxes_of(DATA, TABLE, LIMITS, hit)
    assert [box.score for box in boxes] == [0.9, 0.7, 0.8]
    assert [box.status for box in boxes] == statuses
    assert [kind_of(box) for box in boxes] == kinds
    heat = np.ones((32, 32), np.float32)
    true = [mass_of(DATA, TABLE, box, heat, heat > 0).true for box in boxes]
    assert np.isnan(true).tolist() == [status != RIGHT for status in statuses]  # an ignored place is no truth
    if hit == "centre":
        assert true[0] == pytest.approx(20 * 20 / 32**2)
