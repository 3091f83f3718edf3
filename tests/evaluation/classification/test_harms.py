"""What speaks against a run: each rule on answers made for it, none of them on a good network, and the order."""

import copy

import numpy as np
import pytest

from finetune.evaluation import wording
from finetune.evaluation.classification import harms
from finetune.evaluation.classification.assessment import Assessment, FittedOnVal
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.classification.conformal import Conformal
from finetune.evaluation.classification.predictions import Predictions
from tests.evaluation.classification.test_calibration import binary, several
from tests.evaluation.classification.test_predictions import table

ASSESSMENT = Assessment(operating_points={"screen": {"sensitivity": 0.9}}, resamples=40, coverages=[], subgroups=[])


def told(test, fitted=None, val=None):
    before = None if val is None else ASSESSMENT.score(val, FittedOnVal())
    return ASSESSMENT.score(test, fitted or FittedOnVal(), val=before)


def rules(scores):
    return [harm["rule"] for harm in scores["harms"]]


def the(rule, scores):
    (found,) = [harm for harm in scores["harms"] if harm["rule"] == rule]
    return found


def platt(slope, offset, names=("a",)):
    curves = {name: {"slope": slope, "offset": offset} for name in names}
    about = {"split": "val", "n": 400, "patients": 400}
    return Calibration("platt", "multilabel", list(names), curves, dict.fromkeys(names, 0.3), about)


def test_a_calibration_that_makes_it_worse_is_named_with_its_numbers():
    scores = told(binary(400, shares=(0.3,)), FittedOnVal(platt(1.0, 2.0)))
    harm = the("calibration", scores)
    assert harm["classes"] == ["a"]
    assert harm["short"] == "calibration makes the probabilities of a worse"
    change = scores["calibration"]["classes"]["a"]["difference"]["log_loss"]
    assert f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" in harm["text"]
    better = told(binary(400, shares=(0.3,), offset=2.0), FittedOnVal(platt(1.0, -2.0)))
    assert "calibration" not in rules(better)


def test_a_rise_that_fitting_to_few_patients_explains_is_no_harm():
    """Log loss from 0.40 to 0.42: beyond its interval on test, but not beyond what 20 patients of val make of it."""
    change = {"value": 0.02, "low": 0.012, "high": 0.028}
    of = {
        "before": {"log_loss": {"value": 0.4}},
        "after": {"log_loss": {"value": 0.42}},
        "difference": {"log_loss": change},
    }
    about = {"method": "platt", "classes": {"a": of}}
    assert harms.calibration({"calibration": {**about, "fitted_on": {"patients": 1000}}})
    assert harms.calibration({"calibration": {**about, "fitted_on": {"patients": 20}}}) is None
    for score in (of["before"], of["after"]):  # of a log loss of 4 it is too little
        score["log_loss"]["value"] *= 10
    assert harms.calibration({"calibration": {**about, "fitted_on": {"patients": 1000}}}) is None


def test_sets_that_hold_the_truth_too_seldom_are_named():
    cuts = {"a": {"yes": 0.0, "no": 0.05}}  # of the negatives only those of a probability below 0.05
    about = {"split": "val", "n": 400, "patients": 400}
    scores = told(binary(400, shares=(0.3,)), FittedOnVal(conformal=Conformal("multilabel", ["a"], 0.1, cuts, about)))
    share = scores["conformal"]["classes"]["a"]["no"]
    assert share["value"] < 0.85
    assert (
        f"should hold the truth of 90 %, but hold that of {wording.percent(share)} of the negatives of a."
        in the("sets", scores)["text"]
    )
    # as few patients in val could have brought that about, it is chance
    few = Conformal("multilabel", ["a"], 0.1, cuts, {**about, "patients": 2})
    assert "sets" not in rules(told(binary(400, shares=(0.3,)), FittedOnVal(conformal=few)))


@pytest.mark.parametrize(
    ("value", "high", "fitted_on", "short"),
    [
        (0.80, 0.85, np.inf, True),
        (0.80, 0.91, np.inf, False),  # the interval reaches the promise
        (0.86, 0.87, np.inf, False),  # certain, but 14 % missed for 10 % are not half as many again
        (0.80, 0.82, 1000, True),
        (0.80, 0.82, 30, False),  # 30 patients' cut is that uncertain
        (0.25, 0.31, 30, True),
    ],
)
def test_what_falls_short_of_a_promise(value, high, fitted_on, short):
    share = {"value": value, "low": value - 0.1, "high": high}
    assert harms.falls_short(share, 0.9, 1, fitted_on) is short


