"""What stands in scores.json."""

import json
import math

import numpy as np
import pytest
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st

from finetune.evaluation.classification.assessment import Assessment
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import Scorer
from finetune.evaluation.classification.summary import summarise
from finetune.files import plain, write_json_atomic
from finetune.statistics.intervals import delong
from finetune.statistics.ranking import auroc
from tests.evaluation.classification.test_calibration import binary, several
from tests.evaluation.classification.test_predictions import NAN, table
from tests.evaluation.classification.test_scores import answers
from tests.statistics.test_intervals import simulated


def several_classes(patients=80, seed=0):
    """Classes: a usual one, a rare one, one without positives, one of which nothing is known."""
    rng = np.random.default_rng(seed)
    target, score, patient = simulated(rng, patients, 0.8)
    rare = np.where(np.isin(np.arange(len(target)), [3, 40, 90]), 1.0, 0.0)
    targets = np.stack([target, rare, np.zeros(len(target)), np.full(len(target), NAN)], axis=1)
    targets[:5, 0] = NAN
    logits = np.stack([score, rare + rng.normal(size=len(rare)), score, score], axis=1)
    return table(targets, logits, classes=["usual", "rare", "never", "dark"], patients=[f"p{i}" for i in patient])


def every_score(found):
    """All {"value", "low", "high"} in a summary."""
    if isinstance(found, dict):
        if "value" in found:
            yield found
        else:
            for item in found.values():
                yield from every_score(item)


def test_the_form_others_build_on():
    found = summarise(several_classes(), n_boot=50)
    assert set(found["macro"]["auroc"]) >= {"value", "low", "high"}
    usual = found["classes"]["usual"]
    assert usual["auroc"]["low"] < usual["auroc"]["value"] < usual["auroc"]["high"]
    assert (usual["n"], usual["unknown"]) == (found["n"], 5)
    assert usual["positives"] + usual["negatives"] + usual["unknown"] == usual["n"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_undefined_is_null_left_out_and_counted():
    found = summarise(several_classes(), n_boot=50)
    assert found["classes"]["never"]["auroc"] == {"value": None, "low": None, "high": None, "reason": "no positives"}
    assert found["classes"]["never"]["specificity"]["value"] is not None
    dark = found["classes"]["dark"]
    assert all(score["value"] is None for score in every_score(dark))
    assert found["macro"]["auroc"]["n_undefined"] == 2
    each = [found["classes"][name]["auroc"]["value"] for name in ("usual", "rare")]
    assert found["macro"]["auroc"]["value"] == pytest.approx(np.mean(each))


def test_warnings_name_the_classes():
    found = summarise(several_classes(), n_boot=10)
    never, dark, rare = found["warnings"]
    assert never == "No positives, so AUROC is undefined and left out of the macro mean: never."
    assert "no score is defined: dark." in dark
    assert rare.endswith("uncertain: rare.")
    assert found["classes"]["rare"]["note"] == "fewer than 10 positive patients"
    assert "note" not in found["classes"]["usual"]


def test_values_and_intervals_are_those_of_their_own_files():
    given = several_classes()
    found = summarise(given, n_boot=50)
    usual = found["classes"]["usual"]["auroc"]
    assert usual["value"] == pytest.approx(auroc(given.truth[:, 0], given.logits[:, 0]))
    patient = np.unique(given.patients, return_inverse=True)[1]
    interval = delong(given.truth[:, 0], given.logits[:, 0], patient).interval()
    assert (usual["low"], usual["high"]) == (interval.low, interval.high)
    values = Scorer(given).values()
    assert found["macro"]["brier"]["value"] == values.macro()["brier"][0]
    assert found["micro"]["average_precision"]["value"] == values.micro["average_precision"][0]


def test_every_defined_value_lies_within_its_interval():
    for score in every_score(summarise(several_classes(), n_boot=200)):
        if score["low"] is not None:
            assert score["low"] <= score["value"] <= score["high"]


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    given = several_classes()
    shuffled = Predictions(given.frame.sample(frac=1, random_state=1), given.classes, given.kind)
    found, again = summarise(given, n_boot=40), summarise(shuffled, n_boot=40)
    for one, other in zip(every_score(found), every_score(again), strict=True):
        for key, number in one.items():
            same = other[key] if other[key] is None or key == "reason" else pytest.approx(other[key], rel=1e-9)
            assert number == same
    assert found["macro"]["f1"]["low"] != summarise(given, n_boot=40, seed=1)["macro"]["f1"]["low"]


def test_multiclass():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 90)
    given = table(np.eye(3)[true], 2 * np.eye(3)[true] + rng.normal(size=(90, 3)), "multiclass")
    found = summarise(given, n_boot=50)
    right = (given.logits.argmax(axis=1) == true).mean()
    assert found["overall"]["accuracy"]["value"] == pytest.approx(right)
    assert found["overall"]["accuracy"]["low"] < right < found["overall"]["accuracy"]["high"]
    assert np.trace(found["confusion"]["counts"]) == pytest.approx(right * 90)
    assert "accuracy" not in found["macro"]
    assert found["threshold"] is None


def test_perfect_answers_keep_an_honest_interval():
    targets = np.repeat([[1.0], [0.0]], 20, axis=0)
    found = summarise(table(targets, 9 * targets - 4), n_boot=50)
    for metric in ("auroc", "accuracy", "sensitivity"):
        for where in (found["classes"]["a"], found["macro"]):
            assert where[metric]["value"] == where[metric]["high"] == 1
            assert 0.8 < where[metric]["low"] < 1
    no_spread = {"value": 1, "low": None, "high": None, "reason": "the patients show no spread"}
    assert found["classes"]["a"]["f1"] == no_spread


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
@settings(max_examples=60, deadline=None)
@over(data=st.data())
def test_no_interval_is_without_width_or_reason(kind, data):
    """Of small random tables, with ties, unknown labels and few patients: what is certain of nothing says so."""
    given, seed = data.draw(answers(kind))
    if data.draw(st.booleans()):  # a patient for each image: up to 30, enough to be resampled
        given = table(given.targets, given.logits, kind)
    for score in every_score(summarise(given, n_boot=40, seed=seed)):
        assert_honest(score)


