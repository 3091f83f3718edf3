"""The assessment: what is fitted on val, what stands in scores.json, and when it warns."""

import json

import numpy as np
import pandas as pd
import pytest

from finetune.errors import FinetuneError
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.detection.assessment import DetectionAssessment, DetectionFit
from finetune.evaluation.detection.baseline import baseline
from finetune.evaluation.detection.calibration import calibrated_scores, score_reliability
from finetune.evaluation.detection.comparison import Candidate, compare
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.image_level import image_level
from finetune.evaluation.detection.subgroups import subgroups
from finetune.evaluation.detection.summary import summarise
from finetune.evaluation.detection.thresholds import best_threshold, evaluate_operating_points
from finetune.statistics.rates import rate
from tests.evaluation.detection.worlds import boxes, random_table, table

BOX, ELSEWHERE = (0, 0, 10, 10), (50, 50, 60, 60)
QUICK = DetectionAssessment(resamples=100)


@pytest.fixture(scope="module")
def val():
    return random_table(np.random.default_rng(0))


@pytest.fixture(scope="module")
def test_split():
    return random_table(np.random.default_rng(1))


@pytest.fixture(scope="module")
def scores(val, test_split):
    fitted = QUICK.fit(val)
    assert not fitted.notes
    return QUICK.score(test_split, fitted, val=QUICK.score(val, fitted, split="val"))


def limits(value):
    """Every {value, low, high} within a structure."""
    if isinstance(value, dict):
        if {"value", "low", "high"} <= set(value):
            yield value
        else:
            for part in value.values():
                yield from limits(part)
    elif isinstance(value, list):
        for part in value:
            yield from limits(part)


def test_scores_are_plain_and_their_intervals_hold_them(scores):
    json.dumps(scores, allow_nan=False)
    every = list(limits(scores))
    assert len(every) > 50
    for score in every:
        if score["low"] is None:
            assert score["reason"]
        else:
            assert score["low"] < score["high"]
            assert score["low"] <= score["value"] <= score["high"]
    assert set(scores["macro"]) == {"ap50", "ap", "ap75", "froc"}
    assert set(scores["operating_points"]) == {"fp_0.5", "fp_1", "fp_2"}
    assert scores["coco"]["all"]["ap50"] == pytest.approx(scores["macro"]["ap50"]["value"])
    assert scores["harms"] == []


def test_same_seed_same_scores(val, test_split, scores):
    fitted = QUICK.fit(val)
    again = QUICK.score(test_split, fitted, val=QUICK.score(val, fitted, split="val"))
    assert again == scores


def test_few_patients_get_no_invented_interval():
    few = table([[(BOX, 0)]] * 3, [[(BOX, 0.9, 0)], [(ELSEWHERE, 0.8, 0)], []])
    summary = summarise(few, n_boot=50)
    assert summary["classes"]["a"]["ap50"]["reason"] == "fewer than 10 patients"
    assert summary["classes"]["a"]["ap50"]["low"] is None
    assert any("Fewer than 10 patients" in sentence for sentence in summary["warnings"])
    fitted = QUICK.fit(few)
    assert fitted.operating_points == {}
    assert fitted.calibration is None
    assert fitted.notes


def test_all_found_is_an_exact_limit_and_no_truth_is_undefined():
    every = table([[(BOX, 0)]] * 12, [[(BOX, 0.9, 0)]] * 12, ["a", "b"])
    summary = summarise(every, n_boot=50)
    ap = summary["classes"]["a"]["ap50"]
    assert (ap["value"], ap["high"]) == (1.0, 1.0)
    assert ap["low"] == pytest.approx(0.025 ** (1 / 12))
    assert summary["classes"]["b"]["froc"] == {"value": None, "low": None, "high": None, "reason": "no true boxes"}
    assert summary["macro"]["ap50"]["n_undefined"] == 1
    assert summary["warnings"][0].startswith("No true boxes")
    assert summary["image_level"]["any"]["auroc"]["value"] is None


def test_a_table_without_boxes_or_images_is_scored():
    for empty in (table([[], []], [[], []]), table([], [])):
        scores = DetectionAssessment(resamples=20).score(empty, DetectionFit())
        assert scores["macro"]["ap50"]["value"] is None
        json.dumps(scores, allow_nan=False)


def test_threshold_by_hand():
    score, wrong = np.array([0.9, 0.8, 0.6, 0.4, 0.2]), np.array([0, 1, 0, 1, 0])
    assert best_threshold(score, wrong, 0) == pytest.approx(0.85)
    assert best_threshold(score, wrong, 1) == pytest.approx(0.5)
    assert best_threshold(score, wrong, 2) == pytest.approx(0.1)
    assert best_threshold(np.array([1.0, 1.0]), np.array([1, 0]), 0) is None
    assert best_threshold(np.array([0.7, 0.7, 0.5]), np.array([0, 1, 0]), 0) == pytest.approx(0.85)
    assert best_threshold(np.zeros(0), np.zeros(0), 1) is None


