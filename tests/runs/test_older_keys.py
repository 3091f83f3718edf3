"""Files of version 0.1.0 are read under today's keys; what a class is called never matters."""

import json

import pytest

from finetune.runs.older_keys import current_errors, current_scores
from finetune.runs.read import Run

BINS = {"count": [1], "said": [0.2], "happened": [0.0]}
OLD = {
    "n": 1,
    "classes": {"said": {"auroc": {"value": None}}},
    "operating_points": {"wish": {"wish": "most F1", "classes": {"said": {"threshold": 0.5}}}},
    "selective": {"said": {"threshold": 0.5, "rows": [{"wished": 1.0}], "curve": {}}},
    "calibration": {"classes": {"said": {"before": {"bins": BINS}, "after": {"bins": BINS}, "difference": {}}}},
    "prevalence": {"given": {}, "operating_points": {"p": {"wish": "most F1"}}},
}


def test_old_keys_are_renamed_where_they_stand_and_nowhere_else():
    scores = current_scores({"test": OLD})["test"]
    assert scores["operating_points"] == {"wish": {"criterion": "most F1", "classes": {"said": {"threshold": 0.5}}}}
    assert scores["selective"]["said"]["rows"] == [{"target": 1.0}]
    bins = {"count": [1], "mean_confidence": [0.2], "observed_rate": [0.0]}
    part = scores["calibration"]["classes"]["said"]
    assert part == {"before": {"bins": bins}, "after": {"bins": bins}, "difference": {}}
    assert scores["prevalence"]["operating_points"] == {"p": {"criterion": "most F1"}}
    assert scores["classes"] == OLD["classes"]
    assert current_scores({"test": scores}) == {"test": scores}
    assert current_errors([{"picture": "x", "class": "picture"}]) == [{"image": "x", "class": "picture"}]


@pytest.mark.parametrize("damaged", [{"test": 1}, {"test": {"calibration": 3}}, {"test": {"selective": {"a": {}}}}, []])
def test_damaged_scores_are_a_problem_of_the_run_and_no_traceback(tmp_path, damaged):
    (tmp_path / "scores.json").write_text(json.dumps(damaged or [1]), encoding="utf-8")
    run = Run.read(tmp_path)
    assert run.scores == {}
    assert "scores.json cannot be read: it holds something else than was written" in run.problems
