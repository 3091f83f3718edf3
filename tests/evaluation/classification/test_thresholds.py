"""Operating points: thresholds worked out by hand, criteria that cannot be met, and what they give on test."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from finetune.errors import FinetuneError
from finetune.evaluation.classification.thresholds import (
    Criterion,
    at_prevalence,
    best_threshold,
    evaluate_operating_points,
    fit_operating_points,
)
from tests.evaluation.classification.test_calibration import binary, several
from tests.evaluation.classification.test_predictions import NAN, table

# positives at .9 .8 .6 .3, negatives at .7 .5 .4 .2 .1 .05
TARGET = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0, NAN])
PROB = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.99])


@pytest.mark.parametrize(
    ("criterion", "threshold"),
    [
        (Criterion("sensitivity", 0.75), 0.55),  # 3 of 4; of those, the highest specificity
        (Criterion("sensitivity", 0.76), 0.25),
        (Criterion("specificity", 0.83), 0.55),  # one of 6 may be wrong: 3 of 4 found
        (Criterion("specificity", 0.99), 0.75),
        (Criterion("youden"), 0.55),  # 3/4 + 5/6 above 2/4 + 1 and 1 + 3/6
        (Criterion("f1"), 0.55),  # 6/8, level with 8/11
        (Criterion("cost", 10.0), 0.25),  # 3 false alarms, none missed
        (Criterion("cost", 0.1), 0.75),
    ],
)
def test_thresholds_by_hand(criterion, threshold):
    assert best_threshold(TARGET, PROB, criterion) == pytest.approx(threshold)


def test_ties_stay_together_and_the_ends_are_reached():
    target, prob = np.array([1.0, 0, 1, 0]), np.array([0.5, 0.5, 0.5, 0.1])
    assert best_threshold(target, prob, Criterion("sensitivity", 0.5)) == pytest.approx(0.3)
    assert best_threshold(target, prob, Criterion("specificity", 0.9)) == pytest.approx(0.75)  # yes to none
    assert (
        best_threshold(target, np.ones(4), Criterion("specificity", 0.9)) is None
    )  # a probability of 1 is always a yes
    assert best_threshold(target, np.array([1.0, 1, 0, 0]), Criterion("sensitivity", 0.9)) == 0
    assert best_threshold(np.ones(4), prob, Criterion("youden")) is None


def test_neighbouring_numbers_stay_distinct():
    low = 0.3
    high = np.nextafter(low, 1)
    threshold = best_threshold(np.array([1.0, 0]), np.array([high, low]), Criterion("youden"))
    assert low < threshold <= high


def test_a_ppv_is_not_taken_from_a_handful_of_answers():
    prob = np.linspace(0.99, 0.01, 100)
    target = np.zeros(100)
    target[[0, 1, 4, 10, 15, 20]] = 1
    assert best_threshold(target, prob, Criterion("ppv", 0.9)) is None  # true of the first two alone
    assert (
        prob >= best_threshold(target, prob, Criterion("ppv", 0.3))
    ).sum() == 16  # 5 of 16; 4 of 11 finds fewer, 6 of 21 is less


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("yuden", "operating_points.x=yuden is not understood. Write youden, f1"),
        ({"sensitivity": 1.5}, "sensitivity must lie between 0 and 1"),
        ({"sensitivity": 0.9, "ppv": 0.5}, "is not understood"),
        ({"cost": 0}, "cost must be a number above 0"),
        ({"cost": "high"}, "cost must be a number above 0"),
        ({"accuracy": 0.9}, "is not understood"),
        (None, "is not understood"),
    ],
)
def test_wishes_that_make_no_sense_are_named(given, message):
    with pytest.raises(FinetuneError, match=message):
        Criterion.read("x", given)


def test_wishes_as_a_configuration_says_them():
    assert Criterion.read("x", "youden") == Criterion("youden")
    assert Criterion.read("x", {"cost": 5}) == Criterion("cost", 5.0)
    assert str(Criterion.read("x", {"sensitivity": 0.9})) == "sensitivity of 0.9"


CRITERIA = {"screen": Criterion("sensitivity", 0.9), "youden": Criterion("youden")}


@pytest.mark.parametrize("make", [binary, several])
def test_chosen_on_val_applied_to_test(make):
    val, test = make(2000, 1), make(2000, 2)
    points, said = fit_operating_points(val, CRITERIA)
    assert points == json.loads(json.dumps(points, allow_nan=False))
    assert not said
    on_val, on_test = (evaluate_operating_points(given, points, n_boot=100) for given in (val, test))
    for name in val.classes:
        assert on_val["screen"]["classes"][name]["sensitivity"]["value"] >= 0.9
        found = on_test["screen"]["classes"][name]
        k = test.classes.index(name)
        yes = test.probs[:, k] >= found["threshold"]
        assert found["tp"] == (yes & (test.truth[:, k] == 1)).sum()
        assert found["sensitivity"]["value"] == pytest.approx(0.9, abs=0.06)
        assert found["npv"]["low"] < found["npv"]["value"] < found["npv"]["high"]


def test_a_class_of_few_patients_has_no_operating_point():
    points, said = fit_operating_points(binary(600, shares=(0.3, 0.005)), {"youden": Criterion("youden")})
    assert list(points["youden"]["thresholds"]) == ["a"]
    assert said == ["val has fewer than 10 patients with or without b: no operating point."]
    _, said = fit_operating_points(binary(600, apart=0.3), {"sure": Criterion("ppv", 0.95)})
    assert said == ["No threshold gives a PPV of 0.95 in val: a, b."]
    assert fit_operating_points(binary(12), {"youden": Criterion("youden")})[0] == {}
    assert evaluate_operating_points(binary(50), {}) == {}


def test_intervals_are_over_patients():
    """Every patient's image five times: the interval must not shrink."""
    one = binary(200, shares=(0.4,))
    points = {"p": {"goal": "youden", "value": None, "split": "val", "thresholds": {"a": 0.4}}}
    five = table(
        np.repeat(one.targets, 5, 0), np.repeat(one.logits, 5, 0), patients=np.repeat(one.patients, 5).tolist()
    )
    narrow, wide = (
        evaluate_operating_points(given, points, n_boot=400)["p"]["classes"]["a"]["sensitivity"]
        for given in (five, one)
    )
    assert narrow["value"] == pytest.approx(wide["value"])
    assert narrow["high"] - narrow["low"] == pytest.approx(wide["high"] - wide["low"], rel=0.15)


