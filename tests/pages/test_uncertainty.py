"""Unsure answers: what is left out, what sets hold, and how often, by hand and where the truth is simulated."""

import json

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import beta

from finetune.errors import FinetuneError
from finetune.evaluation.classification import conformal, selective
from finetune.evaluation.classification.assessment import Assessment
from finetune.evaluation.classification.conformal import Conformal
from finetune.statistics.shares import shares
from tests.evaluation.classification.test_calibration import binary, several
from tests.evaluation.classification.test_predictions import NAN, table


def test_shares_and_means_by_hand():
    patients = np.array(["a", "a", "b", "c"])
    right, every = np.array([True, False, True, True]), np.ones(4, bool)
    asked = {"all": (right, every), "of b": (right, patients == "b"), "size": (np.array([1.0, 2, 3, 6]), every)}
    found = shares(patients, {**asked, "none": (right, ~every)}, n_boot=500)
    assert (found["all"].value, found["of b"].value, found["size"].value) == (0.75, 1.0, 3.0)
    assert found["of b"].low == pytest.approx(beta.ppf(0.025, 1, 1))  # one patient who went right
    assert found["all"].low < 0.75 < found["all"].high <= 1
    assert np.isnan(found["size"].low)  # a mean of numbers has no interval of three patients
    many = shares(np.arange(12).astype(str), {"size": (np.arange(12.0), np.ones(12, bool))}, n_boot=500)["size"]
    assert 2 < many.low < many.value == 5.5 < many.high < 9
    assert np.isnan(found["none"].value)
    assert np.isnan(found["none"].low)


# sureness is the distance to the threshold 0.5: 4, 3, 2, 1, .5; the second and the last are wrong
FIVE = table([[1], [0], [1], [0], [1]], [[4.0], [3.0], [2.0], [-1.0], [-0.5]], patients=list("abcde"))


def test_the_most_confident_predictions_by_hand():
    sure, wrong = selective.confidence_and_errors(FIVE, "a", 0.5)
    assert sure.tolist() == [4, 3, 2, 1, 0.5]
    assert wrong.tolist() == [0, 1, 0, 0, 1]
    curve = selective.curve(sure, wrong)
    assert curve["coverage"] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert curve["errors"] == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4, 2 / 5])
    fitted = {"a": {"threshold": 0.5, "point": None, "cuts": {"0.8": 1.0}}}
    every, most = selective.evaluate(FIVE, fitted, n_boot=50)["a"]["rows"]
    assert (every["target"], every["coverage"]["value"], every["errors"]["value"]) == (1, 1, 0.4)
    assert (most["target"], most["coverage"]["value"], most["errors"]["value"]) == (0.8, 0.8, 0.25)
    assert (most["sensitivity"]["value"], most["specificity"]["value"]) == (1, 0.5)
    assert (every["sensitivity"]["value"], every["specificity"]["value"]) == (2 / 3, 0.5)


def test_equals_are_kept_or_left_together_and_unknown_counts_nowhere():
    curve = selective.curve(np.array([2.0, 2, 1, 1]), np.array([1.0, 0, 0, 0]))
    assert curve == {"coverage": [0.5, 1.0], "errors": [0.5, 0.25]}
    half = table([[1], [NAN]], [[1.0], [5.0]])
    told = selective.evaluate(half, {"a": {"threshold": 0.5, "point": None, "cuts": {}}}, n_boot=0)
    assert told["a"]["rows"][0]["coverage"]["value"] == 1
    assert told["a"]["rows"][0]["errors"]["value"] == 0


def test_the_threshold_is_that_of_the_first_point_that_has_one():
    points = {"sure": {"thresholds": {"b": 0.2}}, "youden": {"thresholds": {"a": 0.7, "b": 0.9}}}
    decided = selective.thresholds_by_class(binary(50), points)
    assert decided == {"a": {"threshold": 0.7, "point": "youden"}, "b": {"threshold": 0.2, "point": "sure"}}
    sure, wrong = selective.confidence_and_errors(table([[1]], [[logit(0.6)]]), "a", 0.7)
    assert sure[0] == pytest.approx(logit(0.7) - logit(0.6))
    assert wrong[0] == 1


@pytest.mark.parametrize("make", [binary, several])
def test_fewer_errors_remain_at_the_requested_coverage(make):
    val, test = make(2000, seed=1), make(2000, seed=2)
    told = selective.evaluate(test, selective.fit(val, [0.8, 0.5], {}), n_boot=100)
    for of_class in told.values():
        every, most, half = of_class["rows"]
        assert most["coverage"]["value"] == pytest.approx(0.8, abs=0.05)
        assert half["coverage"]["low"] < 0.5 < half["coverage"]["high"]
        assert half["errors"]["high"] < most["errors"]["value"] < every["errors"]["value"]
    json.dumps(told)


