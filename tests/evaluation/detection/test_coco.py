"""COCO's scores: by hand, and equal to pycocotools on any table."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from finetune.evaluation.detection.coco import coco_scores, mean_ap50
from finetune.evaluation.detection.coco_json import to_coco
from finetune.evaluation.detection.scorer import Scorer
from tests.evaluation.detection.worlds import boxes, random_table, table, worlds

BOX, ELSEWHERE = (0, 0, 10, 10), (50, 50, 60, 60)
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")


def by_pycocotools(detections):
    """The twelve numbers of all classes, then of each class ap, ap50 and ar_100; -1 as NaN."""
    truth, results = to_coco(detections)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        found = coco.loadRes(results) if results else COCO()
        if not results:
            found.dataset = {**truth, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    stats = np.where(evaluation.stats == -1, np.nan, evaluation.stats)
    every = {"all": dict(zip(NAMES, stats.tolist(), strict=True))}
    for k, name in enumerate(detections.classes):
        parts = {"ap": precision[:, :, k, 0, 2], "ap50": precision[0, :, k, 0, 2], "ar_100": recall[:, k, 0, 2]}
        every[name] = {m: np.nan if (part == -1).all() else part.mean() for m, part in parts.items()}
    return every


def assert_equal(detections):
    ours, theirs = coco_scores(detections), by_pycocotools(detections)
    assert list(ours) == list(theirs)
    for name, scores in theirs.items():
        for metric, value in scores.items():
            np.testing.assert_allclose(ours[name][metric], value, rtol=0, atol=1e-9, err_msg=f"{name} {metric}")
    macro = Scorer(detections).values().macro()
    for metric in ("ap", "ap50", "ap75"):
        np.testing.assert_allclose(macro[metric][0], theirs["all"][metric], rtol=0, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(detections=worlds())
def test_equals_pycocotools(detections):
    assert_equal(detections)


def test_equals_pycocotools_on_many_images():
    assert_equal(random_table(np.random.default_rng(0), images=80, classes=3, false=20.0, noise=4.0))


def test_equals_pycocotools_beyond_a_hundred_detections():
    rng = np.random.default_rng(1)
    many = [((x, 0, x + 10, 10), rng.random(), 0) for x in rng.integers(0, 40, size=150).tolist()]
    assert_equal(table([[((5 * i, 0, 5 * i + 10, 10), 0) for i in range(6)]], [many]))


def test_by_hand():
    # scores 0.9 right, 0.8 wrong, 0.7 right: precision 1 up to a recall of 1/2, then 2/3
    truths = [[(BOX, 0)], [(BOX, 0)]]
    detected = [[(BOX, 0.9, 0), (ELSEWHERE, 0.8, 0)], [(BOX, 0.7, 0)]]
    scores = coco_scores(table(truths, detected, ["a", "b"]))
    assert scores["a"]["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert np.isnan(scores["b"]["ap"])
    assert scores["all"]["ap50"] == scores["a"]["ap50"]
    assert scores["a"]["ar_1"] == 1


def test_the_mean_for_the_monitor_is_the_same():
    detections = random_table(np.random.default_rng(2))
    true, found = detections.truths, detections.boxes
    images = []
    for i in range(len(detections)):
        t, d = true.image == i, found.image == i
        images.append((true.corners[t], true.label[t], found.corners[d], found.score[d], found.label[d]))
    assert mean_ap50(images) == pytest.approx(coco_scores(detections)["all"]["ap50"], abs=1e-12)
    nothing = (boxes(), np.zeros(0, int), boxes(BOX), np.array([0.5]), np.array([0]))
    assert np.isnan(mean_ap50([nothing]))
    assert np.isnan(mean_ap50([]))
    assert mean_ap50([(boxes(BOX), np.array([1]), *nothing[:1], np.zeros(0), np.zeros(0, int))]) == 0