def test_operating_point_by_hand():
    detected = [[(BOX, 0.9, 0), (ELSEWHERE, 0.8, 0)], [(BOX, 0.3, 0), (ELSEWHERE, 0.7, 0)]]
    points = {"fp_1": {"goal": "false_positives", "value": 1.0, "split": "val", "thresholds": {"a": 0.7}}}
    point = evaluate_operating_points(table([[(BOX, 0)]] * 2, detected), points)["fp_1"]
    of_class = point["classes"]["a"]
    assert (of_class["tp"], of_class["fp"], of_class["fn"]) == (1, 2, 1)
    assert of_class["sensitivity"]["value"] == 0.5
    assert of_class["false_positives"]["value"] == 1.0
    assert of_class["ppv"]["value"] == pytest.approx(1 / 3)
    assert point["criterion"] == "1 false positive per image"


def test_thresholds_meet_their_goal_where_they_were_chosen(val):
    fitted = QUICK.fit(val)
    points = evaluate_operating_points(val, fitted.operating_points)
    for point in points.values():
        for of_class in point["classes"].values():
            assert 0.9 * point["goal_value"] <= of_class["false_positives"]["value"] <= point["goal_value"]


def test_rates():
    none = rate(np.zeros(20), np.ones(20))
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(3.689 / 20, abs=1e-3)
    some = rate(np.arange(20.0), np.full(20, 2))
    assert some.low < some.value == 9.5 / 2 < some.high
    assert rate(np.ones(3), np.ones(3)).reason == "fewer than 10 patients"


def test_image_level_by_hand():
    detections = table([[(BOX, 0)], [(BOX, 0)], [], [(BOX, 0, 1)]], [[(BOX, 0.9, 0)], [], [(BOX, 0.5, 0)], []])
    scores = image_level(detections)["any"]
    assert (scores["positives"], scores["negatives"], scores["unknown"]) == (2, 1, 1)
    assert scores["auroc"]["value"] == 0.5


def test_reliability_by_hand():
    detections = table([[(BOX, 0)]] * 2, [[(BOX, 0.8, 0), (ELSEWHERE, 0.8, 0)], [(BOX, 0.4, 0)]])
    of_class = score_reliability(detections, n_boot=10)["a"]
    assert [b["count"] for b in of_class["bins"]] == [1, 2]
    assert of_class["bins"][1]["precision"]["value"] == 0.5
    assert of_class["ece"]["value"] == pytest.approx((0.6 + 2 * 0.3) / 3)


def test_calibration_brings_scores_to_their_precision(val, test_split, scores):
    fitted = QUICK.fit(val)
    assert isinstance(fitted.calibration, Calibration)
    before, after = (scores["calibration"]["classes"]["c0"][when]["ece"]["value"] for when in ("before", "after"))
    assert after < before
    boxes_of_split = test_split.boxes
    calibrated = calibrated_scores(fitted.calibration, boxes_of_split.score, boxes_of_split.label)
    assert ((calibrated > 0) & (calibrated < 1)).all()
    assert np.isfinite(calibrated_scores(fitted.calibration, np.array([0.0, 1.0]), np.array([0, 1]))).all()


def test_baseline_by_hand_and_its_harm():
    # the box stands in the same place in half of the images; the detector gives it everywhere with the same score
    truths = [[(BOX, 0)] if i % 2 else [] for i in range(40)]
    fixed = table(truths, [[(BOX, 0.5, 0)]] * 40)
    trivial = baseline(fixed)["classes"]["a"]
    assert (trivial["sensitivity"], trivial["false_positives"], trivial["ap50"]) == (1, 0.5, 0.5)
    assert trivial["froc"] == pytest.approx(5 / 7)  # from 1/2 false positives per image on
    scores = QUICK.score(fixed, DetectionFit())
    assert [harm["rule"] for harm in scores["harms"]] == ["baseline"]
    assert scores["warnings"][0] == scores["harms"][0]["text"]


def test_boxes_of_images_of_other_sizes_are_compared_in_parts_of_the_image():
    true = [(boxes(BOX), [0]), (boxes((0, 0, 100, 100)), [0])]
    none = [(boxes(), [], [])] * 2
    sizes = np.array([[20, 20], [200, 200.0]])
    detections = Detections.from_arrays(["1", "2"], ["1", "2"], ["a"], true, none, sizes=sizes)
    assert baseline(detections)["classes"]["a"]["sensitivity"] == 1