@pytest.mark.parametrize("given", [[1.0], [0], [True], ["a"]])
def test_coverages_that_are_none_are_refused(given):
    with pytest.raises(FinetuneError, match="coverages"):
        Assessment(coverages=given)


@pytest.mark.parametrize("given", [0.5, -0.1, "a", True])
def test_an_error_that_is_none_is_refused(given):
    with pytest.raises(FinetuneError, match="conformal"):
        Assessment(conformal=given)


def test_cuts_by_hand():
    scores, people = np.arange(1, 20) / 20, np.arange(19).astype(str)
    assert conformal.conformal_threshold(scores, people, 0.1) == pytest.approx(2 / 20)  # (19 + 1) 0.1: the second
    assert conformal.conformal_threshold(scores, people, 0.05) == pytest.approx(
        1 / 20
    )  # a new one is below the first in 1 of 20
    assert conformal.conformal_threshold(scores, people, 0.04) is None
    # as many scores of half the patients promise less, and are not let promise more
    assert conformal.conformal_threshold(scores, np.array([str(i // 2) for i in range(19)]), 0.1) == pytest.approx(
        1 / 20
    )


def test_sets_by_hand():
    two = Conformal("multilabel", ["a", "b"], 0.1, {"b": {"yes": 0.3, "no": 0.6}}, {})
    probs = np.array([[0.5, 0.2], [0.5, 0.4], [0.5, 0.7]])
    assert two.columns(probs) == {"set_b": ["no", "yes|no", "yes"]}
    apart = Conformal("multilabel", ["b"], 0.1, {"b": {"yes": 0.6, "no": 0.3}}, {})
    assert apart.columns(probs[:, 1:]) == {"set_b": ["no", "neither", "yes"]}
    three = Conformal("multiclass", ["x", "y", "z"], 0.1, {"": {"least": 0.3}}, {})
    assert three.columns(np.array([[0.4, 0.4, 0.2], [0.9, 0.1, 0]])) == {"set": ["x|y", "x"]}
    assert Conformal.from_dict(json.loads(json.dumps(three.to_dict()))) == three
    given = table(np.eye(3)[[1, 1]], np.log([[4, 4, 2], [90, 9, 1]]), "multiclass")
    told = conformal.evaluate(given, Conformal("multiclass", ["a", "b", "c"], 0.1, {"": {"least": 0.3}}, {}), n_boot=20)
    assert told["overall"]["coverage"]["value"] == 0.5
    assert told["overall"]["size"]["value"] == 1.5
    assert told["classes"]["b"]["coverage"]["value"] == 0.5
    assert np.isnan(told["classes"]["a"]["coverage"]["value"])


@pytest.mark.parametrize("error", [0.1, 0.2])
def test_sets_hold_the_truth_as_often_as_promised(error):
    """Over many small val splits: at least 1 - error on average, and not much more."""
    held = {"yes": [], "no": [], "coverage": []}
    test, other = binary(2000, seed=999, shares=(0.5,)), several(2000, seed=998)
    for seed in range(40):
        fitted, _ = conformal.fit(binary(60, seed, shares=(0.5,)), error)
        told = conformal.evaluate(test, fitted, n_boot=0)
        for side in ("yes", "no"):
            held[side].append(told["classes"]["a"][side]["value"])
        fitted, _ = conformal.fit(several(60, seed), error)
        held["coverage"].append(conformal.evaluate(other, fitted, n_boot=0)["overall"]["coverage"]["value"])
    for values in held.values():
        spread = np.std(values) / np.sqrt(len(values))
        assert 1 - error - 2.5 * spread - 0.01 < np.mean(values) < 1 - error + 0.04


def test_few_patients_make_no_promise():
    fitted, said = conformal.fit(binary(30, shares=(0.5, 0.03)), 0.1)
    assert list(fitted.cuts) == ["a"]
    assert said == ["val has fewer than 9 patients with and without b: no sets that miss the truth in 10 %."]
    assert conformal.fit(several(5), 0.1)[0] is None


def test_all_of_it_is_reported_on_test_and_can_be_switched_off():
    val, test = several(300, seed=1), several(300, seed=2)
    assessment = Assessment(resamples=50)
    told = assessment.score(test, assessment.fit(val))
    assert told["conformal"]["overall"]["coverage"]["value"] > 0.85
    assert [row["target"] for row in told["selective"]["all classes"]["rows"]] == [1.0, 0.95, 0.9, 0.8, 0.5]
    json.dumps(told, allow_nan=False)
    without = Assessment(resamples=50, coverages=[], conformal=None)
    assert not {"conformal", "selective"} & set(without.score(test, without.fit(val)))
