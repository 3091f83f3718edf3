"""Points, boxes and masks go where the pixels go, whatever the fit, the size and the aspect ratio."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.placement import cut_boxes
from finetune.preprocessing import LONGEST_ASPECT, Preprocessing


def made(fit: str, side: int, crop_fraction: float = 1.0) -> Preprocessing:
    options = {"crop_fraction": crop_fraction} if fit == "crop" else {}
    return Preprocessing(image_size=side, in_channels=1, mean=(0.5,), std=(0.5,), fit=fit, **options)


preprocessings = st.builds(
    made, st.sampled_from(["squash", "crop", "pad"]), st.integers(1, 300), st.sampled_from([1.0, 0.95, 0.875, 0.5])
)
lengths = st.one_of(st.integers(1, 40), st.integers(1, 4000))
shares = st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))


@settings(max_examples=300, deadline=None)
@given(preprocessings, lengths, lengths, st.lists(shares, min_size=1, max_size=5))
def test_points_go_there_and_back(preprocessing, height, width, parts):
    placement = preprocessing.placement(height, width)
    points = np.array(parts) * [width, height]
    back = placement.to_stored(placement.to_square(points))
    np.testing.assert_allclose(back, points, rtol=1e-9, atol=1e-9 * max(height, width))
    boxes = np.concatenate([np.minimum(points[:1], points[-1:]), np.maximum(points[:1], points[-1:])], axis=1)
    placed = placement.boxes_to_square(boxes)
    cached = preprocessing.cached_placement(height, width)
    np.testing.assert_allclose(
        cached.to_square(points) - preprocessing.crop_start, placement.to_square(points), atol=1e-6
    )
    assert (placed.corners >= 0).all()
    assert (placed.corners <= preprocessing.image_size).all()
    assert placed.numbers.tolist() == np.flatnonzero(placed.visible > 0).tolist()
    if placed.visible.tolist() == [1.0]:  # nothing was cut, so the box comes back whole
        np.testing.assert_allclose(placement.boxes_to_stored(placed.corners), boxes, atol=1e-8 * max(height, width))
    left, top, right, bottom = placement.visible
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


sides_16 = st.builds(
    made, st.sampled_from(["squash", "crop", "pad"]), st.integers(16, 200), st.sampled_from([1.0, 0.95, 0.875, 0.5])
)


@settings(max_examples=80, deadline=None)
@given(sides_16, st.integers(1, 150), st.integers(1, 150), st.integers(0, 10_000))
def test_a_mask_of_the_square_is_its_nearest_pixel_on_the_stored_image(preprocessing, height, width, seed):
    placement = preprocessing.placement(height, width)
    mask = np.random.default_rng(seed).integers(1, 255, (placement.side, placement.side)).astype(np.uint8)
    stored = placement.mask_to_stored(mask)
    assert stored.shape == (height, width)
    seen = ~np.isnan(placement.values_to_stored(np.ones(mask.shape, np.float32)))
    np.testing.assert_array_equal(stored > 0, seen)
    for y, x in np.argwhere(seen)[:: max(1, int(seen.sum()) // 20)].tolist():
        column, row = np.clip(np.floor(placement.to_square(np.array([x + 0.5, y + 0.5]))), 0, placement.side - 1)
        assert stored[y, x] == mask[int(row), int(column)]


@settings(max_examples=80, deadline=None)
@given(sides_16, st.integers(8, 150), st.integers(8, 150), st.data())
def test_a_mask_of_the_bright_pixels_stays_on_them(preprocessing, height, width, data):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    image = preprocessing.crop(preprocessing.resize(mask * 255))
    placed = preprocessing.mask_to_input(mask)
    assert placed.shape == image.shape
    assert (placed[image == 255] == 1).all()  # where all that a pixel is made of is bright, or dark
    assert (placed[image == 0] == 0).all()
    whole = preprocessing.mask_to_input(np.ones((height, width), bool))
    np.testing.assert_array_equal(preprocessing.placement(height, width).shown(), whole)
    corners = preprocessing.boxes_to_input(np.array([[left, top, right, bottom]]), height, width).corners
    rows, columns = np.nonzero(placed)
    if len(rows):  # the centres of the mask's pixels lie in the mask's box
        x0, y0, x1, y1 = corners[0]
        assert x0 - 1e-6 <= columns.min() + 0.5 <= columns.max() + 0.5 <= x1 + 1e-6
        assert y0 - 1e-6 <= rows.min() + 0.5 <= rows.max() + 0.5 <= y1 + 1e-6


def test_the_longest_strip_is_cut_in_its_middle():
    height, width = 10, 10 * LONGEST_ASPECT + 200
    placement = made("crop", 20).placement(height, width)
    assert placement.part == (0, 100, 10, 10 * LONGEST_ASPECT)
    assert placement.scale == (2, 2)
    assert placement.visible == (width / 2 - 5, 0, width / 2 + 5, 10)
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1  # the right half of what is seen
    np.testing.assert_array_equal(made("crop", 20).mask_to_input(mask), np.repeat([[0] * 10 + [1] * 10], 20, axis=0))


def test_boxes_that_leave_the_square_are_cut_and_reported():
    placed = cut_boxes(np.array([[2, 2, 4, 4], [-2, 0, 2, 4], [8, 8, 12, 12], [10, 0, 12, 2], [3, 3, 3, 5]]), 10)
    assert placed.corners.tolist() == [[2, 2, 4, 4], [0, 0, 2, 4], [8, 8, 10, 10]]
    assert placed.numbers.tolist() == [0, 1, 2]
    assert placed.visible.tolist() == [1, 0.5, 0.25, 0, 0]
    assert cut_boxes(np.zeros((0, 4)), 10).corners.shape == (0, 4)


def test_a_mask_of_another_size_or_type_is_refused():
    placement = made("squash", 8).placement(4, 6)
    for mask in (np.zeros((6, 4), np.uint8), np.zeros((4, 6), np.int64)):
        with pytest.raises(FinetuneError, match="does not fit an image of 4 x 6"):
            placement.mask_to_square(mask)
    assert placement.mask_to_square(np.ones((4, 6), bool)).dtype == bool
    with pytest.raises(FinetuneError, match="an image of 0 x 4 pixels"):
        made("squash", 8).placement(0, 4)


def test_the_rule_is_written_once():
    finetune = Path(__file__).parents[1] / "finetune"
    using = [path.name for path in finetune.rglob("*.py") if "LONGEST_ASPECT" in path.read_text(encoding="utf-8")]
    assert sorted(using) == ["preprocessing.py", "resampling.py"]  # the second writes it into exported graphs
