"""The slider's numbers: counts by hand, limits against the bootstrap, and a page that allows one script only."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from finetune.evaluation.classification.assessment import Assessment
from finetune.evaluation.classification.thresholds import Criterion, evaluate_operating_points, fit_operating_points
from finetune.pages import threshold_explorer
from finetune.pages.report import write_report
from finetune.statistics.shares import shares
from tests.evaluation.classification.test_calibration import binary
from tests.evaluation.classification.test_predictions import NAN, table
from tests.evaluation.runs import write_run


def test_counts_by_hand():
    given = table([[1], [0], [1], [0], [NAN]], [[3.0], [2.0], [2.0], [-1.0], [9.0]])
    points = {"youden": {"classes": {"a": {"threshold": 0.6}}}, "other": {"classes": {}}}
    (one,) = threshold_explorer.explored(given, points, 5)
    assert (one["true"], one["false"], one["positives"], one["negatives"]) == ([0, 1, 2, 2, 2], [0, 0, 1, 1, 2], 2, 2)
    assert one["thresholds"] == pytest.approx([1.0, 0.952574, 0.880797, 0.6, 0.268941], rel=1e-5)
    assert one["end"] == 1.0
    assert one["points"] == {"youden": 0.6}
    assert one["limits"]["sensitivity"][2][1] == 1.0  # both found: the upper limit is 1
    assert one["limits"]["sensitivity"][0][0] == 0.0


@pytest.mark.parametrize(
    ("largest", "end"), [(1.0, 1.0), (0.51, 1.0), (0.5, 1.0), (0.21, 0.5), (0.19, 0.2), (0.0997, 0.1), (0.003, 0.005)]
)
def test_the_scale_ends_at_a_round_number_above_all_probabilities(largest, end):
    assert threshold_explorer.scale_end(largest) == pytest.approx(end)


def test_a_chosen_threshold_gives_the_counts_of_the_table_of_operating_points():
    val, test = binary(800, seed=1, shares=(0.2,)), binary(600, seed=2, shares=(0.2,))
    for criterion in (Criterion("specificity", 0.999), Criterion("sensitivity", 0.9)):
        points, _ = fit_operating_points(val, {"point": criterion})
        told = evaluate_operating_points(test, points, n_boot=0)
        (one,) = threshold_explorer.explored(test, told, 1)
        found = told["point"]["classes"]["a"]
        at = one["thresholds"].index(one["points"]["point"])
        assert (one["true"][at], one["false"][at]) == (found["tp"], found["fp"])


@pytest.mark.parametrize("per_patient", [1, 3])
def test_slider_and_tables_give_the_same_counts_the_same_interval(per_patient):
    val = binary(600, seed=1, shares=(0.2,), per_patient=per_patient)
    test = binary(300, seed=2, shares=(0.2,), per_patient=per_patient)
    scores = Assessment(operating_points={"screen": {"sensitivity": 0.9}}, resamples=20)
    told = scores.score(test, scores.fit(val))
    (one,) = threshold_explorer.explored(test, told["operating_points"], 1, told["threshold"])
    point = told["operating_points"]["screen"]["classes"]["a"]
    for threshold, table_of in ((one["points"]["screen"], point), (0.5, told["classes"]["a"])):
        at = one["thresholds"].index(threshold)
        for metric in threshold_explorer.METRICS:
            limits = [table_of[metric]["low"], table_of[metric]["high"]]
            assert one["limits"][metric][at] == pytest.approx(limits, abs=1e-4)


def test_limits_agree_with_the_bootstrap():
    given = binary(1500, shares=(0.3,), per_patient=3)
    (one,) = threshold_explorer.explored(given, {}, 1)
    assert 40 <= len(one["thresholds"]) <= threshold_explorer.MAX_THRESHOLDS + 1
    for i in range(10, len(one["thresholds"]) - 10, 15):
        yes, positive = given.probs[:, 0] >= one["thresholds"][i] * (1 - 1e-6), given.truth[:, 0] == 1
        assert (yes & positive).sum() == one["true"][i]
        asked = {"sensitivity": (yes, positive), "specificity": (~yes, ~positive), "ppv": (positive, yes)}
        for metric, drawn in shares(given.patients, asked, n_boot=1000).items():
            assert one["limits"][metric][i] == pytest.approx([drawn.low, drawn.high], abs=0.012)


def test_the_page_allows_this_script_alone_and_hostile_names_stay_data(tmp_path):
    run = write_run(tmp_path, classes=["</script><script>alert(1)</script>", "b"], n=100, n_boot=10)
    page = write_report(run).read_text()
    assert "<script>alert" not in page
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    data = re.search(r'id="explorer-data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data)[0]["name"] == "</script><script>alert(1)</script>"


def test_without_anything_to_explore_no_script_is_allowed(tmp_path):
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "script-src" not in page


def test_no_class_or_no_truth_explores_nothing():
    assert threshold_explorer.explored(table([[1], [1]], [[0.0], [1.0]]), {}, 3) == []
    assert threshold_explorer.part(table([[NAN]], [[0.0]]), {}, 3) is None
    assert np.array(threshold_explorer.share_limits(np.array([False]), np.array([False]), np.array([0]))).tolist() == [
        None,
        None,
    ]
