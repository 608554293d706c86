"""Statistics of paired runs: two experiments with the same seeds, compared by the differences of their scores.

The number of seeds is not fixed in advance: seeds are added until the difference is settled. Looking at an ordinary
t-test after every seed would claim differences that do not exist far more often than its level says. `evidence` is
therefore a test whose error rate holds whenever one stops: the sequential t-test that mixes over effect sizes (Robbins
1970; Lai 1976; Pérez-Ortiz et al. 2024, arXiv:2208.07610). It is a likelihood ratio of what a t-statistic says, so
whatever the unknown variance is, it exceeds 1 / alpha at any time with a probability of at most alpha if there is no
difference (Ville's inequality). Differences are assumed to be normally distributed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ERROR_RATE = 0.05  # of all claims of one comparison together
CONFIDENCE = 1 - ERROR_RATE
# Variance of the effect, in standard deviations of a difference, that the test mixes over. Small values need many seeds
# for large effects, large values need many for small ones; 4 suits 5 to 20 seeds.
EFFECT_VARIANCE = 4.0
MOST_SEEDS = 1000  # that `seeds_needed` looks for


def evidence(differences: np.ndarray) -> np.ndarray:
    """Evidence against no difference, after each seed: the likelihood ratio of the sequential t-test.

    Args:
        differences: Differences of paired scores, (..., seeds), in the order in which the seeds were added.

    Returns:
        The ratio after each seed, (..., seeds). It is 1 after the first seed, which says nothing about the variance.
    """
    n = np.arange(1, differences.shape[-1] + 1)
    mean = differences.cumsum(-1) / n
    mean_square = n * mean**2
    spread = np.maximum((differences**2).cumsum(-1) - mean_square, 0.0)  # sum of squares around the mean
    widened = 1 + n * EFFECT_VARIANCE
    total = spread + mean_square
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(total > 0, total / (spread + mean_square / widened), 1.0)
    return ratio ** (n / 2) / np.sqrt(widened) * np.where(total > 0, 1.0, np.sqrt(widened))


def p_value(differences: Sequence[float]) -> float:
    """A p-value that is valid at any number of seeds: the inverse of the largest evidence so far, at most 1.

    Args:
        differences: Differences of paired scores, in the order of the seeds.
    """
    if len(differences) < 2:
        return 1.0
    return float(min(1.0, 1.0 / evidence(np.asarray(differences, float)).max()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons, adjusted for their number (Holm 1979).

    A comparison whose adjusted value is at most alpha can be claimed; the probability that any claim is wrong is then
    at most alpha.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Difference:
    """The difference between two experiments, from pairs of runs with equal seeds.

    Attributes:
        differences: Score of the second minus score of the first, by seed, in the order of the seeds.
        noise: Standard deviation of a run's score over seeds, pooled over both; None if it is not known.
        p_value: P-value of the sequential test, adjusted for the number of comparisons.
    """

    differences: tuple[float, ...]
    noise: float | None
    p_value: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float], comparisons_p: float | None = None) -> "Difference":
        """The difference of paired scores.

        Args:
            first: Scores of the first experiment, by seed.
            second: Scores of the second with the same seeds.
            comparisons_p: The adjusted p-value; default: that of these differences alone.
        """
        differences = tuple(b - a for a, b in zip(first, second, strict=True))
        noise = None
        if len(differences) > 1:
            noise = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
        return cls(differences, noise, p_value(differences) if comparisons_p is None else comparisons_p)

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences))

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the differences; None with fewer than two pairs."""
        return float(np.std(self.differences, ddof=1)) if len(self.differences) > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(len(self.differences))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean difference, by Student's t; it is that of this number of seeds."""
        if self.error is None:
            return None
        margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(self.differences) - 1)) * self.error
        return self.mean - margin, self.mean + margin

    @property
    def probability_lower(self) -> float | None:
        """Probability that the second experiment's score is the lower one, without prior knowledge (Student's t)."""
        if self.error is None:
            return None
        if self.error == 0:
            return 0.5 if self.mean == 0 else float(self.mean < 0)
        return float(stats.t.cdf(-self.mean / self.error, len(self.differences) - 1))

    @property
    def effect(self) -> float | None:
        """The mean difference in standard deviations of a run's score over seeds."""
        return self.mean / self.noise if self.noise else None

    @property
    def is_settled(self) -> bool:
        """Whether the sequential test claims a difference."""
        return self.p_value <= ERROR_RATE

    def seeds_needed(self, comparisons: int = 1) -> int | None:
        """Number of seeds that would settle it, if mean and deviation are and stay the measured ones.

        Args:
            comparisons: Number of comparisons that the error rate is shared by.

        Returns:
            The number of seeds, those so far included; None if it is unknown or above MOST_SEEDS.
        """
        if self.deviation is None or self.mean == 0:
            return None
        n = np.arange(2, MOST_SEEDS + 1)
        mean_square, spread = n * self.mean**2, (n - 1) * self.deviation**2
        widened = 1 + n * EFFECT_VARIANCE
        log_ratio = np.log(spread + mean_square) - np.log(spread + mean_square / widened)
        log_evidence = n / 2 * log_ratio - np.log(widened) / 2
        enough = n[log_evidence >= math.log(comparisons / ERROR_RATE)]
        return int(enough[0]) if len(enough) else None
