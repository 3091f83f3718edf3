"""One case: counts and distances worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from finetune.errors import FinetuneError
from finetune.evaluation.segmentation import cases
from finetune.evaluation.segmentation.scores import mean_dice, overlaps

NAN = np.nan


def blob(rng, side=24):
    """A random region of several parts, some of them at the border."""
    field = gaussian_filter(rng.normal(size=(side, side)), 2)
    return field > np.quantile(field, rng.uniform(0.6, 0.95))


def test_counts_of_exclusive_regions_worked_by_hand():
    truth = np.array([[0, 1, 1], [2, 2, 255]], np.uint8)
    prediction = np.array([[0, 1, 2], [2, 1, 1]], np.uint8)
    counts = cases.count(prediction, truth, 2, overlapping=False)
    assert counts.pixels == 5
    assert counts.regions.tolist() == [[1, 2, 2], [1, 2, 2]]
    assert counts.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_counts_of_overlapping_regions_worked_by_hand():
    truth = np.array([[0b00, 0b01, 0b11]], np.uint8)
    prediction = np.array([[0b10, 0b11, 0b01]], np.uint8)
    counts = cases.count(prediction, truth, 2, overlapping=True)
    assert counts.regions.tolist() == [[2, 2, 2], [0, 1, 2]]
    assert (counts.pixels, counts.confusion) == (3, None)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 8))
def test_counts_are_those_of_each_region_alone(data, n):
    maps = [data.draw(arrays(np.uint8, (4, 5), elements=st.integers(0, 2**n - 1))) for _ in range(2)]
    exclusive = [np.minimum(label_map, n) for label_map in maps]
    for overlapping, (prediction, truth) in ((True, maps), (False, exclusive)):
        counts = cases.count(prediction, truth, n, overlapping)
        for k in range(n):
            a, b = (cases.region_of(label_map, k, overlapping) for label_map in (prediction, truth))
            assert counts.regions[k].tolist() == [(a & b).sum(), b.sum(), a.sum()]


@settings(max_examples=40, deadline=None)
@given(
    probabilities=arrays(np.float32, (3, 5), elements=st.sampled_from([0.0, 0.05, 0.3, 0.69999999, 0.7, 0.95, 1.0])),
    truth=arrays(bool, (3, 5)),
)
def test_counts_at_thresholds_are_those_of_each_mask(probabilities, truth):
    counts = cases.count_at_thresholds(probabilities, truth)
    for threshold, (both, predicted) in zip(cases.THRESHOLDS, counts.tolist(), strict=True):
        mask = probabilities.astype(np.float64) >= threshold
        assert (both, predicted) == ((mask & truth).sum(), mask.sum())


def test_overlaps_worked_by_hand_and_where_undefined():
    both, truth, prediction = np.array([[2.0, 0, 0, 0, NAN], [4, 5, 0, 0, NAN], [3, 0, 5, 0, NAN]])
    scores = overlaps(both, truth, prediction)
    np.testing.assert_allclose(scores["dice"], [4 / 7, 0, 0, NAN, NAN])
    np.testing.assert_allclose(scores["iou"], [2 / 5, 0, 0, NAN, NAN])
    np.testing.assert_allclose(scores["sensitivity"], [1 / 2, 0, NAN, NAN, NAN])
    np.testing.assert_allclose(scores["precision"], [2 / 3, NAN, 0, NAN, NAN])


def test_the_validation_score_is_the_mean_over_regions_of_means_over_images():
    counts = np.array([[[2, 4, 4], [0, 0, 0]], [[4, 4, 4], [0, 5, 0]], [[0, 0, 0], [NAN, NAN, NAN]]])
    assert mean_dice(counts) == pytest.approx(((0.5 + 1) / 2 + 0) / 2)
    assert np.isnan(mean_dice(np.zeros((3, 2, 3))))
    assert np.isnan(mean_dice(np.zeros((0, 2, 3))))


def test_distances_worked_by_hand():
    truth, prediction = np.zeros((2, 9, 9), bool)
    truth[2:5, 2:5], prediction[2:5, 3:6] = True, True  # a square of 3 x 3, one column apart; its centre is inside
    assd, hd95 = cases.surface_distances(prediction, truth)
    # of its 8 surface pixels the 3 of the outer column and the one on the other's hollow centre lie 1 away, 4 on it
    assert assd == pytest.approx(4 / 8)
    assert hd95 == pytest.approx(1.0)
    assert cases.surface_distances(prediction, truth, (1.0, 3.0))[1] == pytest.approx(3.0)
    single = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    single[0][1, 1], single[1][4, 5] = True, True
    assert cases.surface_distances(*single) == (5.0, 5.0)
    assert cases.surface_distances(*single, (2.0, 0.5)) == (pytest.approx(np.hypot(6, 2)),) * 2
    assert np.isnan(cases.surface_distances(single[0], np.zeros((9, 9), bool))).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_distances_are_symmetric_and_do_not_depend_on_the_place(seed):
    rng = np.random.default_rng(seed)
    prediction, truth = np.pad(blob(rng, 16), 3), np.pad(blob(rng, 16), 3)
    distances = cases.surface_distances(prediction, truth)
    assert cases.surface_distances(truth, prediction) == pytest.approx(distances)
    moved = cases.surface_distances(np.roll(prediction, 2, (0, 1)), np.roll(truth, 2, (0, 1)))
    assert moved == pytest.approx(distances)
    assert cases.surface_distances(truth, truth) == (0, 0)
    assert cases.surface_distances(prediction, truth, (2, 2)) == pytest.approx((2 * distances[0], 2 * distances[1]))


@pytest.mark.parametrize(
    ("prediction", "truth", "overlapping", "message"),
    [
        (
            np.zeros((3, 4), int),
            np.zeros((3, 5), int),
            False,
            r"x\.png: prediction and truth have 3 x 4 and 3 x 5 pixels",
        ),
        (np.zeros((3, 4)), np.zeros((3, 4), int), False, r"the prediction is float64; a label map holds whole numbers"),
        (np.full((1, 2), 2), np.zeros((1, 2), int), False, r"the prediction holds the value 2.*values are 0 to 1\."),
        (np.full((1, 2), 255), np.zeros((1, 2), int), False, r"the prediction holds the value 255"),
        (
            np.zeros((1, 2), int),
            np.array([[7, 255]]),
            False,
            r"the truth holds the value 7.*0 to 1, or 255 for unknown",
        ),
        (np.zeros((1, 2), int), np.array([[-1, 0]]), False, r"the truth holds the value -1"),
        (np.zeros((1, 2), int), np.array([[2, 0]]), True, r"the truth holds the value 2.*values are 0 to 1\."),
        (np.zeros((0, 2), int), np.zeros((0, 2), int), True, r"the prediction has no pixels"),
    ],
)
def test_maps_that_cannot_be_compared(prediction, truth, overlapping, message):
    with pytest.raises(FinetuneError, match=message):
        cases.check_maps(prediction, truth, 2, overlapping, "x.png")
