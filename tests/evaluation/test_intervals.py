"""Intervals: variances by their definition, and the share of simulated worlds in which the interval holds the truth."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from finetune.evaluation import intervals
from finetune.evaluation.intervals import delong, exact, on_logit_scale, percentile, resamples, spread
from finetune.evaluation.scores import Scorer

from .test_predictions import NAN, table


def simulated(rng, patients, auroc, share=0.25, several=True):
    """Samples of patients whose labels and scores are alike within a patient: target, score, patient."""
    patient = np.repeat(np.arange(patients), rng.geometric(0.3, patients) if several else 1)
    within = 0.6 if several else 0.0

    def alike():
        own, shared = rng.normal(size=len(patient)), rng.normal(size=patients)[patient]
        return np.sqrt(within) * shared + np.sqrt(1 - within) * own

    target = (alike() > norm.ppf(1 - share)).astype(float)
    return target, alike() + np.sqrt(2) * norm.ppf(auroc) * target, patient


def by_definition(target, score, patient):
    """Obuchowski's variance with every pair written out."""
    x, y = score[target == 1], score[target == 0]
    psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    auroc, m, n = psi.mean(), len(x), len(y)
    v10, v01, px, py = psi.mean(axis=1), psi.mean(axis=0), patient[target == 1], patient[target == 0]
    everyone = np.unique(patient)
    d10 = np.array([(v10[px == i] - auroc).sum() for i in everyone])
    d01 = np.array([(v01[py == i] - auroc).sum() for i in everyone])
    i10, i01, i = len(np.unique(px)), len(np.unique(py)), len(everyone)
    s10, s01 = i10 / ((i10 - 1) * m) * (d10**2).sum(), i01 / ((i01 - 1) * n) * (d01**2).sum()
    s11 = i / (i - 1) * (d10 * d01).sum()
    return auroc, s10 / m + s01 / n + 2 * s11 / (m * n)


def test_delong_is_what_its_definition_says():
    target, score, patient = simulated(np.random.default_rng(1), 40, 0.8)
    score = np.round(score, 1)  # ties
    for people in (patient, np.arange(len(target))):
        found = delong(target, score, people)
        assert (found.auroc, found.variance) == pytest.approx(by_definition(target, score, people))
    assert delong(target, score) == found


def test_delong_by_hand():
    # positives 3, 1 over negatives 2, 0: placements 1 and 1/2, and 1/2 and 1; AUROC 3/4
    found = delong(np.array([1.0, 0, 1, 0, NAN]), np.array([3.0, 2, 1, 0, 5]))
    assert found == intervals.DeLong(0.75, (1 / 8) / 2 + (1 / 8) / 2, 2, 2)


def test_saying_everything_twice_adds_nothing_when_patients_are_known():
    target, score, patient = simulated(np.random.default_rng(2), 60, 0.8, several=False)
    once = delong(target, score)
    twice = np.concatenate([target, target]), np.concatenate([score, score])
    assert delong(*twice, np.concatenate([patient, patient])).variance == pytest.approx(once.variance)
    assert delong(*twice).variance == pytest.approx(once.variance / 2, rel=0.1)


@pytest.mark.parametrize("target", [[1, 1], [0, NAN], []])
def test_auroc_without_both_kinds_has_no_interval(target):
    interval = delong(np.array(target, float), np.arange(len(target)).astype(float)).interval()
    assert np.isnan([interval.value, interval.low, interval.high]).all()


def test_one_positive_patient_has_no_interval():
    interval = delong(np.array([1.0, 0, 0, 0]), np.array([1.0, 2, 0, 0])).interval()
    assert interval.value == 2 / 3
    assert np.isnan([interval.low, interval.high]).all()


def test_perfect_order_is_not_taken_for_certainty():
    target = np.repeat([1.0, 0.0], [5, 100])
    interval = delong(target, target).interval()
    assert (interval.value, interval.high) == (1, 1)
    assert interval.low == pytest.approx(binomtest(5, 5).proportion_ci(0.95).low)
    wrong = delong(target, -target).interval()
    assert (wrong.value, wrong.low, wrong.high) == (0, 0, pytest.approx(1 - interval.low))


def test_exact_is_clopper_and_pearson():
    for value, right in ((1.0, 7), (0.0, 0)):
        expected = binomtest(right, 7).proportion_ci(0.95)
        assert (exact(value, 7).low, exact(value, 7).high) == pytest.approx((expected.low, expected.high))
    assert np.isnan(exact(1.0, 0).low)


def test_the_logit_scale_keeps_a_score_between_0_and_1():
    near = on_logit_scale(0.99, 0.02)
    assert 0 < near.low < 0.99 < near.high < 1
    assert near.high - 0.99 < 0.99 - near.low
    middle = on_logit_scale(0.5, 0.01)
    assert (middle.low, middle.high) == pytest.approx((0.5 - 0.0196, 0.5 + 0.0196), abs=1e-4)
    for value in (0.0, 1.0, NAN):
        assert np.isnan(on_logit_scale(value, 0.1).low)


def test_resamples_draw_as_many_patients_as_there_are():
    drawn = np.hstack(list(resamples(7, 70, seed=3)))
    assert drawn.shape == (7, 70)
    assert (drawn.sum(axis=0) == 7).all()
    assert len(np.unique(drawn, axis=1).T) > 60
    np.testing.assert_array_equal(drawn, np.hstack(list(resamples(7, 70, seed=3))))
    assert (drawn != np.hstack(list(resamples(7, 70, seed=4)))).any()


def test_undefined_resamples_are_left_out():
    samples = np.array([1.0, NAN, 3.0])
    assert spread(samples) == np.sqrt(2)
    assert (percentile(2.0, samples).low, percentile(2.0, samples).high) == pytest.approx((1.05, 2.95))
    assert np.isnan(spread(np.array([1.0, NAN])))
    assert np.isnan(percentile(2.0, np.array([NAN, NAN])).low)


def test_resampling_and_delong_tell_the_same_error():
    target, score, patient = simulated(np.random.default_rng(5), 300, 0.8)
    scorer = Scorer(table(target[:, None], score[:, None], patients=[f"p{i}" for i in patient]))
    drawn = np.concatenate([scorer(w).classes["auroc"][0] for w in resamples(300, 800, seed=0)])
    assert spread(drawn) == pytest.approx(np.sqrt(delong(target, score, patient).variance), rel=0.1)


@pytest.mark.parametrize("auroc", [0.6, 0.9])
def test_the_interval_holds_the_truth_in_95_of_100_worlds(auroc):
    rng = np.random.default_rng(0)
    by_patient, by_image = [], []
    for _ in range(400):
        target, score, patient = simulated(rng, 150, auroc)
        for found, people in ((by_patient, patient), (by_image, None)):
            interval = delong(target, score, people).interval()
            found.append(interval.low <= auroc <= interval.high)
    assert 0.92 <= np.mean(by_patient) <= 0.98  # 0.95 give or take 2.5 standard errors
    assert np.mean(by_image) < 0.9  # images of one patient are no independent witnesses
