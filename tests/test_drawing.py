"""Outlines of masks and boxes: where they lie, and that lines are told apart without colours."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune import drawing
from finetune.drawing import PREDICTION, TRUTH, LabelledBox
from finetune.errors import FinetuneError

GRAY = np.full((60, 60), 128, np.uint8)


def near(image, colour, reach=40):
    """Where the image has a colour."""
    return (np.abs(image.astype(int) - colour).max(axis=-1) <= reach).nonzero()


def test_the_outline_of_a_square_lies_on_its_edges():
    mask = np.zeros((10, 10), bool)
    mask[2:5, 3:9] = True
    (line,) = drawing.outlines(mask)
    assert (line[0] == line[-1]).all()
    assert line.min(axis=0).tolist() == [3, 2]
    assert line.max(axis=0).tolist() == [9, 5]
    assert drawing.outlines(np.zeros((4, 4))) == []


def test_a_mask_at_the_border_and_a_hole_have_closed_outlines():
    mask = np.ones((6, 6), bool)
    mask[2:4, 2:4] = False
    lines = sorted(drawing.outlines(mask), key=len)
    assert [line.min() for line in lines] == [2, 0]
    assert [line.max() for line in lines] == [4, 6]


@given(st.lists(st.booleans(), min_size=25, max_size=25))
def test_outlines_stay_in_the_image_and_are_closed(bits):
    for line in drawing.outlines(np.array(bits).reshape(5, 5)):
        assert (line[0] == line[-1]).all()
        assert line.min() >= 0
        assert line.max() <= 5


def test_truth_is_one_line_and_prediction_is_dashed():
    mask = np.zeros((60, 60), bool)
    mask[20:40, 10:50] = True
    nothing = np.zeros_like(mask)
    truth = drawing.with_masks(GRAY, mask, nothing, side=240, legend=False)
    prediction = drawing.with_masks(GRAY, nothing, mask, side=240, legend=False)
    assert truth.shape == (240, 240, 3)
    rows, columns = near(truth, TRUTH)
    assert 76 <= rows.min() <= 80
    assert 158 <= rows.max() <= 162
    assert 36 <= columns.min() <= 40
    assert 198 <= columns.max() <= 202
    edge = slice(60, 180)  # of the upper side
    assert len(set(near(truth[76:84, edge], TRUTH)[1])) == 120  # without a gap
    assert 40 < len(set(near(prediction[76:84, edge], PREDICTION)[1])) < 100
    assert len(near(truth, PREDICTION)[0]) == len(near(prediction, TRUTH)[0]) == 0


def test_a_legend_adds_a_strip_and_several_regions_are_all_outlined():
    masks = np.zeros((2, 60, 60), bool)
    masks[0, 5:15, 5:15], masks[1, 40:50, 40:50] = True, True
    bare = drawing.with_masks(GRAY, masks, masks[0] & False, legend=False)
    drawn = drawing.with_masks(GRAY, masks, masks[0] & False)
    assert drawn.shape[0] > bare.shape[0]
    assert drawn.shape[1] == bare.shape[1] == drawing.SIDE
    narrow = drawing.with_masks(GRAY, masks, masks[0] & False, side=100)
    assert narrow.shape[0] - 100 == 2 * (drawn.shape[0] - bare.shape[0])  # the names below each other
    rows, _ = near(bare, TRUTH)
    assert rows.min() < 100
    assert rows.max() > 250
    assert len(near(drawn[bare.shape[0] :], PREDICTION)[0]) > 20


def test_boxes_have_texts_inside_the_image():
    truth = [LabelledBox((10, 10, 30, 30), "mass")]
    wrong = [LabelledBox((50, 55, 90, 90), "a long name of a finding", 0.876)]
    drawn = drawing.with_boxes(np.stack([GRAY] * 3, axis=-1), truth, wrong, side=240, legend=False)
    assert drawn.shape == (240, 240, 3)
    rows, columns = near(drawn, TRUTH)
    assert (columns.min(), columns.max()) == (pytest.approx(39, abs=3), pytest.approx(121, abs=3))
    assert rows.min() < 40  # the text above the box
    assert len(near(drawn, PREDICTION)[0]) > 50
    assert wrong[0].text == "a long name of a finding 0.88"
    assert LabelledBox((0, 0, 1, 1)).text == ""


def test_a_large_image_is_not_enlarged_and_its_jpeg_is_small():
    image = np.random.default_rng(0).integers(0, 255, (300, 500), np.uint8)
    drawn = drawing.with_boxes(image, [], [], legend=False)
    assert drawn.shape == (300, 500, 3)
    data = base64.b64decode(drawing.jpeg(drawn, 200, 9000))
    assert len(data) <= 9000
    assert Image.open(io.BytesIO(data)).size == (200, 120)


def test_masks_of_another_size_are_refused():
    with pytest.raises(FinetuneError, match=r"Masks of shape \(1, 5, 5\) do not fit an image of shape \(60, 60\)"):
        drawing.with_masks(GRAY, np.zeros((5, 5), bool), np.zeros((60, 60), bool))
