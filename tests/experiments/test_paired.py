"""The statistics of paired runs: by simulation, and against known values."""

import numpy as np
import pytest

pytest.importorskip("scipy")

from scipy import stats

from bytelm.experiments.paired import ERROR_RATE, Difference, evidence, holm, p_value

STUDIES, SEEDS = 2000, 50


def claims(effect, comparisons=1, seed=0):
    """For each simulated study, the number of seeds after which a difference is claimed; 0 for none.

    Args:
        effect: True difference, in standard deviations of a difference.
        comparisons: Number of comparisons that the error rate is shared by.
        seed: Seed of the simulation.
    """
    differences = np.random.default_rng(seed).normal(effect, 1.0, (STUDIES, SEEDS))
    claimed = evidence(differences) >= comparisons / ERROR_RATE
    return np.where(claimed.any(-1), claimed.argmax(-1) + 1, 0)


def test_without_a_difference_at_most_5_percent_of_studies_that_stop_when_it_is_settled_claim_one():
    assert np.count_nonzero(claims(0.0)) <= 0.05 * STUDIES
    # An ordinary t-test after each seed does: the simulation would show a wrong error rate.
    differences = np.random.default_rng(0).normal(0.0, 1.0, (STUDIES, SEEDS))
    n = np.arange(2, SEEDS + 1)
    looks = [stats.ttest_1samp(differences[:, :k], 0.0, axis=-1).pvalue <= ERROR_RATE for k in n]
    assert np.count_nonzero(np.any(looks, axis=0)) > 0.2 * STUDIES


def test_of_several_comparisons_without_a_difference_at_most_5_percent_of_studies_claim_any():
    wrong = np.zeros(STUDIES, bool)
    p = []
    for seed in range(3):
        ratios = evidence(np.random.default_rng(seed).normal(0.0, 1.0, (STUDIES, SEEDS)))
        p.append(np.minimum(1.0, 1.0 / np.maximum.accumulate(ratios, axis=-1)[:, -1]))
    for study in range(STUDIES):
        wrong[study] = min(holm([each[study] for each in p])) <= ERROR_RATE
    assert np.count_nonzero(wrong) <= 0.05 * STUDIES


def test_a_difference_is_found_the_sooner_the_larger_it_is():
    found = {effect: claims(effect) for effect in (1.0, 2.0, 4.0)}
    assert all(np.count_nonzero(some) > 0.95 * STUDIES for some in found.values())
    assert np.median(found[4.0]) < np.median(found[2.0]) < np.median(found[1.0])
    assert np.median(found[4.0]) <= 5


def test_evidence_is_that_of_the_t_statistic():
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.6])
    n, t = 5, float(stats.ttest_1samp(differences, 0.0).statistic)
    ratio = (1 + t**2 / (n - 1)) / (1 + t**2 / ((n - 1) * (1 + 4 * n)))
    assert evidence(differences)[-1] == pytest.approx(ratio ** (n / 2) / np.sqrt(1 + 4 * n))
    assert evidence(differences)[0] == pytest.approx(1.0)
    assert evidence(differences * 1000) == pytest.approx(evidence(differences))  # whatever the unit


def test_equal_scores_are_no_evidence_and_equal_differences_are():
    assert p_value([0.0] * 5) == 1.0
    assert p_value([-0.1]) == 1.0
    assert p_value([-0.1] * 5) < 0.01


def test_evidence_once_seen_stays():
    assert p_value([1.0, 1.01, 0.99, 1.0, -3.0]) == p_value([1.0, 1.01, 0.99, 1.0])


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_is_described_as_scipy_describes_it():
    first, second = [2.0, 2.1, 1.9, 2.05], [1.9, 2.02, 1.85, 1.9]
    difference = Difference.of(first, second)
    test = stats.ttest_rel(second, first)
    assert difference.mean == pytest.approx(-0.095)
    assert difference.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert difference.probability_lower == pytest.approx(1 - test.pvalue / 2)
    assert difference.noise == pytest.approx(np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2))
    assert difference.effect == pytest.approx(-0.095 / difference.noise)


def test_the_number_of_seeds_that_would_settle_it_settles_it():
    deviation = np.array([1.0, -1.0] * 10)
    for mean in (0.5, 1.0, 3.0):
        difference = Difference.of([0.0, 0.0], [mean - np.sqrt(0.5), mean + np.sqrt(0.5)])
        needed = difference.seeds_needed()
        for n, is_enough in ((needed, True), (needed - 1, False)):
            if n < 2:
                continue
            same = np.resize(deviation, n) - np.resize(deviation, n).mean()
            some = mean + same / same.std(ddof=1)
            assert bool(evidence(some)[-1] >= 1 / ERROR_RATE) is is_enough
        assert difference.seeds_needed(comparisons=3) >= needed
    assert Difference.of([1.0, 2.0], [2.0, 1.0]).seeds_needed() is None


def test_one_pair_has_a_wide_interval():
    difference = Difference.of([2.0], [1.0])
    assert (difference.mean, difference.interval, difference.probability_lower, difference.noise) == (
        -1,
        None,
        None,
        None,
    )
    assert not difference.is_settled
    assert difference.seeds_needed() is None
