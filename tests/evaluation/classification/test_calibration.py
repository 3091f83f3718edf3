"""Calibration: planted miscalibration is found and mended, small val splits are refused, values survive the file."""

import json

import numpy as np
import pytest
from scipy.special import expit, logit, softmax

from finetune.errors import FinetuneError
from finetune.evaluation.classification import calibration as calibrations
from finetune.evaluation.classification.calibration import Calibration, fit, with_prevalence
from finetune.evaluation.classification.reliability import before_after, binned
from tests.evaluation.classification.test_predictions import NAN, table


def binary(n, seed=0, shares=(0.3, 0.1), apart=2.0, slope=1.0, offset=0.0, per_patient=1):
    """Targets and logits of which slope 1 and offset 0 are the true log odds."""
    rng = np.random.default_rng(seed)
    target = (rng.random((n, len(shares))) < shares).astype(float)
    score = rng.normal(size=target.shape) + apart * target
    odds = apart * score - apart**2 / 2 + logit(shares)
    return table(target, slope * odds + offset, patients=[f"p{i // per_patient}" for i in range(n)])


def several(n, seed=0, k=4, temperature=1.0):
    """Targets drawn from the softmax of logits, which are then multiplied."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    true = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return table(np.eye(k)[true], logits * temperature, "multiclass")


@pytest.mark.parametrize("method", ["auto", "platt", "isotonic"])
def test_a_planted_shift_and_sureness_are_mended_on_test(method):
    val, test = (binary(3000, seed, slope=2.0, offset=2.0) for seed in (1, 2))
    fitted, said = fit(val, method)
    assert not said
    found = before_after(test, fitted.probabilities(test.logits), n_boot=100)
    for name in "ab":
        before, after = found[name]["before"], found[name]["after"]
        assert before["ece"]["low"] > 0.04
        assert after["ece"]["value"] < 0.03
        assert found[name]["difference"]["log_loss"]["high"] < 0
        assert after["brier"]["low"] < after["brier"]["value"] < after["brier"]["high"] < before["brier"]["low"]


def test_platt_finds_the_slope_and_the_offset():
    fitted, _ = fit(binary(40_000, slope=2.0, offset=1.0), "platt")
    for curve in fitted.curves.values():
        assert curve["slope"] == pytest.approx(1 / 2, abs=0.03)
        assert curve["offset"] == pytest.approx(-1 / 2, abs=0.06)


def test_platt_is_its_definition():
    """The offset alone: where the logits say nothing, the probability is the mean of Platt's targets."""
    target = np.repeat([[1.0], [0.0]], [12, 36], axis=0)
    fitted, said = fit(table(target, np.zeros((48, 1))), "platt")
    mean = (12 * 13 / 14 + 36 / 38) / 48
    np.testing.assert_allclose(fitted.probabilities(np.array([[0.0]])), mean, atol=1e-5)
    assert not said or "do not rise" in said[0]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_temperature_is_found(kind):
    val = several(4000, temperature=3.0) if kind == "multiclass" else binary(6000, slope=3.0)
    fitted, said = fit(val, "temperature")
    assert not said
    assert all(curve["temperature"] == pytest.approx(3, abs=0.2) for curve in fitted.curves.values())
    scaled = val.logits / fitted.curves["a"]["temperature"]
    expected = softmax(scaled, axis=1) if kind == "multiclass" else expit(scaled)
    np.testing.assert_allclose(fitted.probabilities(val.logits), expected)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_multiclass_is_mended_and_sums_to_one(method):
    val, test = (several(3000, seed, temperature=3.0) for seed in (1, 2))
    fitted, _ = fit(val, method)
    calibrated = fitted.probabilities(test.logits)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    found = before_after(test, calibrated, n_boot=50)["overall"]
    assert found["before"]["ece"]["low"] > 0.08
    assert found["after"]["ece"]["value"] < 0.035
    assert found["difference"]["brier"]["high"] < 0


def test_isotonic_rises_and_never_says_never():
    val = binary(2000, seed=3)
    fitted, _ = fit(val, "isotonic")
    grid = np.linspace(-20, 20, 400)[:, None].repeat(2, axis=1)
    said = fitted.probabilities(grid)
    assert (np.diff(said, axis=0) >= 0).all()
    assert said.min() > 0
    assert said.max() < 1
    # fitted where it was fitted: the mean is that of the truth
    assert fitted.probabilities(val.logits)[:, 0].mean() == pytest.approx(val.truth[:, 0].mean(), abs=2e-3)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
@pytest.mark.parametrize("make", [binary, several])
def test_too_small_a_val_ships_no_calibration_and_gives_a_note(method, make):
    fitted, said = fit(make(20), method)
    assert fitted is None
    assert "fewer than" in said[0]
    assert "none is shipped" in said[0]
    assert fit(make(20), "none") == (None, [])


def test_patients_count_not_images():
    assert fit(binary(200, shares=(0.5,), per_patient=25), "platt")[0] is None
    assert fit(binary(200, shares=(0.5,)), "platt")[0] is not None


