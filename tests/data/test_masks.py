"""Pixels of masks: files, runs, COCO's counts and polygons, by hand and as pycocotools has them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from finetune.data.masks import decode_counts, decode_rle, fill_polygons, read_mask, read_region
from finetune.errors import BadImage, FinetuneError
from tests.data.making import save

coco = pytest.importorskip("pycocotools.mask")
shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


def runs_of(mask: np.ndarray) -> str:
    """The runs of a bool mask, numbered from 1 down the columns: what decode_rle reads."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2).tolist())


@settings(max_examples=80, deadline=None)
@given(shapes.flatmap(lambda shape: arrays(bool, shape)))
def test_runs_and_counts_come_back_as_they_were(mask):
    height, width = mask.shape
    np.testing.assert_array_equal(decode_rle(runs_of(mask), height, width), mask)
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    np.testing.assert_array_equal(decode_counts(packed, height, width), mask)
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    counts = np.diff([0, *edges, mask.size]).tolist()
    np.testing.assert_array_equal(decode_counts(counts, height, width), mask)


sides = st.integers(1, 40)
points = st.one_of(st.integers(-8, 50), st.floats(-8, 50), st.integers(-20, 100).map(lambda n: n / 2))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
@settings(max_examples=300, deadline=None)
@given(sides, sides, st.lists(st.lists(st.tuples(points, points), min_size=3, max_size=9), min_size=1, max_size=3))
def test_polygons_are_filled_as_pycocotools_does(height, width, outlines):
    polygons = [[side for point in outline for side in point] for outline in outlines]
    expected = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))
    np.testing.assert_array_equal(fill_polygons(polygons, height, width), expected)


def test_a_square_and_a_hole_by_hand():
    assert fill_polygons([[1, 1, 3, 1, 3, 3, 1, 3]], 4, 5).astype(int).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert not fill_polygons([], 2, 2).any()
    assert decode_counts([1, 2, 3], 2, 3).astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert decode_counts([6], 2, 3).sum() == 0
    assert decode_counts([0, 6], 2, 3).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode_counts([1, 2], 2, 3), "add up to 3 pixels, the image has 2 x 3 = 6"),
        (lambda: decode_counts([-1, 7], 2, 3), "add up to 6"),
        (lambda: decode_counts("é", 2, 3), "not COCO's compressed text"),
        (lambda: decode_counts("P", 2, 3), "end within a number"),
        (lambda: fill_polygons([[0, 0, 1, 1]], 2, 2), "of three or more points"),
        (lambda: fill_polygons([[0, 0, 1, 1, 2, 2, 3]], 2, 2), "of three or more points"),
        (lambda: fill_polygons([[0, 0, 1, 1, 2, float("nan")]], 2, 2), "of three or more points"),
        (lambda: decode_rle("1 99999999999999999999999", 2, 2), "pairs of whole numbers"),
        (lambda: decode_rle("9223372036854775807 2", 2, 2), "outside 2 x 2"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(FinetuneError, match=message):
        call()


def test_files_hold_values_or_a_single_region(tmp_path):
    gray = np.array([[0, 1], [255, 7]], np.uint8)
    as_rgb = save(np.stack([gray] * 3, axis=-1), tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_mask(as_rgb), gray)
    with pytest.raises(BadImage, match="holds 0, 1, 7, 255: the mask of a single region has 0 and one other value"):
        read_region(as_rgb)
    marked = np.zeros((16, 16), bool)
    marked[3:9, 4:12] = True
    np.testing.assert_array_equal(read_region(save(marked * np.uint8(255), tmp_path / "a.png")), marked)
    Image.fromarray(marked).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_region(tmp_path / "bit.png"), marked)
    lossy = save(marked * np.uint8(255), tmp_path / "a.jpg", quality=90)
    assert len(np.unique(read_mask(lossy))) > 2
    np.testing.assert_array_equal(read_region(lossy), marked)
    assert not read_region(save(np.zeros((2, 2), np.uint8), tmp_path / "empty.png")).any()
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(deep)
    with pytest.raises(BadImage, match="must be uint8"):
        read_mask(deep)
    with pytest.raises(BadImage, match="it is missing"):
        read_mask(tmp_path / "none.png")
