"""Scores: worked by hand, and equal to scikit-learn wherever it defines them, with ties, unknowns and weights."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.reliability import binned
from finetune.evaluation.classification.scores import ONLY_OVERALL, Scorer, confusion, decide, in_top, macro_auroc
from finetune.evaluation.classification.summary import summarise
from finetune.statistics.ranking import auroc, average_precision, curves
from tests.evaluation.classification.test_predictions import NAN, table

EQUAL = {"rtol": 1e-9, "atol": 1e-12}


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_auroc_and_average_precision_by_hand():
    target, score = np.array([1.0, 0, 1, 0, NAN]), np.array([4.0, 3, 2, 2, 9])
    # pairs: 4>3, 4>2, 2<3, 2=2  ->  1 + 1 + 0 + 1/2 of 4
    assert auroc(target, score) == 2.5 / 4
    # precision 1/1 at the first positive; at the second, tied with a negative, 2 of 4
    assert average_precision(target, score) == (1 + 2 / 4) / 2


@pytest.mark.parametrize("target", [[], [NAN, NAN], [1, 1], [0, NAN]])
def test_without_both_kinds_nothing_is_defined(target):
    score = np.arange(len(target)).astype(float)
    assert np.isnan([auroc(np.array(target, float), score), average_precision(np.array(target, float), score)]).all()


def test_curves_by_hand():
    true, false = curves(np.array([1.0, 0, 1, 0, NAN]), np.array([4.0, 3, 2, 2, 9]))
    np.testing.assert_array_equal(true, [0, 1, 1, 2])
    np.testing.assert_array_equal(false, [0, 0, 1, 2])
    np.testing.assert_array_equal(curves(np.zeros(0), np.zeros(0)), [[0], [0]])


def test_rates_by_hand():
    #            tp  fn  fp  tn  tn  unknown
    targets = [[1], [1], [0], [0], [0], [NAN]]
    logits = [[0.0], [-1], [2], [-2], [-3], [9]]  # 0 is a probability of 0.5: yes
    found = {m: v[0, 0] for m, v in Scorer(table(targets, logits)).values().classes.items()}
    by_hand = {"accuracy": 3 / 5, "sensitivity": 1 / 2, "specificity": 2 / 3, "ppv": 1 / 2, "npv": 2 / 3, "f1": 2 / 4}
    assert {m: found[m] for m in by_hand} == by_hand
    assert found["balanced_accuracy"] == (1 / 2 + 2 / 3) / 2


def test_a_share_of_no_patients_is_undefined():
    found = {m: v[0, 0] for m, v in Scorer(table([[0], [0]], [[-1.0], [-1]])).values().classes.items()}
    undefined = {m for m, v in found.items() if np.isnan(v)}
    assert undefined == {"auroc", "average_precision", "balanced_accuracy", "sensitivity", "ppv", "f1"}
    assert found["specificity"] == found["npv"] == 1


def test_undefined_classes_are_left_out_of_the_macro_mean():
    targets, logits = [[1, 0, NAN], [0, 0, NAN], [1, 0, NAN]], [[1.0, 0, 0], [2, 1, 1], [3, 2, 2]]
    scores = Scorer(table(targets, logits)).values()
    np.testing.assert_array_equal(scores.classes["auroc"][:, 0], [0.5, NAN, NAN])
    assert scores.macro()["auroc"] == [0.5]
    assert macro_auroc(np.array(targets), np.array(logits)) == 0.5
    assert np.isnan(macro_auroc(np.array([[1.0], [1]]), np.array([[1.0], [2]])))


def test_calibration_error_by_hand():
    # bin 0.0-0.5: said 0.3, happened 1/2, two samples; bin 0.5-1.0: said 0.8, happened 1, one sample
    assert binned(np.array([0, 1, 1.0, NAN]), np.array([0.2, 0.4, 0.8, 0.9]), bins=2).error() == pytest.approx(
        (2 * 0.2 + 0.2) / 3
    )
    assert binned(np.array([1.0]), np.array([1.0])).error() == 0
    assert np.isnan(binned(np.array([NAN]), np.array([0.5])).error())


def test_a_multiclass_answer_is_the_most_probable_class():
    given = table(np.eye(3)[[0, 1, 1, 2]], [[1, 1, 0], [0, 2, 1], [2, 0, 0], [0, 0, 3]], "multiclass")
    np.testing.assert_array_equal(decide(given).argmax(axis=1), [0, 1, 0, 2])
    np.testing.assert_array_equal(confusion(given), [[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    assert Scorer(given).values().overall["accuracy"] == [0.75]
    with pytest.raises(FinetuneError, match="has none"):
        decide(given, 0.3)


def test_thresholds_may_differ_by_class():
    given = table([[1, 1], [0, 0]], [[0.0, 0.0], [-1, -1]])
    np.testing.assert_array_equal(decide(given, np.array([0.1, 0.9])), [[True, False], [True, False]])


# -- scikit-learn -----------------------------------------------------------------------------------------------------


@st.composite
def answers(draw, kind, most=4):
    """Targets with unknowns, logits with ties, whole weights of patients with several samples."""
    n, k = draw(st.integers(2, 30)), draw(st.integers(2, most))
    logits = draw(arrays(np.int64, (n, k), elements=st.integers(-3, 3))) / draw(st.sampled_from([1, 7]))
    if kind == "multiclass":
        targets = np.eye(k)[draw(arrays(int, n, elements=st.integers(0, k - 1)))]
        targets[draw(arrays(bool, n))] = NAN
    else:
        targets = draw(arrays(np.float64, (n, k), elements=st.sampled_from([0.0, 1.0, NAN])))
    patients = draw(st.lists(st.sampled_from("pqrst"), min_size=n, max_size=n))
    return table(targets, logits, kind, patients=patients), draw(st.integers(0, 100))


def reference(name, y, p, yes, w):
    """One score by scikit-learn, NaN where it is not defined."""
    both = w[y == 1].sum() > 0 and w[y == 0].sum() > 0
    needs_both = ("auroc", "average_precision", "balanced_accuracy")
    if w.sum() == 0 or (name in needs_both and not both):
        return NAN
    weighted = {"sample_weight": w, "zero_division": NAN}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that do not occur
        return {
            "auroc": lambda: sk.roc_auc_score(y, p, sample_weight=w),
            "average_precision": lambda: sk.average_precision_score(y, p, sample_weight=w),
            "accuracy": lambda: sk.accuracy_score(y, yes, sample_weight=w),
            "balanced_accuracy": lambda: sk.balanced_accuracy_score(y, yes, sample_weight=w),
            "sensitivity": lambda: sk.recall_score(y, yes, **weighted),
            "specificity": lambda: sk.recall_score(y, yes, pos_label=0, **weighted),
            "ppv": lambda: sk.precision_score(y, yes, **weighted),
            "npv": lambda: sk.precision_score(y, yes, pos_label=0, **weighted),
            "f1": lambda: sk.f1_score(y, yes, **weighted),
            "brier": lambda: sk.brier_score_loss(y, p, sample_weight=w),
            "log_loss": lambda: sk.log_loss(y, p, sample_weight=w, labels=[0, 1]),
            "ece": lambda: binned_error(y, p, w),  # scikit-learn has none
        }[name]()


def binned_error(y, p, w):
    """The calibration error written out: 15 bins of equal width."""
    number = np.minimum(np.floor(p * 15), 14)
    rows = [number == b for b in range(15)]
    return sum(abs((w[r] * (y[r] - p[r])).sum()) for r in rows) / w.sum()


def drawn(given: Predictions, seed: int):
    """Weights of one and a drawn weighting: per patient for us (P, 2), per sample for the reference."""
    scorer = Scorer(given)
    some = np.random.default_rng(seed).integers(0, 4, scorer.n_patients)
    weight = np.stack([np.ones(scorer.n_patients), some], axis=1)
    return scorer, weight, weight[scorer.patient]


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_score_equals_scikit_learn(kind, data):
    given, seed = data.draw(answers(kind))
    scorer, weight, by_sample = drawn(given, seed)
    scores = scorer(weight)
    left_out = {"ece", *(ONLY_OVERALL if kind == "multiclass" else ())}
    assert set(scores.classes) - left_out == set(scores.micro)
    probs, truth, yes = given.probs, given.truth, scorer.decisions
    for b in (0, 1):
        for name, values in scores.classes.items():
            expected = []
            for k in range(len(given.classes)):
                known = ~np.isnan(truth[:, k])
                expected.append(reference(name, truth[known, k], probs[known, k], yes[known, k], by_sample[known, b]))
            np.testing.assert_allclose(values[:, b], expected, err_msg=name, **EQUAL)
            if name in left_out:
                continue
            known = ~np.isnan(truth)
            pooled = np.broadcast_to(by_sample[:, b, None], truth.shape)[known]
            expected_micro = reference(name, truth[known], probs[known], yes[known], pooled)
            np.testing.assert_allclose(scores.micro[name][b], expected_micro, err_msg=f"micro {name}", **EQUAL)


@settings(max_examples=40, deadline=None)
@given(answers("multiclass", most=7))
def test_multiclass_scores_equal_scikit_learn(drawn_answers):
    given, seed = drawn_answers
    scorer, weight, by_sample = drawn(given, seed)
    overall = scorer(weight).overall
    known = ~np.isnan(given.truth[:, 0])
    if not known.any():
        assert np.isnan(np.concatenate(list(overall.values()))).all()
        return
    labels = np.arange(len(given.classes))
    true, probs = given.truth[known].argmax(axis=1), given.probs[known]
    answer = scorer.decisions[known].argmax(axis=1)
    np.testing.assert_array_equal(confusion(given), sk.confusion_matrix(true, answer, labels=labels))
    for b in (0, 1):
        w = by_sample[known, b]
        if w.sum() == 0:
            continue
        expected = {
            "accuracy": sk.accuracy_score(true, answer, sample_weight=w),
            "log_loss": sk.log_loss(true, probs, sample_weight=w, labels=labels),
            "ece": binned_error((answer == true).astype(float), np.take_along_axis(probs, answer[:, None], 1)[:, 0], w),
            "brier": np.average(((probs - np.eye(len(labels))[true]) ** 2).sum(axis=1), weights=w),
        }
        # scikit-learn keeps a class that only occurs with weight 0, without effect; alone it is 0/0 there too
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected["kappa"] = sk.cohen_kappa_score(true, answer, labels=labels, sample_weight=w)
            # it keeps a class that only occurs with weight 0, as 0/0
            expected["balanced_accuracy"] = sk.balanced_accuracy_score(
                true[w > 0], answer[w > 0], sample_weight=w[w > 0]
            )
        for name, value in expected.items():
            np.testing.assert_allclose(overall[name][b], value, err_msg=name, **EQUAL)
    logits = given.logits[known]
    in_first = in_top(logits, true, 2)
    if len(labels) > 2:
        assert in_first.mean() == pytest.approx(sk.top_k_accuracy_score(true, logits, k=2, labels=labels))
    assert ("top5_accuracy" in overall) == (len(labels) > 5)


AVERAGED = {  # scikit-learn's function of (truth or one-hot truth, answers, probabilities) with average=
    "auroc": lambda y, a, p, average: sk.roc_auc_score(y, p, average=average),
    "average_precision": lambda y, a, p, average: sk.average_precision_score(y, p, average=average),
    "sensitivity": lambda y, a, p, average: sk.recall_score(y, a, average=average, zero_division=NAN),
    "specificity": lambda y, a, p, average: sk.recall_score(1 - y, 1 - a, average=average, zero_division=NAN),
    "ppv": lambda y, a, p, average: sk.precision_score(y, a, average=average, zero_division=NAN),
    "npv": lambda y, a, p, average: sk.precision_score(1 - y, 1 - a, average=average, zero_division=NAN),
    "f1": lambda y, a, p, average: sk.f1_score(y, a, average=average, zero_division=NAN),
}
OVERALL = {  # its function of (classes, answered classes, probabilities)
    "accuracy": lambda t, a, p: sk.accuracy_score(t, a),
    "balanced_accuracy": lambda t, a, p: sk.balanced_accuracy_score(t, a),
    "kappa": lambda t, a, p: sk.cohen_kappa_score(t, a),
    "top5_accuracy": lambda t, a, p: sk.top_k_accuracy_score(t, p, k=5),
    "log_loss": lambda t, a, p: sk.log_loss(t, p),
    "brier": lambda t, a, p: sk.brier_score_loss(t, p, scale_by_half=False),
    "ece": lambda t, a, p: binned_error((t == a).astype(float), p.max(axis=1), np.ones(len(t))),
}


def of_each(name):
    """The mean over the columns of scikit-learn's binary function, where that has no average= of its own."""

    def mean(y, a, p, average):
        columns = [(y.ravel(), a.ravel(), p.ravel())] if average == "micro" else zip(y.T, a.T, p.T, strict=True)
        return np.mean([reference(name, y, p, a, np.ones(len(y))) for y, a, p in columns])

    return mean


