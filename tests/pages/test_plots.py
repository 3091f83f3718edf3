"""Figures: valid, small, the same each time, and unimpressed by what a class is called."""

import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from scipy.stats import binomtest

from finetune.evaluation.classification.reliability import Bins, binned
from finetune.pages import plots
from finetune.statistics.curves import thinned

HOSTILE = '<script>alert("x")</script> & $\\frac{1}{0}$ 胸水'
RNG = np.random.default_rng(0)
TARGET = (RNG.random(200) < 0.2).astype(float)
SCORE = RNG.normal(size=200) + TARGET
PROB = 1 / (1 + np.exp(-SCORE))

FIGURES = {
    "roc": lambda: plots.roc(TARGET, SCORE, HOSTILE),
    "precision_recall": lambda: plots.precision_recall(TARGET, SCORE, HOSTILE),
    "reliability": lambda: plots.reliability(binned(TARGET, PROB), HOSTILE),
    "lines": lambda: plots.lines([0, 1, 2], {HOSTILE: [np.nan, 1, 2], "b": [3, 2, 1]}, HOSTILE),
    "bars": lambda: plots.bars([HOSTILE, "b"], {"train": [0.1, np.nan], HOSTILE: [0.2, 0.3]}, HOSTILE, "share"),
    "confusion": lambda: plots.confusion(np.array([[3, 1], [0, 2]]), [HOSTILE, "b"], HOSTILE),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_one_described_svg_without_foreign_content(draw):
    svg = draw()
    root = ET.fromstring(svg)
    assert root.tag.endswith("}svg")
    assert (root.get("role"), root.get("aria-label")) == ("img", HOSTILE)
    tags = {element.tag.rsplit("}")[-1] for element in root.iter()}
    assert not tags & {"script", "image", "style", "metadata", "foreignObject"}
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.rsplit("}")[-1].startswith("on")
            if name.endswith("href"):
                assert value.startswith("#")
    assert svg == draw()


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_all_ink_follows_the_page(draw):
    svg = draw()
    assert "currentColor" in svg
    assert "#010" not in svg
    assert "#000000" not in svg
    assert "font-family" not in svg


def test_bins_of_a_reliability_diagram_are_not_joined_and_have_their_intervals():
    bins = binned(TARGET, PROB)
    svg = plots.reliability(bins, "x", bins)
    drawn = [
        path.get("d")
        for path in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
        if "--series" in (path.get("style") or "") and "C" not in path.get("d") and "z" not in path.get("d")
    ]
    lines = [[tuple(map(float, point.split())) for point in d.split("M")[1].split("L")] for d in drawn]
    assert len(lines) == 2 * 2 * len(bins.count)  # an interval and a count for each bin, before and after
    assert all(len(line) == 2 and line[0][0] == line[1][0] for line in lines)  # upright


def test_figures_of_one_page_share_no_ids():
    def ids(svg):
        return {element.get("id") for element in ET.fromstring(svg).iter() if element.get("id")}

    one, other = plots.roc(TARGET, SCORE, "one"), plots.roc(TARGET, SCORE, "other")
    assert ids(one)
    assert not ids(one) & ids(other)


def test_25000_samples_stay_small():
    target = (RNG.random(25_000) < 0.1).astype(float)
    score = RNG.normal(size=25_000) + target
    for svg in (plots.roc(target, score, "x"), plots.precision_recall(target, score, "x")):
        assert len(svg) < 20_000


def test_thinning_keeps_ends_and_form():
    x = np.linspace(0, 1, 10_000)
    thin_x, thin_y = thinned(x, x**2, limit=100)
    assert len(thin_x) <= 100
    assert (thin_x[0], thin_x[-1], thin_y[-1]) == (0, 1, 1)
    np.testing.assert_allclose(np.interp(x, thin_x, thin_y), x**2, atol=1e-3)
    np.testing.assert_array_equal(thinned(x[:5], x[:5], 300)[0], x[:5])
    assert len(thinned(np.zeros(1000), np.ones(1000), 300)[0]) <= 300


def test_a_figure_without_anything_in_it_is_still_a_figure():
    nothing = np.zeros(0)
    for svg in (
        plots.roc(nothing, nothing, "x"),
        plots.precision_recall(nothing, nothing, "x"),
        plots.reliability(binned(nothing, nothing), "x"),
        plots.lines([], {}, "x"),
        plots.roc(np.ones(3), np.arange(3.0), "x"),
    ):
        ET.fromstring(svg)


def test_drawing_leaves_no_trace_in_the_settings_of_others():
    before = dict(matplotlib.rcParams)
    FIGURES["roc"]()
    assert dict(matplotlib.rcParams) == before


def test_bins_are_joined_until_each_holds_enough():
    bins = Bins(np.array([3, 1, 4, 2]), np.array([0.1, 0.3, 0.5, 0.9]), np.array([0, 1, 0.5, 1]))
    joined = plots.merged(bins, 4)
    assert joined.count.tolist() == [4, 6]  # what is left at the end joins the last
    assert joined.mean_confidence == pytest.approx([(3 * 0.1 + 0.3) / 4, (4 * 0.5 + 2 * 0.9) / 6])
    assert joined.observed_rate == pytest.approx([1 / 4, 4 / 6])
    assert plots.merged(bins, 100).count.tolist() == [10]
    nothing = plots.merged(Bins(np.zeros(0, int), np.zeros(0), np.zeros(0)), 4)
    assert len(nothing.count) == len(nothing.mean_confidence) == 0


def test_wilsons_limits_are_scipys():
    low, high = plots.wilson(np.array([0.0, 0.3, 1.0]), np.array([5, 20, 7]))
    for i, (k, n) in enumerate(((0, 5), (6, 20), (7, 7))):
        expected = binomtest(k, n).proportion_ci(method="wilson")
        assert (low[i], high[i]) == pytest.approx((expected.low, expected.high), abs=1e-12)
