"""The surface finds the lowest point of nearly quadratic losses from a few runs of short and whole budgets."""

import itertools

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.experiments.surface import Coordinates, Surface

NAMES = ["model.gpt.d_model", "model.gpt.n_layers", "model.optimizer.lr"]
GRID = np.array(list(itertools.product(np.linspace(-1, 1, 9), repeat=3)))
LOWEST = np.array([-0.5, -0.25, 0.25])  # of whole runs; short ones have it elsewhere


def true_loss(points, share):
    budget = np.log(share) / np.log(16)
    lowest = LOWEST + 0.3 * np.array([budget, budget, 0.0])
    return np.exp(0.7 - 0.5 * budget + 0.1 * ((points - lowest) ** 2).sum(1))


def runs(rng, number, share):
    points = rng.uniform(-0.8, 0.8, (number, 3))
    return points, [share] * number, true_loss(points, share) * np.exp(rng.normal(0, 0.012, number))


@pytest.fixture
def surface():
    rng = np.random.default_rng(3)
    parts = [runs(rng, 8, 1 / 8), runs(rng, 4, 1.0)]
    return Surface.fit(NAMES, *(np.concatenate(each) for each in zip(*parts, strict=True)))


def test_the_lowest_point_of_whole_runs_is_found_from_a_dozen_runs(surface):
    means, _ = surface.predict(GRID)
    chosen = GRID[means.argmin()][None]
    assert true_loss(chosen, 1.0)[0] < 1.03 * true_loss(LOWEST[None], 1.0)[0]
    assert np.corrcoef(means, np.log(true_loss(GRID, 1.0)))[0, 1] > 0.9


def test_the_deviation_is_that_of_the_errors_and_largest_far_from_the_runs(surface):
    means, deviations = surface.predict(GRID)
    errors = np.abs(means - np.log(true_loss(GRID, 1.0))) / deviations
    assert np.mean(errors < 2) > 0.9
    corner, middle = surface.predict(np.array([[1.0, 1.0, -1.0], [-0.2, -0.2, 0.0]]))[1]
    assert corner > 2 * middle


def test_without_runs_that_tell_otherwise_losses_rise_to_both_ends_and_wide_networks_want_low_rates():
    surface = Surface.fit(NAMES, np.zeros((2, 3)), [1 / 8, 1.0], [3.0, 2.0])
    middle, low, high = surface.predict(np.array([[0.0] * 3, [0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]))[0]
    assert low > middle < high
    wide = surface.predict(np.array([[1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]))[0]
    assert wide[0] < wide[1]


def test_options_become_numbers_by_their_logarithms_by_themselves_or_one_per_value():
    points = [
        (
            ("width", str(width)),
            ("rate", rate),
            ("share", share),
            ("norm", norm),
            ("clip", clip),
            ("same", "1"),
            ("follows", "9"),
        )
        for width, rate, share, norm, clip in [
            (64, "1e-3", "0.8", "RMS", "1.0"),
            (128, "1e-2", "0.9", "Layer", "null"),
            (256, "3e-3", "1.0", "RMS", "1.0"),
        ]
    ]
    coordinates = Coordinates(points, ["width", "rate", "share", "norm", "clip", "same", "missing"])
    assert coordinates.names == ["width", "rate", "share", "norm", "clip"]
    assert coordinates.logs == ["width", "rate"]
    found = coordinates.of(points)
    assert found[:, 0] == pytest.approx([-1, 0, 1])
    assert found[:, 1] == pytest.approx([-1, 1, -0.0458], abs=1e-3)
    assert found[:, 2] == pytest.approx([-1, 0, 1])
    assert found[:, 3] == pytest.approx([-1, 1, -1])
    assert found[:, 4] == pytest.approx([-1, 1, -1])  # not all of its values are numbers
