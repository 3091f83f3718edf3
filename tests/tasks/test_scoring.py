"""The lines of scores: with the score of a trivial prediction, and harms."""

import numpy as np

from finetune.evaluation.classification.assessment import Assessment
from finetune.tasks.classification import scoring
from tests.evaluation.classification.test_calibration import binary
from tests.evaluation.classification.test_harms import lesions

ASSESSMENT = Assessment(resamples=20)


def score_val_and_test(val, test):
    return scoring.compute_scores({"val": val, "test": test}, ASSESSMENT, ASSESSMENT.fit(val), seed=0)


def test_accuracy_is_printed_with_that_of_the_largest_class_and_harms_once():
    scores = score_val_and_test(lesions(), lesions())
    lines = scoring.summary_lines(scores, False)
    (accuracy,) = [line for line in lines if line.startswith("test: accuracy")]
    assert accuracy.endswith("(95 %); always a: 0.630")
    assert any(line.startswith("test: balanced accuracy") and line.endswith("chance: 0.333") for line in lines)
    assert sum("Never predicted: c (0 of 11)." in line for line in lines) == 1
    assert scores["val"]["harms"] == []
    assert [harm["text"] for harm in scores["test"]["harms"]] == scores["test"]["warnings"][
        : len(scores["test"]["harms"])
    ]


def test_val_alone_has_its_harms():
    scores = scoring.compute_scores({"val": lesions()}, ASSESSMENT, ASSESSMENT.fit(lesions()), seed=0)
    assert [harm["rule"] for harm in scores["val"]["harms"]] == ["baseline", "never found"]


def test_val_and_test_are_compared():
    scores = score_val_and_test(binary(300, 1, shares=(0.3,), apart=3.5), binary(300, 2, shares=(0.3,), apart=1.5))
    assert "val and test" in [harm["rule"] for harm in scores["test"]["harms"]]
    lines = scoring.summary_lines(scores, True)
    assert lines[0].startswith("val: macro AUROC 0.9")
    assert lines[0].endswith("; chance: 0.500 (SYNTHETIC images)")
    assert np.isfinite(scores["test"]["macro"]["auroc"]["value"])
