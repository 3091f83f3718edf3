"""Boxes through the preprocessing, and maps compared with them, by hand."""

import numpy as np
import pytest

from finetune.explanations.geometry import mask, to_input
from finetune.explanations.localisation import BoxedFinding, heat_ranks, iou, localise, maximum, peak_in_boxes, share
from finetune.preprocessing import Preprocessing
from finetune.statistics.intervals import exact


def made(**options) -> Preprocessing:
    return Preprocessing(in_channels=1, mean=(0.5,), std=(0.5,), **options)


def test_boxes_are_squashed_padded_and_cropped():
    box = [(20.0, 10.0, 40.0, 20.0)]  # left, top, width, height in an image of 100 x 200 (height x width)
    assert to_input(box, (100, 200), made(image_size=50)) == [(5.0, 5.0, 15.0, 15.0)]
    # the longer side becomes 50, so a quarter; the image is 25 high and lies 12 below the top
    assert to_input(box, (100, 200), made(image_size=50, fit="pad")) == [(5.0, 14.5, 15.0, 19.5)]
    # the shorter side becomes 50, so a half; of the 100 wide the 25 on either side go: the box ends at 30 - 25
    assert to_input(box, (100, 200), made(image_size=50, fit="crop")) == [(0.0, 5.0, 5.0, 15.0)]
    assert to_input([(0.0, 0.0, 20.0, 20.0)], (100, 200), made(image_size=50, fit="crop")) == []
    # 40 / 0.8 = 50 is stored, of which 5 go on each side; of the 100 wide 30
    assert (
        to_input(box, (100, 200), made(image_size=40, fit="crop", crop_fraction=0.8))
        == [(0.0, 0.0, 0.0 or 0.0, 0.0)][:0]
    )
    wide = [(100.0, 10.0, 40.0, 20.0)]
    assert to_input(wide, (100, 200), made(image_size=40, fit="crop", crop_fraction=0.8)) == [(20.0, 0.0, 40.0, 10.0)]


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (64, 64), (33, 97)])
@pytest.mark.parametrize("options", [{}, {"fit": "pad"}, {"fit": "crop"}, {"fit": "crop", "crop_fraction": 0.875}])
def test_a_box_lands_where_the_pixels_do(size, options):
    preprocessing = made(image_size=56, **options)
    height, width = size
    image = np.zeros(size, np.uint8)
    left, top, w, h = width // 2 - 9, height // 2 - 6, 21, 15
    image[top : top + h, left : left + w] = 255
    seen = preprocessing.crop(preprocessing.resize(image)) > 127
    inside = mask(to_input([(left, top, w, h)], size, preprocessing), 56)
    assert (seen & inside).sum() / (seen | inside).sum() > 0.85  # edges fall between pixels


def test_a_strip_is_cut_before_it_is_cropped():
    box = to_input([(5000.0, 2.0, 10.0, 6.0)], (10, 10010), made(image_size=20, fit="crop"))
    assert np.allclose(box, [(0.0, 4.0, 20.0, 16.0)], atol=2)  # in the middle, twice as large


def test_masks_take_pixels_by_their_centres():
    assert mask([(1.0, 0.0, 3.0, 2.0)], 4).tolist() == [[False, True, True, False]] * 2 + [[False] * 4] * 2
    assert mask([(1.6, 0.4, 2.4, 1.4)], 4).sum() == 1  # holds no centre across: the pixel it lies in
    assert mask([(0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)], 4).sum() == 7


HEAT = np.array([[0, 0, 0, 0], [0, 5, 4, 0], [0, 3, 0, 0], [0, 0, 0, 1.0]])


def test_pointing_and_overlap_by_hand():
    assert maximum(HEAT) == (1, 1)
    assert maximum(np.full((4, 4), 2.0)) is None
    assert maximum(np.pad(np.ones((1, 3)), ((0, 3), (0, 1)))) == (1, 0)  # the middle of three that are as hot
    right, wrong = mask([(1.0, 1.0, 3.0, 2.0)], 4), mask([(2.0, 2.0, 4.0, 4.0)], 4)
    assert peak_in_boxes(HEAT, right)
    assert not peak_in_boxes(HEAT, wrong)
    assert not peak_in_boxes(np.zeros((4, 4)), right)
    assert iou(heat_ranks(HEAT), right) == 1  # the two hottest are the box
    assert iou(heat_ranks(HEAT), wrong) == pytest.approx(1 / 7)  # all 4 with heat, one of them among the box's 4
    assert iou(heat_ranks(np.zeros((4, 4))), right) == 0


def test_scores_with_both_kinds_of_chance():
    box = [(1.0, 1.0, 3.0, 2.0)]
    other = np.rot90(HEAT, 2)
    result = [
        BoxedFinding("Mass", "p1", box, HEAT),
        BoxedFinding("Mass", "p2", [(2.0, 2.0, 3.0, 3.0)], other),
        BoxedFinding("Nodule", "p3", box, np.zeros((4, 4))),
    ]
    output = localise(result, n_boot=200)
    mass, nodule = output["findings"]["Mass"], output["findings"]["Nodule"]
    assert mass["pointing"]["value"] == 1
    assert mass["pointing"]["low"] == pytest.approx(exact(1.0, 2).low)
    assert mass["pointing"]["chance"] == pytest.approx((2 / 16 + 1 / 16) / 2)
    assert mass["pointing"]["elsewhere"] == 0
    assert mass["note"] == "fewer than 10 patients"
    assert nodule["constant"] == 1
    assert nodule["pointing"]["value"] == 0
    assert nodule["pointing"]["elsewhere"] is None
    assert nodule["iou"]["chance"] == pytest.approx((1 / 8) / (2 - 1 / 8))
    assert output["all"]["n"] == 3
    assert output["all"]["pointing"]["value"] == pytest.approx(2 / 3)
    assert output["sentence"].endswith("is unknown: 2 of 3 maps vary, 20 are needed.")


@pytest.mark.parametrize(
    ("varying", "said"), [(19, "19 of 24 maps vary, 20 are needed"), (20, "in 83 % of 24 findings")]
)
def test_a_verdict_needs_twenty_maps_that_vary(varying, said):
    box = [(1.0, 1.0, 3.0, 2.0)]
    heats = [HEAT] * varying + [np.zeros((4, 4))] * (24 - varying)
    output = localise([BoxedFinding("Mass", f"p{i}", box, heat) for i, heat in enumerate(heats)], n_boot=100)
    assert said in output["sentence"]
    assert output["all"]["pointing"]["low"] is not None  # the numbers stand all the same


def test_intervals_are_over_patients():
    values = np.array([1.0, 1, 1, 0, 0, 0] * 10)
    alone = share(values, np.arange(60), 400, 0)
    together = share(values, np.repeat(np.arange(20), 3), 400, 0)  # three of a patient are all right or all wrong
    assert alone.value == together.value == 0.5
    assert alone.low == pytest.approx(0.38, abs=0.03)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    assert np.isnan(share(np.array([0.2, 0.4]), np.array([0, 0]), 400, 0).low)
    sure = localise([BoxedFinding("Mass", f"p{i}", [(1.0, 1.0, 2.0, 2.0)], HEAT) for i in range(30)])
    assert sure["all"]["pointing"]["elsewhere"] == 1  # every map is the same: no better than another's
    assert "not shown" in sure["sentence"]
    assert localise([])["sentence"].startswith("There are no boxes")
