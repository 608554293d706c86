"""The fit recovers a law from points that follow it."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from bytelm.experiments.loss_law import LEAST_POINTS, LossLaw, effective_tokens

TRUE = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}


def true_loss(n, d):
    return TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]


def points(noise=0.0, seed=0):
    n, d = (grid.ravel() for grid in np.meshgrid(np.logspace(5, 8, 6), np.logspace(6, 10, 6)))
    return n, d, true_loss(n, d) * np.exp(np.random.default_rng(seed).normal(0, noise, n.shape))


def test_a_known_law_is_recovered():
    law = LossLaw.fit(*points())
    a, b, e, alpha, beta = law.parameters
    assert [np.exp(e), alpha, beta] == pytest.approx([TRUE["E"], TRUE["alpha"], TRUE["beta"]], rel=0.02)
    assert [np.exp(a), np.exp(b)] == pytest.approx([TRUE["A"], TRUE["B"]], rel=0.1)
    assert np.abs(law.residuals).max() < 1e-3


def test_a_prediction_beyond_the_points_has_an_interval_that_contains_the_truth():
    inside = []
    for seed in range(3):
        n, d, loss = points(noise=0.01, seed=seed)
        small = d < 1e9
        law = LossLaw.fit(n[small], d[small], loss[small], seed=seed)
        low, high = law.interval(1e7, 1e10)
        inside.append(low <= true_loss(1e7, 1e10) <= high)
        assert law.predict(1e7, 1e10) == pytest.approx(true_loss(1e7, 1e10), rel=0.05)
    assert all(inside)


def test_the_loss_of_endless_training_is_not_fitted_as_nothing():
    """Short runs of one size follow a power law of the tokens, which alone says nothing of its floor."""
    d = np.logspace(5, 6, 8)
    law = LossLaw.fit(np.full(8, 1e5), d, 60 / d**0.22)
    assert np.exp(law.parameters[2]) >= 0.4 * (60 / 1e6**0.22) - 1e-9
    assert law.predict(1e5, 1e7) > 1.05 * 60 / 1e7**0.22


def test_repeated_tokens_count_less_and_tokens_of_the_first_reading_count_in_full():
    assert effective_tokens([10.0, 100.0], 100.0) == pytest.approx([10.0, 100.0])
    repeated = effective_tokens([200.0, 400.0, 1e9], 100.0)
    assert repeated[0] == pytest.approx(100 + 1538.7743 * (1 - np.exp(-1 / 15.387743)))
    assert np.diff(repeated)[0] < 200
    assert repeated[2] == pytest.approx(1638.7743)
    assert effective_tokens(500.0, None) == 500.0


def test_too_few_points_are_rejected():
    n, d, loss = (values[: LEAST_POINTS - 1] for values in points())
    with pytest.raises(ValueError, match="too few"):
        LossLaw.fit(n, d, loss)