def test_an_operating_point_that_misses_its_goal_is_named():
    points = {"screen": {"goal": "sensitivity", "value": 0.9, "split": "val", "thresholds": {"a": 0.9}}}
    scores = told(binary(400, shares=(0.3,)), FittedOnVal(operating_points=points))
    share = scores["operating_points"]["screen"]["classes"]["a"]["sensitivity"]
    assert f"a at screen has a sensitivity of {wording.percent(share)}." in the("points", scores)["text"]
    youden = {"youden": {**points["screen"], "goal": "youden", "value": None}}  # promises nothing
    assert "points" not in rules(told(binary(400, shares=(0.3,)), FittedOnVal(operating_points=youden)))


def lesions(n=300):
    """Most are a; b is sometimes taken for a; all of the 11 c are taken for a, and none of anything for c, though c is
    ranked well."""
    true = np.r_[np.zeros(n - 111, int), np.ones(100, int), np.full(11, 2)]
    logits = np.zeros((n, 3))
    logits[:, 0] = 2
    logits[true == 1, 1] = np.where(np.arange(100) < 20, 3, 0)
    logits[: n - 111, 1] = np.where(np.arange(n - 111) < 25, 3, 0)
    logits[true == 2, 2] = 1
    return table(np.eye(3)[true], logits + np.random.default_rng(0).normal(size=(n, 3)) / 10, "multiclass")


def test_an_accuracy_below_the_largest_class_is_named_with_it():
    scores = told(lesions())
    by_a, accuracy = 189 / 300, scores["overall"]["accuracy"]["value"]
    assert scores["baseline"]["answer"] == "a"
    assert scores["baseline"]["overall"]["accuracy"] == by_a
    assert accuracy < by_a
    assert scores["baseline"]["gains"]["accuracy"]["value"] == pytest.approx(accuracy - by_a)
    harm = the("baseline", scores)
    assert harm["short"] == "accuracy is not above always predicting a"
    assert f"is not above that of always predicting a, {by_a:.3f}: the difference is -0.0" in harm["text"]


def test_an_accuracy_within_chance_of_the_largest_class_is_said_so():
    true = np.r_[np.zeros(30, int), np.ones(20, int)]
    logits = np.eye(2)[np.where(np.arange(50) < 33, 0, true)] * 2
    scores = told(table(np.eye(2)[true], logits, "multiclass"))
    gain = scores["baseline"]["gains"]["accuracy"]
    assert gain["low"] > 0
    assert "baseline" not in rules(scores)
    scores["baseline"]["gains"]["accuracy"]["low"] = -0.01
    assert "is not shown to be above" in harms.baseline(scores).text


def test_a_class_that_is_never_predicted_is_named_and_not_praised():
    scores = told(lesions())
    assert scores["classes"]["c"]["auroc"]["value"] > 0.95
    harm = the("never found", scores)
    assert harm["text"] == "Never predicted: c (0 of 11)."
    assert harm["classes"] == ["c"]
    said = " ".join(wording.verdict(scores, "test"))
    assert "The highest AUROC is that of c" not in said
    assert "never found: c" in said
    assert "always predicting a gives 0.630" in said


def test_a_multiclass_answer_is_the_most_probable_class_whatever_thresholds_were_chosen():
    """c alone against the rest is found at its threshold; the answer is still never c."""
    points = {"youden": {"goal": "youden", "value": None, "split": "val", "thresholds": {"c": 0.05}}}
    scores = told(lesions(), FittedOnVal(operating_points=points))
    assert scores["operating_points"]["youden"]["classes"]["c"]["sensitivity"]["value"] > 0.9
    assert the("never found", scores)["classes"] == ["c"]


def test_predicted_but_never_rightly_and_too_few_to_say():
    true = np.r_[np.zeros(40, int), np.ones(10, int)]
    logits = 2 * np.eye(2)[np.r_[np.ones(3, int), np.zeros(47, int)]]
    scores = told(table(np.eye(2)[true], logits, "multiclass"))
    assert the("never found", scores)["text"] == "Predicted, but never correctly: b (0 of 10)."
    few = told(table(np.eye(2)[true[:45]], logits[:45], "multiclass"))  # 0 of 5 may be a sensitivity of one half
    assert few["classes"]["b"]["sensitivity"]["value"] == 0
    assert "never found" not in rules(few)