BINARY = {name: of_each(name) for name in ("accuracy", "balanced_accuracy", "brier", "log_loss", "ece")}


def frail(rng, n, kind, k=7):
    """A network that hardly answers the rare classes, the last never; all classes occur."""
    shares = np.array([0.5, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02])
    true = np.r_[np.arange(k), rng.choice(k, n - k, p=shares)]
    logits = rng.normal(size=(n, k)) + 1.2 * np.eye(k)[true] + np.log(shares) - 3 * (np.arange(k) == k - 1)
    targets = np.eye(k)[true] if kind == "multiclass" else (rng.random((n, k)) < np.maximum(shares, 0.1)).astype(float)
    return table(targets, logits, kind)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_every_name_in_scores_json_is_that_of_scikit_learn(kind):
    given = frail(np.random.default_rng(0), 150, kind)
    found = summarise(given, n_boot=0)
    truth, probs, yes = given.truth.astype(int), given.probs, decide(given).astype(int)
    averaged = AVERAGED if kind == "multiclass" else AVERAGED | BINARY
    expected = {
        "macro": {name: score(truth, yes, probs, "macro") for name, score in averaged.items()},
        "micro": {name: score(truth, yes, probs, "micro") for name, score in averaged.items() if name != "ece"},
    }
    if kind == "multiclass":
        true, answer = truth.argmax(axis=1), yes.argmax(axis=1)
        expected["overall"] = {name: score(true, answer, probs) for name, score in OVERALL.items()}
        expected["macro"]["balanced_accuracy"] = expected["overall"]["balanced_accuracy"]
        expected["macro"]["ece"] = BINARY["ece"](truth, yes, probs, "macro")
    for k, name in enumerate(given.classes):
        binary = [metric for metric in (*AVERAGED, *BINARY) if kind == "multilabel" or metric != "accuracy"]
        column = (truth[:, k], probs[:, k], yes[:, k], np.ones(len(truth)))
        expected[name] = {metric: reference(metric, *column) for metric in binary}
    for group, scores in expected.items():
        of = found["classes"][group] if group in given.classes else found[group]
        assert {name for name, score in of.items() if isinstance(score, dict)} == set(scores), group
        for name, value in scores.items():
            stands = of[name]["value"]
            assert np.isnan(value) if stands is None else stands == pytest.approx(value), (group, name)


def test_macro_auroc_ranks_multiclass_by_probability():
    targets, logits = np.eye(3)[[0, 1, 2, 0, 1]], np.array([[5.0, 4, 0], [9, 10, 0], [1, 0, 2], [0, 0, 0], [7, 1, 1]])
    each = [sk.roc_auc_score(targets[:, k], np.exp(logits[:, k]) / np.exp(logits).sum(axis=1)) for k in range(3)]
    assert macro_auroc(targets, logits, "multiclass") == pytest.approx(np.mean(each))
    assert Scorer(table(targets, logits, "multiclass")).values().macro()["auroc"] == pytest.approx(np.mean(each))


def test_log_loss_stays_right_where_probabilities_round_to_one():
    for kind in ("multilabel", "multiclass"):
        scores = Scorer(table([[0, 1]], [[100.0, 0]], kind)).values()
        assert scores.classes["log_loss"][0, 0] == pytest.approx(100)  # by way of the probability it would be infinite
