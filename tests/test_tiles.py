"""Tiles of large images: where they lie, how they blend, and that they answer as the whole image does."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.ops import batched_nms

from finetune.errors import FinetuneError
from finetune.evaluation.detection.answers import DetectAnswers
from finetune.evaluation.novelty import FeatureGaussian
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.heads.detection import DetectionHead
from finetune.heads.features import FeatureInfo
from finetune.image_batches import list_batches, read_pixels
from finetune.model_file import Model
from finetune.network import Network, NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.tiles import Blend, Grid, Tiling, starts
from tests import package_cases as cases

PLAIN = Preprocessing(image_size=32, in_channels=1, mean=(0.0,), std=(1.0,))
RNG = np.random.default_rng(0)


# -- where tiles lie --------------------------------------------------------------------------------------------------


def test_starts_by_hand():
    assert starts(100, 40, 0.0) == (0, 30, 60)  # three are needed; the last one ends with the image
    assert starts(80, 40, 0.0) == (0, 40)
    assert starts(80, 40, 0.25) == (0, 20, 40)
    assert starts(30, 40, 0.25) == (-5,)
    assert starts(40, 40, 0.9) == (0,)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(8, 100), st.floats(0, 0.9))
def test_tiles_cover_an_axis_with_the_overlap(length, tile, overlap):
    first = starts(length, tile, overlap)
    if length <= tile:
        assert len(first) == 1
        assert first[0] <= 0 <= tile - length + first[0] + 1
        return
    assert (first[0], first[-1]) == (0, length - tile)
    assert max(np.diff(first)) <= max(1, tile * (1 - overlap) + 1e-6)
    assert len(first) == math.ceil((length - tile) / max(1, math.floor(tile * (1 - overlap) + 1e-9))) + 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40), st.floats(0, 0.9))
def test_weights_are_positive_and_sum_to_one_and_an_image_comes_back(height, width, side, overlap):
    grid = Tiling(side, overlap).grid(height, width)
    image = RNG.integers(0, 256, (height, width), np.uint8)
    rows = []
    blend = Blend(grid, 2, lambda top, values: rows.append((top, values.copy())))
    for tile in grid.tiles:
        inside = grid.inside(tile)
        weight = np.outer(grid.weights[0][tile.row], grid.weights[1][tile.column])
        assert (weight[inside] > 0).all()
        assert weight.sum() == pytest.approx(weight[inside].sum())
        pixels = grid.cut(image, tile)
        assert pixels.shape == (side, side)
        blend.add(tile, np.stack([pixels / 255, np.ones_like(pixels)]).astype(np.float32))
    blend.close()
    assert [top for top, _ in rows] == np.cumsum([0, *(values.shape[1] for _, values in rows)])[:-1].tolist()
    values = np.concatenate([values for _, values in rows], axis=1)
    expected = np.stack([image / 255, np.ones(image.shape)])
    np.testing.assert_allclose(values, expected, atol=1e-5)  # a sum over up to a hundred tiles, in 32 bits


def test_tiles_fade_linearly_into_each_other():
    (left, right), _ = Tiling(8, 0.5).grid(12, 8).weights
    assert left.tolist() == pytest.approx([1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8])
    assert right.tolist() == pytest.approx(left.tolist()[::-1])


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (0, 0.25, "tile=0 must be the side of a tile"),
        (-4, 0.25, "tile=-4"),
        (True, 0.25, "tile=True"),
        (40.0, 0.25, "tile=40.0"),
        (40, -0.1, "overlap=-0.1 must lie between 0 and 0.9"),
        (None, 0.95, "overlap=0.95"),
        (40, float("nan"), "overlap=nan"),
    ],
)
def test_bad_values_are_one_line(tile, overlap, message):
    with pytest.raises(FinetuneError, match=message):
        Tiling.of(tile, overlap)
    with pytest.raises(FinetuneError, match=message):
        small_model().predict([], tile=tile, overlap=overlap)


def test_a_classifier_has_no_tiles():
    with pytest.raises(FinetuneError, match="tile=40 does not go with a model of task=classify"):
        cases.multiclass().predict([np.zeros((99, 99), np.uint8)], tile=40)


# -- pixels -----------------------------------------------------------------------------------------------------------


class Local(nn.Module):
    """In place of a backbone with its head: two convolutions of 3x3, so a pixel depends on the two beside it."""

    gives = "regions"

    def __init__(self, regions: int):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, regions, 3, padding=1))

    head = property(lambda self: self)

    def run(self, x, start=None, stop=None, size=None):
        return x if stop == "head" else self.layers(x * 4)

    def forward(self, images):
        return self.run(images)

    def head_features(self, maps, size):
        return maps.mean((2, 3))


def small_model(preprocessing: Preprocessing = PLAIN, overlapping: bool = False) -> Model:
    classes = ["a", "b"] if overlapping else ["background", "a", "b"]
    answers = SegmentAnswers(classes, overlapping)
    return Model(Local(len(classes)), NetworkSpec("local", len(classes), 1), preprocessing, answers)


def tiled_probabilities(model: Model, image: np.ndarray, tiling: Tiling) -> np.ndarray:
    """(K, H, W), in the way that a label map is made of."""
    parts = []
    *batches, _ = list_batches([[image]], model.preprocessing, 5, tiling=tiling)
    collector = None
    for batch in batches:
        grid, tiles, _ = batch["tiles"]
        if collector is None:
            collector = model.answers.collect_tiles(grid, model.preprocessing.image_size, model.network)
            collector.mark = lambda values: parts.append(values.copy()) or values.argmax(0)
        with torch.inference_mode():
            for tile, logits in zip(tiles, model.network(batch["image"]).numpy(), strict=True):
                collector.add(tile, logits)
    collector.result()
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("size", [(32, 80), (75, 101)])
def test_tiles_equal_the_whole_image_where_they_see_as_much(size, overlapping):
    """A tile of 32 px in a network of 32 px: a pixel two or more from all inner edges of tiles has the same value."""
    model, image = small_model(overlapping=overlapping), RNG.integers(0, 256, size, np.uint8)
    tiling = Tiling(32, 0.25)
    tiled = tiled_probabilities(model, image, tiling)
    with torch.inference_mode():
        whole = model.answers.probabilities(model.network(torch.from_numpy(image / 255).float()[None, None])[0].numpy())
    grid = tiling.grid(*size)
    inner = np.ones(size, bool)
    for tile in grid.tiles:  # a zero is beyond an inner edge, where the whole image has pixels
        for start, length, axis in ((tile.top, size[0], 0), (tile.left, size[1], 1)):
            for edge, is_inner in ((start, start > 0), (start + 32, start + 32 < length)):
                if is_inner:
                    inner[(slice(None),) * axis + (slice(edge - 2, edge + 2),)] = False
    assert inner.mean() > 0.5
    np.testing.assert_allclose(tiled[:, inner], whole[:, inner], atol=1e-5)
    assert np.abs(tiled - whole).max() > 1e-4


@pytest.mark.parametrize("preprocessing", [PLAIN, Preprocessing(image_size=32, in_channels=1, mean=(0.5,), std=(0.2,),
                                                                fit="crop", crop_fraction=0.8)])  # fmt: skip
@pytest.mark.parametrize(("tile", "overlap"), [(20, 0.0), (48, 0.3), (33, 0.9)])
def test_a_constant_image_has_no_seam(preprocessing, tile, overlap):
    model = small_model(preprocessing)
    model.network.layers = nn.Conv2d(1, 3, 1)  # no border
    tiled = tiled_probabilities(model, np.full((70, 95), 77, np.uint8), Tiling(tile, overlap))
    assert tiled.shape == (3, 70, 95)
    np.testing.assert_allclose(tiled, np.broadcast_to(tiled[:, :1, :1], tiled.shape), atol=1e-6)
    np.testing.assert_allclose(tiled.sum(axis=0), 1, atol=1e-6)


def test_an_image_lower_than_a_tile_is_not_stretched():
    """20 x 90 pixels in tiles of 32: a square of 12 px stays one, in the middle of black."""
    image = np.zeros((20, 90), np.uint8)
    image[4:16, 50:62] = 255
    shown = [
        batch["image"].numpy()
        for batch in list_batches([[image]], PLAIN, 99, tiling=Tiling(32))
        if batch["image"] is not None
    ]
    assert shown[0].shape == (4, 1, 32, 32)
    of_square = [(tile[0].any(axis=1).sum(), tile[0].any(axis=0).sum()) for tile in shown[0]]
    assert (12, 12) in of_square
    assert not shown[0][:, :, :10].any()


def test_images_of_a_tile_or_less_have_the_bits_of_whole_ones(tmp_path):
    model = small_model()
    Image.fromarray(RNG.integers(0, 256, (240, 240), np.uint8)).save(tmp_path / "a.jpg")
    images = [str(tmp_path / "a.jpg"), RNG.integers(0, 256, (200, 90), np.uint8), np.zeros((240, 240), np.uint8)]
    assert model.predict(images).equals(model.predict(images, tile=240))
    assert not model.predict(images).equals(model.predict(images, tile=230))


def test_a_large_jpeg_is_read_at_its_full_size_and_the_order_stays(tmp_path):
    big = RNG.integers(0, 256, (400, 300), np.uint8)
    Image.fromarray(big).save(tmp_path / "a.jpg", quality=95)
    decoded = np.asarray(Image.open(tmp_path / "a.jpg"))
    (tmp_path / "bad.png").write_bytes(b"x")
    small = [RNG.integers(0, 256, (30, 30), np.uint8) for _ in range(3)]
    model, done = small_model(), []
    images = [small[0], str(tmp_path / "a.jpg"), str(tmp_path / "bad.png"), small[1], decoded, small[2]]
    table = model.predict_all(images, batch_size=4, tiling=Tiling(64), progress=lambda *numbers: done.append(numbers))
    assert table["path"].tolist() == ["0", images[1], images[2], "3", "4", "5"]
    assert (table["error"] != "").tolist() == [False, False, True, False, False, False]
    counts = [column for column in table if column.startswith("pixels_")]
    assert table.loc[1, counts].tolist() == table.loc[4, counts].tolist()
    alone = [model.predict([image], tile=64)[counts].iloc[0].tolist() for image in small]
    assert table.loc[[0, 3, 5], counts].to_numpy().tolist() == alone
    assert done[-1] == (6, 6)
    assert [first for first, _ in done] == sorted(first for first, _ in done)


def test_the_results_do_not_depend_on_the_batch_size():
    model, image = small_model(), RNG.integers(0, 256, (150, 99), np.uint8)
    one, many = (model.predict([image, image], tile=40, batch_size=size) for size in (1, 7))
    assert one.drop(columns="path").iloc[0].equals(many.drop(columns="path").iloc[1])


def test_the_distance_of_an_image_is_the_median_of_its_tiles():
    model = small_model()
    val_distances = np.arange(100) / 100
    model.path = Path("unsaved")
    model._feature_gaussian = (FeatureGaussian(np.zeros(1), np.zeros((0, 1)), np.zeros(0), 1.0, val_distances), "")
    image = np.repeat(np.repeat(np.array([[26, 51], [77, 255]], np.uint8), 32, 0), 32, 1)  # means 0.1, 0.2, 0.3, 1
    table = model.predict([image, image[:32, :32]], tile=32, overlap=0.0)
    assert table["novelty"].tolist() == [26, 11]  # below 0.25, and 0.102
    assert table["unusual"].tolist() == ["no", "no"]
    assert model.predict([image[32:, 32:]], tile=32)["unusual"].tolist() == ["yes"]


# -- boxes ------------------------------------------------------------------------------------------------------------

HEAD = DetectionHead([FeatureInfo(8, 4)], 2)
ANSWERS = DetectAnswers(["a", "b"])


def collect(grid: Grid, boxes: dict[tuple[int, int], list], side: int = 32):
    """The result of tiles with boxes (left, top, right, bottom, score, label) in pixels of the stored image."""
    collector = ANSWERS.collect_tiles(grid, side, HEAD)
    for tile in grid.tiles:
        rows = np.array(boxes.get((tile.row, tile.column), []), np.float64).reshape(-1, 6)
        corners = (rows[:, :4] - [tile.left, tile.top] * 2) * side / grid.side
        collector.add(tile, (corners.astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(int)))
    return collector.result()


def test_a_cut_box_gives_way_to_the_whole_one():
    grid = Tiling(64, 0.25).grid(64, 112)  # tiles from 0 to 64 and from 48 to 112
    assert grid.lefts == (0, 48)
    whole, cut = [52, 10, 80, 40, 0.6, 0], [52, 10, 64, 40, 0.9, 0]
    boxes, scores, labels = collect(grid, {(0, 0): [cut], (0, 1): [whole]})
    np.testing.assert_allclose(boxes, [[52, 10, 80, 40]], atol=1e-4)
    assert (scores.round(4).tolist(), labels.tolist()) == ([0.6], [0])
    assert len(collect(grid, {(0, 0): [cut]})[0]) == 0  # the tile that saw more of it saw nothing there
    long = [[20, 10, 64, 40, 0.9, 0], [48, 10, 100, 40, 0.8, 0]]  # wider than the overlap: no tile has all of it
    assert len(collect(grid, {(0, 0): [long[0]], (0, 1): [long[1]]})[0]) == 2
    at_border = [0, 0, 30, 64, 0.9, 1]  # the image's own edges cut nothing
    np.testing.assert_allclose(collect(grid, {(0, 0): [at_border]})[0], [[0, 0, 30, 64]], atol=1e-4)


def test_a_box_cut_in_a_corner_needs_a_tile_that_has_both_sides():
    grid = Tiling(64, 0.25).grid(112, 112)
    cut = [53, 53, 64, 64, 0.9, 0]
    assert len(collect(grid, {(0, 0): [cut]})[0]) == 0
    tall = [53, 20, 64, 64, 0.9, 0]  # the rows of no tile hold it
    assert len(collect(grid, {(0, 0): [tall]})[0]) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([96, 97, 150]), st.sampled_from([0.0, 0.25, 0.5]))
def test_boxes_of_objects_in_the_tiles_that_show_them_are_the_objects(seed, length, overlap):
    """A perfect detector: every tile has the visible parts. Objects of up to the overlap come back once and whole."""
    rng = np.random.default_rng(seed)
    grid = Tiling(64, overlap).grid(length, length)
    cells = [(x, y) for x in range(0, length - 15, 22) for y in range(0, length - 15, 22)]
    objects = np.array([[x, y, x + rng.integers(6, 12), y + rng.integers(6, 12)] for x, y in cells], float)
    boxes = {}
    for tile in grid.tiles:
        corner = np.array([tile.left, tile.top] * 2)
        seen = (objects - corner).clip(0, 64) + corner
        seen = seen[(seen[:, 2:] > seen[:, :2]).all(axis=1)]
        boxes[tile.row, tile.column] = [[*box, 0.5 + 0.4 * rng.random(), 0] for box in seen.tolist()]
    merged = collect(grid, boxes, side=256)[0]
    if overlap == 0 and length != 96:
        assert len(merged) >= len(objects)
        return
    np.testing.assert_allclose(np.array(sorted(merged.tolist())), sorted(objects.tolist()), atol=1e-3)


def test_suppression_is_torchvisions_within_each_class():
    corners = RNG.uniform(0, 80, (60, 2))
    boxes = np.concatenate([corners, corners + RNG.uniform(5, 30, (60, 2))], axis=1)
    scores, labels = RNG.random(60), RNG.integers(0, 2, 60)
    expected = batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), 0.5).tolist()
    assert HEAD.suppress(boxes, scores, labels).tolist() == expected
    assert len(HEAD.suppress(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))) == 0


def test_as_many_boxes_stay_as_the_squares_of_the_image_may_have():
    apart = np.arange(300)[:, None] * [3.0, 0, 3, 0] + [0, 0, 2, 2]
    scores = np.linspace(1, 0.1, 300)
    assert HEAD.suppress(apart, scores, np.zeros(300, int)).tolist() == list(range(100))
    assert HEAD.suppress(apart, scores, np.zeros(300, int), squares=2).tolist() == list(range(200))


def test_a_head_without_suppression_is_one_line():
    with pytest.raises(FinetuneError, match="tile=64: Identity has no method `suppress`"):
        ANSWERS.check_tiles(64, nn.Identity())
    network = nn.Module()
    network.head = nn.Identity()
    model = Model(network, NetworkSpec("resnet18", 2), PLAIN, ANSWERS)
    with pytest.raises(FinetuneError, match="Identity has no method `suppress`"):  # before an image is read
        model.check_tiling(Tiling(64))
    SegmentAnswers(["background", "lung"], False).check_tiles(64, nn.Identity())


@pytest.mark.parametrize(
    ("head", "neck", "options", "expected"),
    [
        ("faster_rcnn", "pool", {"hidden": 8, "box_nms_thresh": 0.3, "box_detections_per_img": 7}, (0.3, 7)),
        ("retinanet", "p6p7", {"nms_thresh": 0.4, "detections_per_img": 9}, (0.4, 9)),
    ],
)
def test_heads_suppress_by_their_options(head, neck, options, expected):
    neck_options = {"channels": 8, "finest": 2, "extra": neck}
    network = NetworkSpec("resnet20_cifar", 2, 1, head, {}, options, "pyramid", neck_options).build()
    assert isinstance(network, Network)
    assert network.head.suppression == expected


@pytest.mark.parametrize("turn", [1, 6])
def test_a_jpeg_that_is_decoded_as_a_square_keeps_its_size(tmp_path, turn):
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = turn
    Image.new("L", (1999, 2000) if turn == 1 else (2000, 1999)).save(path, exif=exif)
    pixels, size = read_pixels(path, 672, None, True)
    assert pixels.shape == (1000, 1000)
    assert size == (2000, 1999)