def test_a_finding_counts_as_found_where_its_own_threshold_finds_it():
    test = binary(400, shares=(0.1,), offset=-6.0)  # no probability reaches 0.5
    assert the("never found", told(test))["text"].startswith("Never predicted: a (0 of ")
    points = {"screen": {"goal": "sensitivity", "value": 0.9, "split": "val", "thresholds": {"a": 0.0005}}}
    assert "never found" not in rules(told(test, FittedOnVal(operating_points=points)))


def test_probabilities_worse_than_the_prevalence_are_named_unless_a_calibration_mends_them():
    test = binary(400, shares=(0.1,), offset=4.0)
    harm = the("baseline", told(test))
    assert harm["classes"] == ["a"]
    assert "Images may still be ranked well" in harm["text"]
    assert "baseline" not in rules(told(test, FittedOnVal(platt(1.0, -4.0))))


def test_val_and_test_that_disagree_are_both_reported():
    val, test = binary(300, 1, shares=(0.3,), apart=3.5), binary(300, 2, shares=(0.3,), apart=1.5)
    scores = told(test, val=val)
    before = ASSESSMENT.score(val, FittedOnVal())["macro"]["auroc"]
    said = f"AUROC {wording.interval(before)} on val, {wording.interval(scores['macro']['auroc'])} on test"
    assert said in the("val and test", scores)["text"]
    assert "val and test" not in rules(told(binary(300, 3, shares=(0.3,), apart=3.5), val=val))


def test_the_most_harmful_comes_first_in_verdict_and_warnings():
    val, test = binary(300, 1, shares=(0.3,), apart=3.5), binary(300, 2, shares=(0.3,), apart=1.5, offset=-8.0)
    about = {"split": "val", "n": 300, "patients": 300}
    sets = Conformal("multilabel", ["a"], 0.1, {"a": {"yes": 0.5, "no": 0.0}}, about)
    points = {"screen": {"goal": "sensitivity", "value": 0.9, "split": "val", "thresholds": {"a": 0.999}}}
    scores = told(test, FittedOnVal(platt(1.0, -8.0), points, {}, sets), val)
    assert rules(scores) == ["calibration", "sets", "points", "never found", "val and test"]
    assert scores["warnings"][:5] == [harm["text"] for harm in scores["harms"]]
    first = wording.verdict(scores, "test")[0]
    assert first == f"Before use: {'; '.join(harm['short'] for harm in scores['harms'])}."
    assert not any(harm["text"] in first for harm in scores["harms"])


@pytest.mark.parametrize("make", [binary, several])
def test_a_good_network_is_not_accused(make):
    """Over worlds in which every probability means what it says, no rule fires in more than 2 of 15; of 300 such worlds
    none did in more than 5 %."""
    fired: dict[str, int] = {}
    for world in range(15):
        val, test = make(200, 2 * world + 1), make(200, 2 * world + 2)
        for rule in rules(told(test, ASSESSMENT.fit(val), val)):
            fired[rule] = fired.get(rule, 0) + 1
    assert all(times <= 2 for times in fired.values()), fired


def test_limits_widen_with_the_number_of_looks():
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert harms.stretched(score, 1) == pytest.approx((0.4, 0.6))
    low, high = harms.stretched(score, 14)
    assert (0.5 - low, high - 0.5) == pytest.approx((0.1 * 2.9137 / 1.96, 0.1 * 2.9137 / 1.96), rel=1e-3)
    assert harms.stretched({"value": 0.5, "low": None, "high": None}, 1) == (None, None)


def test_nothing_fitted_is_changed_by_what_test_says():
    fitted = FittedOnVal(platt(1.0, 2.0))
    kept = copy.deepcopy(fitted)
    scores = told(binary(400, shares=(0.3,)), fitted)
    assert rules(scores)
    assert fitted == kept
    assert scores["calibration"]["classes"]


def test_scores_of_an_older_run_have_no_harms_and_still_a_verdict():
    scores = told(lesions())
    for key in ("harms", "baseline"):
        del scores[key]
    assert wording.verdict(scores, "test")[0].startswith(
        "On the test split (300 images of 300 patients) the accuracy is"
    )


def test_an_empty_table_has_no_harms():
    empty = Predictions.from_arrays([], [], ["a", "b"], "multiclass", np.zeros((0, 2)), np.zeros((0, 2)))
    assert told(empty)["harms"] == []
