"""Intervals: variances by their definition, and the share of simulated worlds in which the interval holds the truth."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from finetune.evaluation.classification.scores import Scorer, share_counts
from finetune.statistics import intervals
from finetune.statistics.intervals import delong, exact, on_logit_scale, percentile, resamples, share, spread
from tests.evaluation.classification.test_predictions import NAN, table


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


def test_resampling_and_delong_give_the_same_error():
    target, score, patient = simulated(np.random.default_rng(5), 300, 0.8)
    scorer = Scorer(table(target[:, None], score[:, None], patients=[f"p{i}" for i in patient]))
    drawn = np.concatenate([scorer(w).classes["auroc"][0] for w in resamples(300, 800, seed=0)])
    assert spread(drawn) == pytest.approx(np.sqrt(delong(target, score, patient).variance), rel=0.1)


@pytest.mark.parametrize(("right", "n"), [(1, 2), (3, 7), (9, 10), (50, 200)])
def test_a_share_of_single_images_has_wilsons_interval(right, n):
    found = share(np.r_[np.ones(right), np.zeros(n - right)], np.ones(n))
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((right / n, expected.low, expected.high))


def test_a_share_counts_patients_where_their_images_agree():
    patients = np.r_[np.ones(6), np.zeros(4)]
    one, five = share(patients, np.ones(10)), share(5 * patients, np.full(10, 5.0))
    assert five.value == one.value == 0.6
    assert five.low < one.low < one.high < five.high  # for how alike they are is not known
    assert five.high - five.low < 1.5 * (one.high - one.low)
    # images of a patient that have nothing in common count as so many images, or as a little fewer
    mixed = share(np.tile([2.0, 3.0], 100), np.full(200, 5.0))
    alone = share(np.tile([1.0, 0.0], 500), np.ones(1000))
    assert mixed.high - mixed.low == pytest.approx(alone.high - alone.low, rel=0.02)
    assert share(np.array([3.0, 0.0]), np.array([3.0, 0.0])) == exact(
        1.0, 1
    )  # who has no such image counts for nothing


def test_a_share_of_one_patient_or_of_nothing_says_why_it_has_no_interval():
    assert share(np.array([2.0]), np.array([3.0])).reason == intervals.ONE_PATIENT
    assert share(np.array([0.0]), np.array([0.0])).reason == "no such image"
    assert share(np.array([3.0]), np.array([3.0])).low == pytest.approx(0.025)


def test_a_mean_of_shares_by_hand():
    parts = [intervals.Interval(0.8, 0.5, 0.9), intervals.Interval(0.4, 0.0, 0.6)]
    found = intervals.mean_of_shares(parts)
    assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.6 - 0.25, 0.6 + np.hypot(0.1, 0.2) / 2))
    assert intervals.mean_of_shares(parts[:1]) == parts[0]
    assert intervals.mean_of_shares([*parts, intervals.Interval(0.1, reason="why")]).reason == "why"


@pytest.mark.parametrize("several", [False, True])
def test_shares_and_balanced_accuracy_hold_the_truth_with_few_patients(several):
    """Of 20 patients, some 5 of them positive, where resampling held the balanced accuracy in 48 and 76 % of worlds."""
    rng = np.random.default_rng(0)

    def counts(patients):
        target, score, patient = simulated(rng, patients, 0.8, share=0.25, several=several)
        yes, positive = score >= 0.6, target == 1
        outcomes = (positive & yes, ~positive & yes, positive & ~yes, ~positive & ~yes)
        return share_counts(*(np.bincount(patient, outcome, patients) for outcome in outcomes))

    truth = {metric: right.sum() / of.sum() for metric, (right, of) in counts(100_000).items()}
    truth["balanced_accuracy"] = (truth["sensitivity"] + truth["specificity"]) / 2
    held = {metric: [] for metric in truth}
    for _ in range(400):
        found = {metric: share(*each) for metric, each in counts(20).items()}
        found["balanced_accuracy"] = intervals.mean_of_shares([found["sensitivity"], found["specificity"]])
        for metric, interval in found.items():
            if not np.isnan(interval.low):
                held[metric].append(interval.low <= truth[metric] <= interval.high)
    assert {metric: np.mean(inside) for metric, inside in held.items() if np.mean(inside) < 0.925} == {}


def test_a_mean_difference_by_hand():
    change = np.r_[np.ones(6), -np.ones(2), np.zeros(4)]
    found = intervals.mean_difference(change, np.ones(12))
    half = 2.200985 * change.std(ddof=1) / np.sqrt(12)  # Student's t of 11 degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half))
    assert intervals.mean_difference(np.zeros(12), np.ones(12)).reason == intervals.NO_SPREAD
    assert intervals.mean_difference(change[:9], np.ones(9)).reason == intervals.FEW_PATIENTS


def test_log_loss_is_spread_on_the_scale_of_its_logarithm():
    found = intervals.resampled("log_loss", 0.5, np.array([0.4, 0.6]), patients=30)
    reach = np.exp(2.04523 * np.sqrt(0.02) / 0.5)  # Student's t of 29 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.5 / reach, 0.5 * reach), rel=1e-5)


@pytest.mark.parametrize("metric", ["log_loss", "brier", "kappa", "f1", "average_precision"])
def test_what_is_resampled_of_few_patients_has_no_interval_but_a_reason(metric):
    samples = np.random.default_rng(0).uniform(0.3, 0.6, 50)
    assert intervals.resampled(metric, 0.4, samples, 12).low < 0.4
    for patients, why in ((1, intervals.ONE_PATIENT), (9, intervals.FEW_PATIENTS)):
        found = intervals.resampled(metric, 0.4, samples, patients)
        assert np.isnan(found.low)
        assert found.reason == why
    assert intervals.resampled(metric, 0.4, np.full(50, 0.4), 12).reason == intervals.NO_SPREAD
    assert intervals.resampled(metric, 0.4, np.zeros(0), 12).reason == intervals.NO_RESAMPLES


def test_equal_answers_have_an_auroc_without_interval():
    found = delong(np.repeat([1.0, 0.0], 20), np.full(40, 0.3)).interval()
    assert (found.value, found.reason) == (0.5, intervals.NO_SPREAD)
    assert np.isnan(found.low)


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