def test_thresholds_that_give_more_false_positives_are_a_harm(val):
    noisy = random_table(np.random.default_rng(2), false=8.0)
    fitted = QUICK.fit(val)
    scores = QUICK.score(noisy, fitted, val=QUICK.score(val, fitted, split="val"))
    rules = [harm["rule"] for harm in scores["harms"]]
    assert rules[0] == "points"
    assert "instead of 0.5" in scores["harms"][0]["text"]


def test_what_is_never_found_is_a_harm(val):
    blind = random_table(np.random.default_rng(3), hit_rate=0.0)
    rules = {harm["rule"]: harm for harm in QUICK.score(blind, QUICK.fit(val), val=summarise(val, n_boot=50))["harms"]}
    assert rules["never found"]["classes"] == ["c0", "c1"]
    assert "val and test" in rules


def test_subgroups_compare_the_groups():
    rng = np.random.default_rng(4)
    good, bad = random_table(rng, hit_rate=0.95), random_table(rng, hit_rate=0.3)
    images = pd.concat([good.images, bad.images], ignore_index=True)
    images["sample"] = [f"{i}.png" for i in range(len(images))]
    images["patient"] = [f"{'gb'[i >= len(good)]}{name}" for i, name in enumerate(images["patient"])]
    images["site"] = np.repeat(["good", "bad"], [len(good), len(bad)])
    parts = []
    for a, b in ((good.truths, bad.truths), (good.boxes, bad.boxes)):
        columns = {name: np.concatenate([vars(a)[name], vars(b)[name]]) for name in vars(a)}
        columns["image"] = np.r_[a.image, b.image + len(good)]
        parts.append(type(a)(**columns))
    both = Detections(images, *parts, good.classes, ["site"]).checked()
    of_column = subgroups(both, n_boot=100)["site"]
    assert (of_column["worst"], of_column["best"]) == ("bad", "good")
    alone = summarise(good, n_boot=0)["macro"]["froc"]["value"]
    assert of_column["groups"]["good"]["macro"]["froc"]["value"] == pytest.approx(alone)
    scores = QUICK.score(both, DetectionFit())
    assert any("lower for site = bad than for good" in sentence for sentence in scores["warnings"])
    with pytest.raises(FinetuneError, match="no such metadata column"):
        subgroups(both, ["sex"])


def test_comparison_is_paired(val):
    rng = np.random.default_rng(5)
    found = val.boxes
    shuffled = type(found)(found.image, found.label, found.corners, rng.random(len(found)))
    worse = Detections(val.images, val.truths, shuffled, val.classes).reordered(rng.permutation(len(val)))
    result = compare([Candidate("good", [val, val], [0, 1]), Candidate("worse", [worse], [0])], n_boot=100)
    pair = result["pairs"][0]
    alone = [summarise(part, n_boot=0)["macro"]["ap50"]["value"] for part in (val, worse)]
    assert pair["scores"]["macro_ap50"]["value"] == pytest.approx(alone[0] - alone[1])
    assert pair["scores"]["macro_ap50"]["low"] > 0
    assert pair["scores"]["macro_ap50"]["p"] < 0.01
    assert pair["classes"]["c0"]["froc"]["p_holm"] >= pair["classes"]["c0"]["froc"]["p"]
    same = compare([Candidate("a", [val], [0]), Candidate("b", [val], [0])], n_boot=50)["pairs"][0]["scores"][
        "macro_froc"
    ]
    assert (same["value"], same["p"], same["low"]) == (0, 1, None)


def test_what_cannot_be_compared_is_named(val, test_split):
    with pytest.raises(FinetuneError, match="a and b cannot be compared: their"):
        compare([Candidate("a", [val], [0]), Candidate("b", [test_split], [0])])
    with pytest.raises(FinetuneError, match="only in a"):
        compare([Candidate("a", [val], [0]), Candidate("b", [val.select(np.arange(len(val)) > 0)], [0])])
    renamed = Detections(val.images, val.truths, val.boxes, ["c0", "z"])
    with pytest.raises(FinetuneError, match="classes differ"):
        compare([Candidate("a", [val], [0]), Candidate("b", [renamed], [0])])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"false_positives": [0]}, "must be a number above 0"),
        ({"false_positives": "1"}, "must be a list"),
        ({"resamples": -1}, "must be 0 or more"),
        ({"hit": "middle"}, "evaluation.hit=middle is not known"),
        ({"calibration": "magic"}, "evaluation.calibration=magic"),
        ({"subgroups": "sex"}, "must be all, or a list"),
    ],
)
def test_settings_fail_at_construction(option, message):
    with pytest.raises(FinetuneError, match=message):
        DetectionAssessment(**option)


def test_without_val_nothing_is_fitted():
    assert QUICK.fit(None).notes[0].startswith("There is no val split")