def assert_honest(score):
    if score["value"] is None:
        assert score["low"] is None
    if score["low"] is None:
        assert score["high"] is None
        assert score["reason"]
    else:
        assert score["low"] <= score["value"] <= score["high"]
        assert score["high"] - score["low"] > 1e-9
        assert "reason" not in score


@pytest.mark.parametrize("make", [binary, several])
def test_every_score_of_few_patients_has_an_interval_or_a_reason(make):
    """The same of what was fitted on val: operating points, calibration, sets, unsure answers."""
    assessment = Assessment(operating_points={"youden": "youden"}, resamples=40)
    fitted = assessment.fit(make(300, seed=1))
    assert fitted.calibration
    for n in (1, 2, 5, 12):
        for score in every_score(assessment.score(make(n, seed=2), fitted)):
            assert_honest(score)


def test_two_right_images_of_two_are_not_certain():
    found = summarise(table([[1.0], [0.0]], [[2.0], [-1.0]]), n_boot=100)
    accuracy = found["macro"]["accuracy"]
    assert (accuracy["value"], accuracy["high"]) == (1, 1)
    assert accuracy["low"] == pytest.approx(0.025**0.5)  # Clopper and Pearson's limit of 2 of 2
    assert found["classes"]["a"]["sensitivity"]["low"] == pytest.approx(0.025)  # of one
    assert found["macro"]["log_loss"]["reason"] == "fewer than 10 patients"
    assert found["macro"]["auroc"]["low"] == pytest.approx(0.025)


def test_one_patient_and_equal_answers_have_no_macro_interval():
    targets, logits = np.tile([[1.0, 0.0], [0.0, 1.0]], (10, 1)), np.arange(40.0).reshape(20, 2) % 7
    one = summarise(table(targets, logits, patients=["p"] * 20), n_boot=50)["macro"]
    assert one["brier"]["reason"] == "one patient, so the spread between patients is unknown"
    assert one["auroc"]["low"] is None
    assert one["auroc"]["reason"] == "fewer than 2 positive or negative patients"
    equal = summarise(table(targets, np.zeros((20, 2))), n_boot=50)["macro"]
    for metric, value in (("auroc", 0.5), ("brier", 0.25), ("log_loss", math.log(2))):
        assert equal[metric]["value"] == pytest.approx(value)
        assert equal[metric]["low"] is None
        assert equal[metric]["reason"] == "the patients show no spread"


def test_a_single_class_and_its_macro_mean_have_one_interval():
    found = summarise(binary(80, shares=(0.4,)), n_boot=60)
    for metric, score in found["macro"].items():
        own = found["classes"]["a"][metric]
        assert {key: score[key] for key in own} == own


def test_a_rare_class_widens_the_mean_recall():
    """Three images of class c, all found: resamples say that all of them always are."""
    true = np.repeat([0, 1, 2], [60, 57, 3])
    logits = 4 * np.eye(3)[true]
    logits[::3] = np.eye(3)[(true[::3] + 1) % 2]
    logits[-3:] = 4 * np.eye(3)[2]
    found = summarise(table(np.eye(3)[true], logits, "multiclass"), n_boot=100)
    recall, rare = found["overall"]["balanced_accuracy"], found["classes"]["c"]["sensitivity"]
    assert rare["value"] == 1
    assert recall["value"] - recall["low"] > (1 - rare["low"]) / 3 - 1e-9
    assert {key: found["macro"]["sensitivity"][key] for key in recall} == recall


def test_the_calibration_error_is_the_same_in_the_scores_and_beside_its_calibration():
    assessment = Assessment(resamples=60)
    for make in (binary, several):
        told = assessment.score(make(200, seed=2), assessment.fit(make(200, seed=1)))
        for name, each in told["calibration"]["classes"].items():
            for metric in ("ece", "brier", "log_loss"):
                if make is binary:
                    assert each["before"][metric] == pytest.approx(told["classes"][name][metric])
        if make is several:
            for metric in ("ece", "brier", "log_loss"):
                assert told["calibration"]["overall"]["before"][metric] == pytest.approx(told["overall"][metric])


@pytest.mark.parametrize("n", [0, 1])
def test_next_to_nothing_is_not_an_error(n):
    found = summarise(table(np.ones((n, 2)), np.zeros((n, 2))), n_boot=5)
    assert found["macro"]["auroc"]["value"] is None
    assert found["n"] == n
    json.dumps(found, allow_nan=False)


def test_without_resamples_only_closed_forms_have_intervals():
    usual = summarise(several_classes(), n_boot=0)["classes"]["usual"]
    assert usual["auroc"]["low"] is not None
    assert usual["f1"]["low"] is None
    assert usual["f1"]["value"] is not None


def test_json_is_written_whole_and_plain(tmp_path):
    value = {
        "a": np.float32(0.5),
        "b": [NAN, math.inf, np.int64(3)],
        4: np.array([1.0, NAN]),
        "c": (np.bool_(True), None),
    }
    path = write_json_atomic(tmp_path / "scores.json", value)
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [None, None, 3], "4": [1.0, None], "c": [True, None]}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    assert json.loads(path.read_text())["a"] == 0.5
    assert plain("é") == "é"
