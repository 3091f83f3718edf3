"""Matching by the centre, and FROC: by hand, and equal to a slow count over thresholds under any weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.evaluation.detection.froc import GRID, LEVELS
from finetune.evaluation.detection.matching import IGNORED, RIGHT, WRONG, iou, match
from finetune.evaluation.detection.precision import RECALLS
from finetune.evaluation.detection.scorer import Scorer
from tests.evaluation.detection.worlds import boxes, random_table, table, worlds

BOX, ELSEWHERE = (0, 0, 10, 10), (50, 50, 60, 60)


def test_iou_by_hand():
    a, b = boxes(BOX, BOX, BOX, (5, 5, 5, 5)), boxes((5, 0, 15, 10), ELSEWHERE, (0, 0, 10, 20), BOX)
    np.testing.assert_array_equal(iou(a, b), [50 / 150, 0, 0.5, 0])
    np.testing.assert_array_equal(iou(a, b, np.array([True] * 4)), [0.5, 0, 1, 0])


def test_each_true_box_is_found_once():
    result = match(table([[(BOX, 0)]], [[(BOX, 0.5, 0), (BOX, 0.9, 0), (ELSEWHERE, 0.1, 0)]]))
    assert result.order.tolist() == [1, 0, 2]
    assert result.status[:, 0].tolist() == [RIGHT, WRONG, WRONG]
    assert result.truth[:, 0].tolist() == [0, -1, -1]


def test_ignored_regions_count_for_nothing():
    detections = table([[((0, 0, 30, 30), 0, 1)]], [[(BOX, 0.9, 0), (BOX, 0.8, 0), (ELSEWHERE, 0.7, 0)]])
    result = match(detections)
    assert result.status[:, 0].tolist() == [IGNORED, IGNORED, WRONG]
    assert not result.counted.any()
    assert np.isnan(Scorer(detections).values().classes["froc"]).all()


def test_the_centre_hits_and_a_second_hit_is_left_out():
    small, beside = (4, 4, 6, 6), (9, 9, 19, 19)
    detections = table([[(BOX, 0)]], [[(small, 0.9, 0), (small, 0.8, 0), (beside, 0.7, 0)]])
    assert match(detections).status[:, 0].tolist() == [WRONG, WRONG, WRONG]
    assert match(detections, hit="centre").status[:, 0].tolist() == [RIGHT, IGNORED, WRONG]
    with pytest.raises(FinetuneError, match="hit=middle is not known"):
        match(detections, hit="middle")


def test_froc_by_hand():
    # 4 images; by score: right, wrong, right, wrong, wrong, right, so at 0, 1/4 and 3/4 false positives per image
    truths = [[(BOX, 0)]] * 4
    detected = [
        [(BOX, 0.9, 0), (ELSEWHERE, 0.8, 0)],
        [(BOX, 0.7, 0), (ELSEWHERE, 0.6, 0)],
        [(ELSEWHERE, 0.5, 0), (BOX, 0.4, 0)],
        [],
    ]
    scores = Scorer(table(truths, detected)).values()
    at_levels = scores.curve[0, np.isin(GRID, LEVELS), 0]
    np.testing.assert_array_equal(at_levels, [1 / 4, 2 / 4, 2 / 4, 3 / 4, 3 / 4, 3 / 4, 3 / 4])
    assert scores.classes["froc"][0, 0] == pytest.approx(at_levels.mean())


def test_detections_of_the_same_score_count_together():
    scores = Scorer(table([[(BOX, 0)]], [[(BOX, 0.5, 0), (ELSEWHERE, 0.5, 0)]])).values()
    np.testing.assert_array_equal(scores.curve[0, np.isin(GRID, LEVELS), 0], [0, 0, 0, 1, 1, 1, 1])


def slow_froc(detections, weight):
    """(K, L) by trying every score as threshold."""
    result, matching = [], match(detections)
    image_weight = weight[np.unique(detections.patients.astype(str), return_inverse=True)[1]]
    w, true = image_weight[matching.image], detections.truths
    for k in range(len(detections.classes)):
        total = image_weight[true.image[(true.label == k) & ~true.ignored]].sum()
        best = np.zeros(len(LEVELS))
        for threshold in np.unique(matching.score):
            shown = (matching.label == k) & (matching.score >= threshold)
            right = w[shown & (matching.status[:, 0] == RIGHT)].sum()
            wrong = w[shown & (matching.status[:, 0] == WRONG)].sum()
            best = np.where(wrong <= LEVELS * image_weight.sum(), np.maximum(best, right), best)
        result.append(best / total if total else np.full(len(LEVELS), np.nan))
    return np.array(result)


@settings(max_examples=60, deadline=None)
@given(detections=worlds(), data=st.data())
def test_froc_equals_a_slow_count_under_any_weights(detections, data):
    scorer = Scorer(detections)
    weight = np.array(data.draw(st.lists(st.integers(0, 3), min_size=scorer.n_patients, max_size=scorer.n_patients)))
    weight = weight.astype(float)
    scores = scorer(np.stack([weight, np.ones_like(weight)], axis=1))
    for b, w in enumerate((weight, np.ones_like(weight))):
        if w.any():
            np.testing.assert_allclose(scores.curve[:, np.isin(GRID, LEVELS), b], slow_froc(detections, w), atol=1e-12)


def test_weights_are_copies_of_the_patients():
    detections = random_table(np.random.default_rng(0), images=40, patients=12)
    names = np.unique(detections.patients.astype(str))
    weight = np.random.default_rng(1).integers(0, 3, size=len(names)).astype(float)
    weighted = Scorer(detections)(weight[:, None])
    parts = [detections.select(np.isin(detections.patients.astype(str), names[weight > i])) for i in range(2)]
    samples = [f"{i} {sample}" for i, part in enumerate(parts) for sample in part.images["sample"]]
    truths, found = [], []
    for part in parts:
        for i in range(len(part)):
            t, d = part.truths.image == i, part.boxes.image == i
            truths.append((part.truths.corners[t], part.truths.label[t]))
            found.append((part.boxes.corners[d], part.boxes.score[d], part.boxes.label[d]))
    copies = type(detections).from_arrays(samples, samples, detections.classes, truths, found)
    whole = Scorer(copies).values()
    for metric, values in whole.classes.items():
        # copies tie with each other and ties are broken by their order, but the recalls and precisions read are alike
        np.testing.assert_allclose(weighted.classes[metric], values, atol=1 / len(RECALLS))
    np.testing.assert_allclose(weighted.curve, whole.curve, atol=1e-12)