def test_a_rare_class_is_left_out_the_others_are_calibrated():
    val = binary(400, shares=(0.3, 0.005))
    fitted, said = fit(val, "platt")
    assert fitted.calibrated == ["a"]
    assert said == ["val has fewer than 10 patients with or without b: not calibrated (platt)."]
    assert np.isnan(fitted.probabilities(val.logits)[:, 1]).all()
    assert set(before_after(val, fitted.probabilities(val.logits), n_boot=5)) == {"a"}
    shared, said = fit(val, "temperature")  # one number for all
    assert shared.calibrated == ["a", "b"]
    assert not said


def test_answers_all_right_do_not_become_certain():
    target = np.repeat([[1.0], [0.0]], 30, axis=0)
    val = table(target, 4 * target - 2)
    for method in ("temperature", "platt"):
        said = fit(val, method)[0].probabilities(val.logits)
        assert 0.9 < said.max() < 1 - 1e-4


def test_an_order_the_wrong_way_round_is_not_turned_but_said():
    val = binary(400, slope=-1.0)
    fitted, said = fit(val, "platt")
    assert "do not rise with a, b" in said[0]
    np.testing.assert_allclose(
        fitted.probabilities(np.array([[-3.0, -3], [3, 3]]))[:, 0], val.truth[:, 0].mean(), atol=0.01
    )


def test_unknown_and_soft_targets_are_left_out():
    val = binary(1000)
    targets = val.targets.copy()
    targets[:300, 0] = NAN
    targets[300:500, 0] = 0.5
    alone, both = table(val.targets[500:], val.logits[500:]), table(targets, val.logits)
    assert fit(both, "platt")[0].curves["a"] == fit(alone, "platt")[0].curves["a"]


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_what_is_shipped_is_plain_and_gives_the_same_to_the_last_bit(method):
    for val in (binary(800, shares=(0.4, 0.3)), several(800)):
        fitted, _ = fit(val, method)
        again = Calibration.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
        np.testing.assert_array_equal(again.probabilities(val.logits), fitted.probabilities(val.logits))


def test_an_unknown_method_is_named():
    with pytest.raises(FinetuneError, match=r"evaluation.calibration=plat is not known. Did you mean platt"):
        fit(binary(100), "plat")


def test_the_error_of_perfect_probabilities_reaches_down_to_nothing():
    given = binary(300, shares=(0.3,))
    found = before_after(given, given.probs, n_boot=200)["a"]
    assert found["before"]["ece"]["value"] == pytest.approx(binned(given.truth[:, 0], given.probs[:, 0]).error())
    assert found["before"]["ece"]["low"] == 0
    change = found["difference"]["ece"]
    assert change["value"] == 0
    assert np.isnan([change["low"], change["high"]]).all()  # the same answers show no spread
    assert change["reason"] == "the patients show no spread"


def test_bayes_by_hand():
    fitted = Calibration("platt", "multilabel", ["a", "b"], {"a": {}, "b": {}}, {"a": 0.5, "b": 0.2}, {})
    found = with_prevalence(fitted, np.array([[0.5, 0.3]]), {"a": 0.1})
    np.testing.assert_allclose(found, [[0.1, 0.3]])  # odds 1 * (1/9) / 1; b is not named
    three = Calibration("temperature", "multiclass", list("abc"), {}, {"a": 0.5, "b": 0.3, "c": 0.2}, {})
    found = with_prevalence(three, np.array([[0.5, 0.3, 0.2]]), {"a": 0.2})
    np.testing.assert_allclose(found, [[0.2, 0.48, 0.32]])
    with pytest.raises(FinetuneError, match=r"sums to 1\.2; all classes together must sum to 1"):
        with_prevalence(three, np.array([[0.5, 0.3, 0.2]]), {"a": 0.7, "b": 0.5})


def test_a_shift_of_the_prior_is_mended():
    """Fitted where 40 % have it, used where 5 % have it."""
    fitted, _ = fit(binary(4000, shares=(0.4,)), "platt")
    rng = np.random.default_rng(5)
    target = (rng.random((20_000, 1)) < 0.05).astype(float)
    elsewhere = table(target, 2 * (rng.normal(size=target.shape) + 2 * target) - 2 + logit(0.4))
    calibrated = fitted.probabilities(elsewhere.logits)
    moved = with_prevalence(fitted, calibrated, {"a": 0.05})
    errors = [binned(target[:, 0], probs[:, 0]).error() for probs in (calibrated, moved)]
    assert errors[0] > 0.05
    assert errors[1] < 0.01


def test_a_prior_that_was_never_seen_is_not_made_up():
    fitted = Calibration("temperature", "multilabel", ["a"], {"a": {"temperature": 1.0}}, {"a": 0.0}, {})
    assert np.isnan(with_prevalence(fitted, np.array([[0.5]]), {"a": 0.1})).all()
    assert calibrations.NEEDED["isotonic"] > calibrations.NEEDED["platt"]
