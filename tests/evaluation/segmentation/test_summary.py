"""The scores of a split: worked by hand on few images, with what is undefined counted and explained."""

import numpy as np
import pytest

from finetune.evaluation.segmentation import wording
from finetune.evaluation.segmentation.baseline import baseline
from finetune.evaluation.segmentation.by_size import by_size
from finetune.evaluation.segmentation.collect import CaseCollector
from finetune.evaluation.segmentation.examples import examples
from finetune.evaluation.segmentation.summary import summarise
from tests.evaluation.segmentation.tables import case_table, dice_table

NAN = np.nan


def test_scores_of_a_region_worked_by_hand():
    counts = [[4, 4, 4], [2, 4, 4], [0, 4, 0], [0, 0, 4], [0, 0, 0], [NAN, NAN, NAN]]
    distances = [[0, 0], [2, 5], [NAN, NAN], [NAN, NAN], [NAN, NAN], [NAN, NAN]]
    scores = summarise(case_table(np.array(counts)[:, None], distances=distances))
    of_class = scores["classes"]["a"]
    dice = of_class["dice"]
    assert dice["value"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert (dice["n"], dice["undefined"], dice["median"]["value"]) == (4, 1, 0.25)
    assert dice["low"] is None
    assert dice["reason"] == "fewer than 10 patients"
    assert of_class["sensitivity"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert of_class["precision"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert of_class["iou"]["value"] == pytest.approx((1 + 2 / 6) / 4)
    assert (of_class["hd95"]["value"], of_class["hd95"]["n"], of_class["hd95"]["failures"]) == (2.5, 2, 2)
    assert (of_class["n"], of_class["positives"], of_class["negatives"], of_class["unknown"]) == (6, 3, 2, 1)
    assert (of_class["missed"]["count"], of_class["false_alarms"]["count"]) == (1, 1)
    assert of_class["missed"]["value"] == pytest.approx(1 / 3)
    pixels = of_class["pixels"]
    assert (pixels["intersection"], pixels["truth"], pixels["prediction"]) == (6, 12, 12)
    assert pixels["dice"] == 0.5
    assert scores["macro"]["dice"]["value"] == dice["value"]
    assert scores["unit"] == "px"
    assert any("Distances leave out images" in text and "a 2" in text for text in scores["warnings"])


def test_the_macro_mean_leaves_out_undefined_regions():
    counts = np.array([[[2, 4, 4], [0, 0, 0]]] * 12, float)
    counts[:6, 0, 0] = 4
    scores = summarise(case_table(counts, regions=["a", "b"]))
    macro = scores["macro"]["dice"]
    assert macro["value"] == 0.75
    assert (macro["n_classes"], macro["n_undefined"]) == (1, 1)
    assert 0.5 < macro["low"] < 0.75 < macro["high"] < 1
    assert scores["classes"]["b"]["dice"]["reason"] == "no image has the region, and it is never predicted"
    assert "No image has the region, so Dice is 0 or undefined: b." in scores["warnings"]


def test_reasons_why_scores_are_undefined():
    unknown = summarise(case_table(np.full((3, 1, 3), NAN)))["classes"]["a"]
    assert {unknown[score]["reason"] for score in ("dice", "assd")} == {"nothing known"}
    never = summarise(case_table([[0, 5, 0]] * 3))["classes"]["a"]
    assert never["precision"]["reason"] == "never predicted"
    assert never["hd95"]["reason"] == "no image has the region both marked and predicted"
    assert never["hd95"]["failures"] == 3
    absent = summarise(case_table([[0, 0, 5]] * 3))["classes"]["a"]
    assert absent["sensitivity"]["reason"] == "no image has the region"
    unmeasured = summarise(case_table([[5, 5, 5]] * 3))["classes"]["a"]
    assert unmeasured["assd"]["reason"].startswith("not measured")
    assert summarise(CaseCollector(["a"], True).table())["macro"]["dice"]["reason"] == "defined for no region"


def test_distances_in_pixels_and_millimetres_are_not_mixed():
    distances = [[1, 2], [10, 20]]
    scores = summarise(case_table([[4, 4, 4]] * 2, distances=distances, spacing=[(1.0, 1.0), None]))
    assert (scores["unit"], scores["classes"]["a"]["hd95"]["value"], scores["classes"]["a"]["hd95"]["n"]) == (
        "mm",
        2,
        1,
    )
    assert any("spacing of pixels is known for 1 of 2 images" in text for text in scores["warnings"])
    both = summarise(case_table([[4, 4, 4]] * 2, distances=distances, spacing=[(1.0, 1.0)] * 2))
    assert (both["unit"], both["macro"]["hd95"]["value"]) == ("mm", 11)


def test_confusion_of_exclusive_regions():
    collector = CaseCollector(["background", "liver"], False)
    collector.update("a", "p", np.array([[0, 1, 1]]), np.array([[0, 0, 1]]))
    scores = summarise(collector.table())
    assert scores["confusion"] == {"classes": ["background", "liver"], "counts": [[1, 1], [0, 1]]}
    assert "confusion" not in summarise(case_table([[1, 1, 1]]))


def test_baseline_worked_by_hand():
    table = case_table([[50, 100, 50]] * 12 + [[0, 0, 0]], pixels=300)
    about = baseline(table, table.scores("dice"), np.arange(13), 13)
    assert about["classes"]["a"]["everything"] == pytest.approx(12 / 13 * 200 / 400)
    assert about["classes"]["a"]["nothing"] == 0
    assert about["macro"]["dice"] == about["classes"]["a"]["dice"]
    assert about["gains"]["a"]["dice"]["value"] == pytest.approx(100 / 150 - 0.5)  # where both are defined


def test_dice_by_size():
    sizes = np.arange(1, 41) * 10
    dice = np.where(sizes > 200, 0.9, 0.3)
    counts = np.stack([dice * sizes, sizes, sizes], axis=1).round()
    table = case_table(counts[:, None], pixels=10_000)
    about = by_size(table, 0, np.arange(40))
    assert [(part["low"], part["high"], part["n"]) for part in about["bins"]] == [
        (10, 100, 10),
        (110, 200, 10),
        (210, 300, 10),
        (310, 400, 10),
    ]
    assert about["bins"][0]["dice"]["value"] == pytest.approx(0.3)
    assert about["rank_correlation"] > 0.8
    assert about["unit"] == "pixels"
    assert len(about["points"]["size"]) == 40
    scaled = case_table(counts[:, None], pixels=10_000, spacing=[(0.5, 0.5)] * 40)
    assert by_size(scaled, 0, np.arange(40))["bins"][0]["high"] == 25
    assert by_size(case_table([[0, 0, 3]]), 0, np.zeros(1, int))["bins"] == []
    many = dice_table(np.random.default_rng(0).random(2000))
    assert len(by_size(many, 0, np.arange(2000))["points"]["size"]) == 500


def test_examples_are_the_worst_the_middle_and_the_best():
    table = dice_table([0.5, NAN, 0.1, 0.9, 0.7, 0.3, 0.8])
    chosen = examples(table, 2)
    assert [[case["dice"] for case in chosen[name]] for name in chosen] == [[0.1, 0.3], [0.5, 0.7], [0.8, 0.9]]
    assert chosen["worst"][0] == {"sample": "2.png", "patient": "p2", "dice": 0.1, "regions": {"a": 0.1}}
    few = examples(table.taken(np.array([0, 2])), 6)
    assert [len(few[name]) for name in few] == [2, 0, 0]


def test_the_verdict_in_words():
    rng = np.random.default_rng(0)
    counts = np.stack([rng.integers(50, 90, (20, 2)), np.full((20, 2), 100), np.full((20, 2), 100)], axis=2)
    counts[0, 0, 0] = 0
    scores = summarise(case_table(counts, regions=["liver", "spleen"]))
    text = wording.verdict(scores, "test")
    assert text[0].startswith("On the test split (20 images of 20 patients) the Dice is 0.")
    assert "the mean over 2 of 2 regions; the same mask in every image gives 0.182." in text[0]
    assert text[-1] == "Missed completely: liver in 1 of 20 images that have the region."
    scores["harms"] = [{"short": "some images are lost"}]
    assert wording.verdict(scores, "all")[0] == "Before use: some images are lost."
    assert "no region has a defined Dice" in wording.verdict(summarise(case_table([[0, 0, 0]])), "val")[0]
