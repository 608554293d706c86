"""The fit recovers a law from runs that follow it, and its intervals contain the truth."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from bytelm.experiments.loss_law import LEAST_POINTS, LossLaw, effective_tokens

N = np.geomspace(5e4, 8e5, 8)  # parameters of eight candidates
SPEED = 4e4 / (N / 2e5) ** 0.7  # tokens a second
OWN = np.exp(np.random.default_rng(5).normal(0, 0.1, 8))  # what the law does not know, such as learning rates
SHARES = (11.0, 22.0, 45.0)  # seconds
WHOLE = 180.0


def true_loss(place, seconds):
    return 1.75 + 9.0 / N[place] ** 0.32 + OWN[place] * 25.0 / (SPEED[place] * seconds) ** 0.24


def runs(seed=0, noise=0.01):
    """Rounds with fewer and fewer candidates, as those of a plan."""
    rng = np.random.default_rng(seed)
    kept, made = list(range(8)), []
    for seconds, count in zip(SHARES, (8, 4, 2), strict=True):
        kept = sorted(kept, key=lambda place: true_loss(place, seconds))[:count]
        made += [(p, N[p], SPEED[p] * seconds, true_loss(p, seconds) * np.exp(rng.normal(0, noise))) for p in kept]
    return [list(values) for values in zip(*made, strict=True)], kept


def test_the_best_candidates_are_predicted_without_bias_and_the_intervals_are_honest():
    errors, inside = [], []
    for seed in range(6):
        made, kept = runs(seed)
        law = LossLaw.fit(*made, seed=seed)
        for place in kept:
            truth, tokens = true_loss(place, WHOLE), SPEED[place] * WHOLE
            errors.append(law.predict(place, N[place], tokens) / truth - 1)
            low, high = law.interval(place, N[place], tokens)
            inside.append(low < truth < high)
            assert (high - low) / truth < 0.25
    assert abs(np.mean(errors)) < 0.02
    assert np.abs(errors).max() < 0.05
    assert np.mean(inside) > 0.9


def test_candidates_with_longer_runs_have_narrower_intervals():
    made, kept = runs()
    law = LossLaw.fit(*made)
    widths = []
    for place in (kept[0], next(p for p in made[0] if made[0].count(p) == 1)):
        low, high = law.interval(place, N[place], SPEED[place] * WHOLE)
        widths.append(np.log(high / low))
    assert widths[0] < widths[1]


def test_a_candidate_that_learns_better_than_the_law_says_keeps_its_advantage():
    made, _ = runs(noise=0.0)
    law = LossLaw.fit(*made)
    made[3] = [loss * (0.95 if place == 0 else 1.0) for place, loss in zip(made[0], made[3], strict=True)]
    better = LossLaw.fit(*made)
    predicted = [one.predict(0, N[0], SPEED[0] * WHOLE) for one in (law, better)]
    assert 0.93 < predicted[1] / predicted[0] < 0.99


def test_the_loss_of_endless_training_is_not_fitted_as_nothing():
    """Short runs of one size follow a power law of the tokens, which alone says nothing of its floor."""
    d = np.geomspace(1e5, 1e6, 8)
    law = LossLaw.fit([0] * 8, np.full(8, 1e5), d, 60 / d**0.22)
    assert 0.25 * (60 / 1e6**0.22) < np.exp(law.parameters[0]) < 60 / 1e6**0.22
    assert law.predict(0, 1e5, 1e7) > 1.05 * 60 / 1e7**0.22


def test_the_curve_is_the_law_without_the_candidates_own_factors():
    made, _ = runs()
    law = LossLaw.fit(*made)
    losses = law.curve(np.array([1e5, 1e5]), np.array([1e6, 1e7]))
    assert losses[0] > losses[1] > np.exp(law.parameters[0])


def test_repeated_tokens_count_less_and_tokens_of_the_first_reading_count_in_full():
    assert effective_tokens([10.0, 100.0], 100.0) == pytest.approx([10.0, 100.0])
    repeated = effective_tokens([200.0, 400.0, 1e9], 100.0)
    assert repeated[0] == pytest.approx(100 + 1538.7743 * (1 - np.exp(-1 / 15.387743)))
    assert np.diff(repeated)[0] < 200
    assert repeated[2] == pytest.approx(1638.7743)
    assert effective_tokens(500.0, None) == 500.0


def test_too_few_points_are_rejected():
    made, _ = runs()
    with pytest.raises(ValueError, match="too few"):
        LossLaw.fit(*(values[: LEAST_POINTS - 1] for values in made))
