"""Novelty: energies and distances by hand, strange features told from typical ones, and few images do not break it."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import mahalanobis

from finetune.evaluation.novelty import FeatureGaussian, energy, separation_auroc


def test_energies_by_hand():
    assert energy([[0.0, 0.0]], "multiclass") == pytest.approx([-np.log(2)])
    assert energy([[0.0, np.log(3)]], "multilabel") == pytest.approx([-np.log(2) - np.log(4)])
    sure, unsure = energy([[9.0, 0, 0], [1, 1, 1]], "multiclass")
    assert sure < unsure


def test_with_many_images_it_is_the_mahalanobis_distance():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5000, 4)) @ np.diag([3, 2, 1, 0.5]) @ rng.normal(size=(4, 4)) + 7
    gaussian, asked = FeatureGaussian.fit(features), features[:5] + 1
    inverse = np.linalg.inv(np.cov(features.T, bias=True))
    wanted = [mahalanobis(row, features.mean(axis=0), inverse) for row in asked]
    assert gaussian.distance(asked) == pytest.approx(wanted, rel=1e-6)


def test_fewer_images_than_features_still_separate_strange_images():
    rng = np.random.default_rng(1)
    ways = rng.normal(size=(8, 300))

    def drawn(n, away=0.0):
        return rng.normal(size=(n, 8)) @ ways + 0.5 * rng.normal(size=(n, 300)) + away

    gaussian = FeatureGaussian.fit(drawn(60))
    own, other = gaussian.distance(drawn(200)), gaussian.distance(drawn(200, away=0.4))
    assert len(gaussian.directions) == 30
    assert (other[:, None] > own).mean() > 0.95


@pytest.mark.parametrize("features", [np.zeros((5, 3)), np.array([[0.0], [1.0]]), np.ones((2, 7))])
def test_features_that_do_not_vary_give_finite_distances(features):
    assert np.isfinite(FeatureGaussian.fit(features).distance(features + 1)).all()


def test_the_separation_is_the_share_of_right_pairs_and_two_medians():
    own = pd.DataFrame({"sample": list("abc"), "patient": list("abc"), "energy": [1.0, 2.0, 5.0]})
    other = pd.DataFrame({"sample": list("ab"), "patient": list("ab"), "energy": [3.0, 4.0], "mahalanobis": [1.0, 2.0]})
    found = separation_auroc(own, other)
    assert list(found) == ["energy"]  # the other score is not known of both
    assert found["energy"]["auroc"]["value"] == pytest.approx(4 / 6)
    assert (found["energy"]["own"], found["energy"]["other"]) == (2.0, 3.5)
