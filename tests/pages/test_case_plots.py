"""Figures of masks and boxes: valid, the same each time, and with what was given in them."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from finetune.pages import case_plots
from tests.pages.test_plots import HOSTILE

CURVE = {"false_positives": [0, 0.25, 1, 8], "sensitivity": [0.1, 0.3, None, 0.8]}
VALUES = {HOSTILE: [0.1, 0.5, None, 1.0], "empty": [None] * 4}

BAND = {**CURVE, "low": [0, 0.2, 0.3, 0.7], "high": [0.2, 0.4, 0.5, 0.9]}
SIZES = {HOSTILE: ([10, 0, 30, 4000], VALUES[HOSTILE]), "b": ([1], [1])}

FIGURES = {
    "froc": lambda: case_plots.froc({HOSTILE: BAND, "b": CURVE}, HOSTILE),
    "value_by_size": lambda: case_plots.value_by_size(SIZES, HOSTILE, "size", "Dice"),
    "strips": lambda: case_plots.strips(VALUES, HOSTILE, "Dice"),
    "region_confusion": lambda: case_plots.region_confusion(np.array([[30, 1], [0, 0]]), [HOSTILE, "b"], HOSTILE),
    "counts_histogram": lambda: case_plots.counts_histogram([0, 0, 3, 99], HOSTILE, "false positives"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_one_described_svg_in_the_colours_of_the_page(draw):
    svg = draw()
    root = ET.fromstring(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", HOSTILE)
    tags = {element.tag.rsplit("}")[-1] for element in root.iter()}
    assert not tags & {"script", "image", "style", "metadata", "foreignObject"}
    assert "currentColor" in svg
    assert "#010" not in svg
    assert "#000000" not in svg
    assert svg == draw()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: case_plots.froc({}, "x"),
        lambda: case_plots.froc({"a": {"false_positives": [0], "sensitivity": [1.0]}}, "x"),
        lambda: case_plots.value_by_size({}, "x", "size", "Dice"),
        lambda: case_plots.strips({}, "x", "Dice"),
        lambda: case_plots.region_confusion(np.zeros((0, 0)), [], "x"),
        lambda: case_plots.counts_histogram([], "x", "false positives"),
    ],
)
def test_a_figure_without_anything_in_it_is_still_a_figure(draw):
    ET.fromstring(draw())


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]


def test_the_axis_of_froc_has_fractions():
    shown = texts(FIGURES["froc"]())
    assert {"1/4", "1", "8"} <= set(shown)


def test_a_cell_of_confused_regions_is_the_share_of_its_row():
    shown = texts(case_plots.region_confusion(np.array([[750, 249, 1], [0, 10, 0], [0, 0, 0]]), ["a", "b", "c"], "x"))
    assert [text for text in shown if text in {"75", "25", "<1", "100"}] == ["75", "25", "<1", "100"]


def test_many_false_positives_share_the_last_bar():
    shown = texts(FIGURES["counts_histogram"]())
    assert "10+" in shown
    assert "99" not in shown


def test_thousands_of_images_stay_small():
    rng = np.random.default_rng(0)
    values, sizes = rng.random(20_000).tolist(), (1 + 1e4 * rng.random(20_000)).tolist()
    assert len(case_plots.strips({"a": values}, "x", "Dice")) < 120_000
    assert len(case_plots.value_by_size({"a": (sizes, values)}, "x", "size", "Dice")) < 120_000
