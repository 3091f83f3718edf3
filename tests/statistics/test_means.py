"""Means and medians over patients: errors by their definition, and how often intervals hold the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import t, ttest_1samp

from finetune.statistics import intervals, means

NAN = np.nan


def simulated(rng, patients, failures=0.05):
    """Dice of 1 to many images of each patient, alike within a patient; some images fail. Those of patients with a low
    Dice have more."""
    level = rng.normal(size=patients)
    number = rng.geometric(0.3, patients) + (level < 0) * rng.poisson(2, patients)
    patient = np.repeat(np.arange(patients), number)
    dice = expit(2.2 + 0.7 * level[patient] + 0.7 * rng.normal(size=len(patient)))
    return np.where(rng.random(len(patient)) < failures, 0.0, dice), patient


def test_one_image_per_patient_gives_students_interval():
    values = np.random.default_rng(0).normal(0.1, 1, 25)
    mean = means.mean(values, np.arange(25), 25)
    assert mean.error == pytest.approx(values.std(ddof=1) / 5)
    assert (mean.df, mean.patients) == (24, 25)
    reference = ttest_1samp(values, 0)
    assert mean.p == pytest.approx(reference.pvalue)
    interval = mean.signed()
    assert (interval.low, interval.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert mean.signed(looks=5).high - mean.value == pytest.approx(t.ppf(0.995, 24) * mean.error)


def test_leaving_out_patients_worked_by_hand():
    mean = means.mean(np.array([1.0, 0.0, NAN, 0.0]), np.array([0, 0, 1, 2]), 4)  # patients 1 and 3 have no value
    assert mean.value == pytest.approx(1 / 3)
    np.testing.assert_allclose(mean.without, [0, 1 / 3, 1 / 2, 1 / 3])
    assert mean.images.tolist() == [2, 0, 1, 0]
    assert mean.patients == 2
    assert mean.error == pytest.approx(np.sqrt(1 / 2 * (0.25**2 + 0.25**2)))
    assert mean.df == 1  # 9 / 5 - 1 is below 1


def test_a_mean_over_regions_is_the_mean_of_their_means():
    values = np.array([[1.0, NAN, NAN], [0.0, 0.5, NAN], [0.5, NAN, NAN]])
    mean = means.mean(values, np.array([0, 1, 2]), 3)
    assert mean.value == pytest.approx((0.5 + 0.5) / 2)
    np.testing.assert_allclose(mean.without, [(0.25 + 0.5) / 2, 0.75, (0.5 + 0.5) / 2])  # without patient 1: one region
    assert means.mean(np.full((3, 2), NAN), np.array([0, 1, 2]), 3).between_0_and_1().reason == "no such image"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-1, 1))
def test_a_difference_of_means_is_the_mean_of_differences(seed, shift):
    rng = np.random.default_rng(seed)
    values, patient = simulated(rng, 15)
    other = rng.random(len(values)) + shift
    a, b = (means.mean(v, patient, 15) for v in (values, other))
    change = means.mean(values - other, patient, 15)
    assert (a - b).value == pytest.approx(change.value)
    assert (a - b).error == pytest.approx(change.error)
    assert (a - b).df == pytest.approx(change.df)


def test_what_has_no_interval_says_why():
    assert means.mean(np.ones(3) / 2, np.zeros(3, int), 1).between_0_and_1().reason == intervals.ONE_PATIENT
    assert means.mean(np.ones(3) / 2, np.arange(3), 3).above_0().reason == intervals.FEW_PATIENTS
    same = means.mean(np.full(12, 0.5), np.arange(12), 12)
    assert same.between_0_and_1().reason == same.signed().reason == intervals.NO_SPREAD
    assert np.isnan(same.p)
    assert means.mean(np.zeros(12), np.arange(12), 12).p == 1
    assert means.mean(np.zeros(12), np.arange(12), 12).between_0_and_1() == intervals.exact(0.0, 12)
    assert means.median(np.full(3, 0.5), np.arange(3)).reason == intervals.FEW_PATIENTS
    assert means.median(np.full(12, 0.5), np.arange(12)).reason == intervals.NO_SPREAD
    assert means.median(np.full(3, NAN), np.arange(3)).reason == "no such image"


def test_the_median_of_images_of_one_patient_each():
    values = np.arange(1.0, 101.0)
    interval = means.median(values, np.arange(100))
    assert interval.value == 50.5
    assert (interval.low, interval.high) == (41.0, 60.0)  # Wilson's share of 50 in 100: 0.404 to 0.596


def test_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    large, patient = simulated(rng, 200_000)
    truth, middle = large.mean(), np.median(large)
    held = []
    for _ in range(400):
        dice, patient = simulated(rng, 40)
        mean, median = means.mean(dice, patient, 40).between_0_and_1(), means.median(dice, patient)
        held.append((mean.low <= truth <= mean.high, median.low <= middle <= median.high))
    assert (np.abs(np.mean(held, axis=0) - 0.95) < 0.03).all()  # 0.011 is the standard error


def test_a_difference_of_two_networks_holds_the_truth():
    rng, held = np.random.default_rng(1), []
    for _ in range(300):
        dice, patient = simulated(rng, 40)
        other = np.clip(dice + rng.normal(0.02, 0.05, len(dice)), None, None)
        interval = means.mean(other - dice, patient, 40).signed()
        held.append(interval.low <= 0.02 <= interval.high)
    assert abs(np.mean(held) - 0.95) < 0.035
