"""What is chosen on val, the scores of test, what speaks against a run, and groups of images."""

import json

import numpy as np
import pytest

from finetune.errors import FinetuneError
from finetune.evaluation.segmentation.assessment import SegmentationAssessment, SegmentationFit
from finetune.evaluation.segmentation.cases import THRESHOLDS
from finetune.evaluation.segmentation.collect import CaseCollector
from finetune.evaluation.segmentation.harms import harms
from finetune.evaluation.segmentation.summary import summarise
from tests.evaluation.segmentation.tables import case_table, dice_table

NAN = np.nan


def with_probabilities(n=12, seed=0):
    """Two regions whose probabilities are right from 0.3 on, and from 0.7 on; the second is in few images."""
    rng = np.random.default_rng(seed)
    collector = CaseCollector(["a", "b", "c"], overlapping=True)
    for i in range(n):
        truth = rng.integers(0, 4, (6, 6))
        inside = [(truth >> k) & 1 == 1 for k in range(2)]
        a = np.where(inside[0], 0.32, 0.28)
        b = np.where(inside[1], 0.72, 0.68)
        truth[...] |= 4 if i < 3 else 0
        collector.update_probabilities(f"{i}", f"p{i}", np.stack([a, b, a]).astype(np.float32), truth)
    return collector.table()


def test_thresholds_are_those_of_the_highest_dice_on_val():
    fitted = SegmentationAssessment().fit(with_probabilities())
    assert fitted.thresholds == {"a": 0.3, "b": 0.7, "c": 0.5}
    assert fitted.notes == ["c: fewer than 10 patients of val have it, so its threshold is 0.5."]
    assert fitted.fitted_on == {"split": "val", "n": 12, "patients": 12}
    scores = SegmentationAssessment().score(with_probabilities(seed=1), fitted)
    assert scores["classes"]["a"]["dice"]["value"] == scores["classes"]["b"]["dice"]["value"] == 1
    assert scores["classes"]["c"]["dice"]["value"] == 0
    assert scores["thresholds"] == fitted.thresholds
    assert scores["thresholds_fitted_on"]["split"] == "val"
    assert fitted.notes[0] in scores["warnings"]


def test_of_equal_thresholds_the_nearest_to_one_half_is_chosen():
    curve = np.zeros((12, 1, len(THRESHOLDS), 2), int)
    curve[..., 0], curve[..., 1] = 10, 10  # every threshold is right
    val = case_table([[10, 10, 10]] * 12, curve=curve)
    assert SegmentationAssessment().fit(val).thresholds == {"a": 0.5}
    curve[:, :, 9:, 0] = 0  # from 0.5 on nothing is
    assert SegmentationAssessment().fit(case_table([[0, 10, 10]] * 12, curve=curve)).thresholds == {"a": 0.45}


def test_where_nothing_can_be_chosen():
    assessment = SegmentationAssessment()
    assert "no val split" in assessment.fit(None).notes[0]
    assert "no probabilities" in assessment.fit(dice_table([0.5])).notes[0]
    assert SegmentationAssessment(thresholds=False).fit(with_probabilities()) == SegmentationFit()
    exclusive = CaseCollector(["background", "a"], False)
    exclusive.update("x", "p", np.ones((2, 2), int), np.ones((2, 2), int))
    assert assessment.fit(exclusive.table()) == SegmentationFit()
    scores = assessment.score(exclusive.table(), SegmentationFit())
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    with pytest.raises(FinetuneError, match=r"evaluation\.subgroups=sex must be all, or a list: \[sex\]"):
        SegmentationAssessment(subgroups="sex")
    with pytest.raises(FinetuneError, match=r"evaluation\.thumbnails=-1"):
        SegmentationAssessment(thumbnails=-1)
    with pytest.raises(FinetuneError, match=r"no such metadata column. There are \['age'\]"):
        SegmentationAssessment(subgroups=["sex"]).check_columns(["age"])


def rules(table, val=None):
    return [harm["rule"] for harm in harms(summarise(table), "test", val)]


def test_a_region_that_is_never_found():
    table = case_table([[0, 100, 100]] * 20)
    assert rules(table) == ["never found"]
    text = harms(summarise(table))[0]["text"]
    assert text == "Not a single right pixel: a (0 of 20 images)."
    assert "never found" not in rules(case_table([[0, 100, 100]] * 4))  # too few to say


