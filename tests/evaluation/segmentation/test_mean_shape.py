"""The mean shape of the training masks: worked by hand, streamed, and as a baseline of the scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune.errors import FinetuneError
from finetune.evaluation.segmentation import mean_shape
from finetune.evaluation.segmentation.answers import palette
from finetune.evaluation.segmentation.baseline import baseline
from finetune.evaluation.segmentation.collect import CaseCollector
from finetune.evaluation.segmentation.harms import harms
from finetune.evaluation.segmentation.mean_shape import MeanShape
from finetune.evaluation.segmentation.summary import summarise
from finetune.evaluation.segmentation.table import CaseTable

KNOWN = np.ones(2, bool)


def test_exclusive_regions_worked_by_hand():
    shape = MeanShape(["background", "a"], False, 2)
    assert shape.label_map() is None
    shape.add(np.array([[0, 1], [1, 255]], np.uint8), KNOWN)
    shape.add(np.array([[0, 1], [0, 1]], np.uint8), KNOWN)
    shape.add(np.array([[1, 0], [0, 255]], np.uint8), KNOWN)
    shape.add(np.full((2, 2), 1, np.uint8), np.zeros(2, bool))  # unknown: no mask
    np.testing.assert_array_equal(shape.label_map(), [[0, 1], [0, 1]])  # one known pixel decides the last place
    assert shape.masks == 3


def test_overlapping_regions_worked_by_hand():
    shape = MeanShape(["a", "b"], True, 2)
    shape.add(np.array([[0b01, 0b11], [0b00, 0b10]], np.uint8), KNOWN)
    shape.add(np.array([[0b01, 0b01], [0b01, 0b11]], np.uint8), np.array([True, False]))  # b is unknown
    shape.add(np.array([[0b00, 0b00], [0b00, 0b00]], np.uint8), np.array([True, False]))
    np.testing.assert_array_equal(shape.label_map(), [[0b01, 0b11], [0b00, 0b10]])


@settings(max_examples=40, deadline=None)
@given(st.lists(arrays(np.uint8, (3, 3), elements=st.sampled_from([0, 1, 2, 255])), min_size=1, max_size=7))
def test_streamed_it_is_the_most_frequent_region_of_each_pixel(masks):
    shape = MeanShape(["background", "a", "b"], False, 3)
    for mask in masks:
        shape.add(mask, np.ones(3, bool))
    means = np.stack([np.mean([mask == k for mask in masks], axis=0) for k in range(3)])
    np.testing.assert_array_equal(shape.label_map(), means.argmax(axis=0))


def test_a_file_comes_back_and_another_is_refused(tmp_path):
    label_map, path = np.array([[0, 1], [1, 0]], np.uint8), tmp_path / "mean_shape.png"
    assert mean_shape.read(path, ["background", "a"], False, 2) is None
    mean_shape.write(label_map, path, palette())
    np.testing.assert_array_equal(mean_shape.read(path, ["background", "a"], False, 2), label_map)
    with pytest.raises(FinetuneError, match="must be 3 x 3 pixels with values below 2"):
        mean_shape.read(path, ["background", "a"], False, 3)
    mean_shape.write(label_map * 2, path, palette())
    with pytest.raises(FinetuneError, match="values below 2"):
        mean_shape.read(path, ["background", "a"], False, 2)


def collected(predictions, truths, shape) -> CaseTable:
    collector = CaseCollector(["background", "a"], False, distances=False)
    for i, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        collector.update(f"{i}.png", f"p{i}", prediction, truth, mean_shape=shape)
    return collector.table()


def test_the_baseline_worked_by_hand(tmp_path):
    """Two images of four pixels; the shape marks the first two."""
    shape = np.array([[1, 1, 0, 0]], np.uint8)
    truths = [np.array([[1, 1, 1, 0]], np.uint8), np.array([[255, 1, 0, 0]], np.uint8)]
    predictions = [np.array([[1, 1, 1, 0]], np.uint8), np.array([[0, 1, 1, 0]], np.uint8)]
    table = collected(predictions, truths, shape)
    assert table.mean_shape.tolist() == [[[2, 2]], [[1, 1]]]  # the unknown pixel counts for nothing
    about = baseline(table, table.scores("dice"), np.arange(2), 2)
    of_shape = (2 * 2 / (2 + 3) + 1) / 2
    everything = (2 * 3 / (3 + 4) + 2 * 1 / (1 + 3)) / 2
    network = (1 + 2 / 3) / 2
    assert about["mean_shape"]["macro"]["dice"]["value"] == pytest.approx(of_shape)
    assert about["mean_shape"]["classes"]["a"]["gain"]["value"] == pytest.approx(network - of_shape)
    assert about["classes"]["a"]["everything"] == pytest.approx(everything)
    assert about["classes"]["a"]["answer"] == about["answer"] == "mean shape"
    assert about["classes"]["a"]["dice"] == about["macro"]["dice"] == pytest.approx(of_shape)
    assert about["gains"]["a"]["dice"]["value"] == pytest.approx(network - of_shape)
    table.write(tmp_path / "cases.csv")
    again = CaseTable.read(tmp_path / "cases.csv")
    assert again.metadata == []
    np.testing.assert_array_equal(again.mean_shape, table.mean_shape)


def test_the_answer_is_the_better_of_both_and_null_without_training_masks():
    half, small = np.array([[1, 1, 0, 0]], np.uint8), np.array([[0, 0, 0, 1]], np.uint8)
    about = summarise(collected([half] * 3, [half] * 3, small))["baseline"]
    assert about["mean_shape"]["macro"]["dice"]["value"] == 0
    assert about["answer"] == "everything"
    assert about["macro"]["dice"] == pytest.approx(2 * 2 / (2 + 4))
    assert summarise(collected([half] * 3, [half] * 3, None))["baseline"]["mean_shape"] is None
    empty = np.zeros((1, 4), np.uint8)
    undefined = summarise(collected([half], [empty], empty))["baseline"]  # neither mask has the region
    assert undefined["mean_shape"]["classes"]["a"]["dice"]["value"] is None
    assert undefined["classes"]["a"]["answer"] == "everything"


def test_a_network_no_better_than_the_mean_shape_is_a_harm():
    rng = np.random.default_rng(0)
    shape = np.zeros((10, 10), np.uint8)
    shape[2:8, 2:8] = 1
    truths, predictions = [], []
    for _ in range(30):
        truth = shape.copy()
        truth[1, 2 : 2 + rng.integers(1, 6)] = 1
        truths.append(truth)
        prediction = truth.copy()
        prediction[2:4, 2 : 2 + rng.integers(3, 6)] = 0
        predictions.append(prediction)
    fired = harms(summarise(collected(predictions, truths, shape)))
    assert [harm["rule"] for harm in fired] == ["baseline"]
    assert fired[0]["short"] == "Dice of a is not shown to be above that of one fixed mask"
    assert "of the mean shape of the training masks, -0.0" in fired[0]["text"]
    assert "baseline" not in [harm["rule"] for harm in harms(summarise(collected(truths, truths, shape)))]


def test_a_mean_shape_of_another_size_is_an_error():
    half = np.array([[1, 1, 0, 0]], np.uint8)
    with pytest.raises(FinetuneError, match=r"mean shape over 0\.png: prediction and truth have 2 x 2 and 1 x 4"):
        collected([half], [half], np.zeros((2, 2), np.uint8))