def test_a_share_of_all_or_nothing_keeps_an_exact_interval():
    points = {"p": {"goal": "youden", "value": None, "split": "val", "thresholds": {"a": 0.5}}}
    found = evaluate_operating_points(table([[1.0]] * 8 + [[0.0]] * 8, [[3.0]] * 8 + [[-3.0]] * 8), points, n_boot=20)[
        "p"
    ]["classes"]["a"]
    assert found["sensitivity"]["low"] == pytest.approx(binomtest(8, 8).proportion_ci(0.95).low)


def test_ppv_and_npv_elsewhere_by_hand():
    ppv, npv = at_prevalence(np.array(0.9), np.array(0.8), 0.05)
    assert ppv == pytest.approx(0.9 * 0.05 / (0.9 * 0.05 + 0.2 * 0.95))
    assert npv == pytest.approx(0.8 * 0.95 / (0.8 * 0.95 + 0.1 * 0.05))


def test_ppv_is_reported_for_another_prevalence():
    given = binary(4000, shares=(0.4, 0.3))
    points, _ = fit_operating_points(given, {"youden": Criterion("youden")})
    found = evaluate_operating_points(given, points, n_boot=100, prevalence={"a": 0.05})["youden"]["classes"]
    here, there = found["a"]["ppv"], found["a"]["ppv_at_prevalence"]
    assert there["high"] < here["low"]
    assert there["low"] < there["value"] < there["high"]
    assert "ppv_at_prevalence" not in found["b"]
    # at the prevalence that the images have it is the PPV of the images
    same = evaluate_operating_points(given, points, n_boot=10, prevalence={"a": given.truth[:, 0].mean()})["youden"][
        "classes"
    ]["a"]
    assert same["ppv_at_prevalence"]["value"] == pytest.approx(here["value"])