def test_a_network_no_better_than_marking_everything():
    rng = np.random.default_rng(0)
    both = rng.integers(40, 60, 20)
    counts = np.stack([both, np.full(20, 100), np.full(20, 100)], axis=1)[:, None]
    fired = harms(summarise(case_table(counts, pixels=200)))  # everything has a Dice of 2 / 3
    assert [harm["rule"] for harm in fired] == ["baseline"]
    assert "a 0.503 (0.475–0.531) against 0.667" in fired[0]["text"]


def test_false_alarms():
    counts = [[0, 0, 50]] * 20 + [[90 + i % 5, 100, 100] for i in range(20)]
    fired = harms(summarise(case_table(counts)))
    assert "false alarms" in [harm["rule"] for harm in fired]
    assert "a in 100.0 %" in next(harm["text"] for harm in fired if harm["rule"] == "false alarms")


def test_a_mean_far_below_the_median():
    dice = np.r_[np.zeros(12), np.linspace(0.9, 0.99, 28)]
    fired = harms(summarise(dice_table(dice)))
    assert [harm["rule"] for harm in fired] == ["failures"]
    assert "12 of 40 images missed" in fired[0]["text"]
    assert rules(dice_table(np.linspace(0.85, 0.99, 40))) == []


def test_val_and_test_that_disagree():
    val = summarise(dice_table(np.linspace(0.9, 0.99, 30)))
    assert rules(dice_table(np.linspace(0.6, 0.69, 30)), val) == ["val and test"]
    assert rules(dice_table(np.linspace(0.9, 0.99, 30)), val) == []


def test_harms_and_examples_come_with_the_scores():
    dice = np.r_[np.zeros(12), np.linspace(0.9, 0.99, 28)]
    val = SegmentationAssessment().score(dice_table(np.linspace(0.9, 0.99, 40)), SegmentationFit(), split="val")
    scores = SegmentationAssessment(thumbnails=2).score(dice_table(dice), SegmentationFit(), val=val)
    assert [harm["rule"] for harm in scores["harms"]] == ["failures", "val and test"]
    assert scores["warnings"][:2] == [harm["text"] for harm in scores["harms"]]
    assert [case["sample"] for case in scores["examples"]["worst"]] == ["0.png", "1.png"]
    assert "examples" not in SegmentationAssessment(thumbnails=0).score(dice_table(dice), SegmentationFit())


def test_groups_and_the_gap_between_them():
    rng = np.random.default_rng(0)
    dice = np.r_[rng.uniform(0.85, 0.95, 30), rng.uniform(0.6, 0.7, 30), [0.5]]
    table = dice_table(dice, sex=["F"] * 30 + ["M"] * 30 + [None], site=["x"] * 61)
    scores = SegmentationAssessment().score(table, SegmentationFit())
    about = scores["subgroups"]["sex"]
    assert list(about["groups"]) == ["F", "M", "unknown"]
    assert about["groups"]["F"]["classes"]["a"]["dice"]["value"] == pytest.approx(dice[:30].mean(), abs=1e-3)
    assert about["groups"]["unknown"]["note"] == "fewer than 10 patients"
    gap = about["gaps"]["macro"]["dice"]
    assert (gap["worst"], gap["best"], gap["pairs"]) == ("M", "F", 1)
    assert gap["value"] == pytest.approx(dice[:30].mean() - dice[30:60].mean(), abs=1e-3)
    assert 0 < gap["low"] < gap["value"] < gap["high"]
    assert any(text.startswith("Dice is lower for sex = M than for F: by 0.2") for text in scores["warnings"])
    assert "left_out" in scores["subgroups"]["site"]
    assert "hd95" not in about["gaps"]["macro"]


def test_distances_of_groups_are_worse_where_longer():
    distances = np.r_[np.linspace(1, 2, 20), np.linspace(5, 6, 20)]
    table = dice_table(np.full(40, 0.9), distances=np.stack([distances] * 2, 1), sex=["F"] * 20 + ["M"] * 20)
    gap = SegmentationAssessment().score(table, SegmentationFit())["subgroups"]["sex"]["gaps"]["classes"]["a"]["hd95"]
    assert (gap["worst"], gap["best"]) == ("M", "F")
    assert gap["value"] == pytest.approx(4)
    assert gap["low"] > 0
