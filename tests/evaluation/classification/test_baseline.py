"""What an answer that looks at no image gets: by hand, and as scikit-learn's DummyClassifier gets it."""

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.dummy import DummyClassifier

from finetune.evaluation.classification.summary import summarise
from tests.evaluation.classification.test_predictions import NAN, table


def test_always_the_largest_class():
    true = np.repeat([1, 0, 2], [6, 3, 1])
    given = table(np.eye(3)[true], np.random.default_rng(0).normal(size=(10, 3)), "multiclass")
    found = summarise(given, n_boot=0)["baseline"]
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((10, 1)), true)
    answer, probs = dummy.predict(np.zeros((10, 1))), dummy.predict_proba(np.zeros((10, 1)))
    assert found["answer"] == "b"
    assert found["overall"] == pytest.approx(
        {
            "accuracy": sk.accuracy_score(true, answer),
            "balanced_accuracy": sk.balanced_accuracy_score(true, answer),
            "kappa": sk.cohen_kappa_score(true, answer),
            "brier": sk.brier_score_loss(true, probs, scale_by_half=False),
            "log_loss": sk.log_loss(true, probs),
        }
    )
    assert found["macro"]["average_precision"] == pytest.approx((0.6 + 0.3 + 0.1) / 3)


def test_the_share_of_positives_of_each_finding():
    target = np.array([[1, 1], [0, 1], [0, NAN], [0, 0.0]])
    found = summarise(table(target, np.zeros((4, 2))), n_boot=0)["baseline"]
    truth = target[:, 0]
    share = np.full(4, 0.25)
    assert found["classes"]["a"] == pytest.approx(
        {
            "answer": "no",
            "auroc": 0.5,
            "average_precision": sk.average_precision_score(truth, share),
            "accuracy": sk.accuracy_score(truth, np.zeros(4)),
            "balanced_accuracy": 0.5,
            "brier": sk.brier_score_loss(truth, share),
            "log_loss": sk.log_loss(truth, share),
        }
    )
    assert found["classes"]["b"]["answer"] == "yes"  # two of the three that are known
    assert found["macro"]["accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found["gains"]["a"]["log_loss"]["value"] == pytest.approx(sk.log_loss(truth, share) - np.log(2))


def test_gains_are_over_patients():
    true = np.tile([0, 0, 1], 20)
    logits = 2 * np.eye(2)[np.where(np.arange(60) < 30, true, 0)]
    one, five = (
        summarise(table(np.eye(2)[true].repeat(n, 0), logits.repeat(n, 0), "multiclass", patients=people), n_boot=0)
        for n, people in ((1, None), (5, [f"p{i // 5}" for i in range(300)]))
        for people in [people or [f"p{i}" for i in range(60)]]
    )
    a, b = (each["baseline"]["gains"]["accuracy"] for each in (one, five))
    assert a["value"] == b["value"] == pytest.approx(10 / 60)
    assert (a["low"], a["high"]) == pytest.approx((b["low"], b["high"]))
    change = np.where(np.arange(60) < 30, true, 0)
    half = 2.000995 * change.std(ddof=1) / np.sqrt(60)  # Student's t of 59 degrees of freedom
    assert (a["low"], a["high"]) == pytest.approx((10 / 60 - half, 10 / 60 + half), rel=1e-5)


def test_nothing_known_has_no_baseline():
    assert summarise(table(np.full((2, 2), NAN), np.zeros((2, 2))), n_boot=0)["baseline"]["classes"] == {}
    nobody = summarise(table(np.full((2, 2), NAN), np.zeros((2, 2)), "multiclass"), n_boot=0)["baseline"]
    assert nobody["answer"] is None
