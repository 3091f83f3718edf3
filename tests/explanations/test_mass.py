"""How much heat lies inside: by hand, and whatever the map."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune.explanations.mass import inside, measure, summarise

HEAT = np.array([[3.0, 1.0], [0.0, 4.0]], np.float32)
LEFT = np.array([[True, False], [True, False]])


def test_shares_by_hand():
    mass = measure("a", "p", HEAT, LEFT, ~LEFT)
    assert (mass.predicted, mass.true, mass.predicted_even, mass.true_even) == (0.375, 0.625, 0.5, 0.5)
    reach = np.array([[True, True], [False, True]])
    mass = measure("a", "p", HEAT, LEFT, None, reach)
    assert (mass.predicted, mass.predicted_even) == (0.375, pytest.approx(1 / 3))
    assert np.isnan([mass.true, mass.true_even]).all()
    cold = measure("a", "p", np.zeros((2, 2)), LEFT, LEFT)
    assert np.isnan([cold.predicted, cold.true, cold.predicted_even, cold.true_even]).all()
    assert np.isnan(inside(HEAT, np.zeros((2, 2), bool)))


@given(
    arrays(np.float32, (4, 5), elements=st.floats(0, 1e6, width=32)), arrays(bool, (4, 5))
)  # fmt: skip
def test_inside_and_outside_are_all(heat, pixels):
    parts = [inside(heat, pixels), inside(heat, ~pixels)]
    if not np.isnan(parts).any():
        assert sum(parts) == pytest.approx(1)
    assert all(np.isnan(part) or 0 <= part <= 1 + 1e-9 for part in parts)


def test_means_over_maps_with_intervals_over_patients():
    rng = np.random.default_rng(0)
    masses = []
    for patient in range(30):
        heat = rng.random((4, 4))
        heat[:2] += 2
        top = np.zeros((4, 4), bool)
        top[:2] = True
        masses.append(measure("ab"[patient % 2], f"p{patient}", heat, top, None if patient else top))
    result = summarise(masses, "region", n_boot=200)
    scores = result["all"]["predicted"]
    assert scores["value"] == pytest.approx(np.mean([mass.predicted for mass in masses]))
    assert scores["low"] < scores["value"] < scores["high"]
    assert scores["even"] == 0.5
    assert (result["all"]["true"]["n"], result["classes"]["b"]["true"]["value"]) == (1, None)
    assert (
        "of the heat lies in the predicted region, as a mean over 30 maps; of an even heat it would be 50 %"
        in (result["sentence"])
    )
    few = summarise(masses[:3], "box")
    assert few["sentence"] == (
        "How much of the heat lies in the predicted box is unknown: 3 maps have heat and a prediction, 20 are needed."
    )
    assert summarise([], "box")["all"]["predicted"]["value"] is None
