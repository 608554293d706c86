"""A surface of the loss over the options of a run and its budget, fitted to a few runs.

The logarithm of the loss is a quadratic of the options and of the logarithm of the budget (a response surface, Box and
Wilson 1951). A plan has fewer runs than such a surface has coefficients. These therefore have normal prior
distributions, and the fit is Bayesian linear regression, whose result is a normal distribution, too. The priors are
those of losses near their minimum: within the range of an option, the loss first falls and then rises by some 10 %.
A larger network wants a lower learning rate. The best values may change with the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOISE = 0.012  # of the logarithm of the loss of a run within the whole budget: small runs vary by 0.5 to 2 % with seeds
# Priors: mean and standard deviation. An option goes from -1 to 1 between the ends of its range, and the budget, as a
# logarithm, from -1 for a sixteenth to 0 for the whole one.
INTERCEPT, BUDGET, BUDGET_SQUARED = (0.0, 10.0), (-0.5, 0.25), (0.0, 0.3)
SLOPE, CURVATURE, PRODUCT, WITH_BUDGET = (0.0, 0.15), (0.1, 0.05), (0.0, 0.05), (0.0, 0.12)
WIDTH_AND_RATE = (0.06, 0.05)
# Standard deviation of what the surface leaves over: at the whole budget, and what is added at a sixteenth.
MISFIT, SHORT_MISFIT = 0.015, 0.015


@dataclass(frozen=True)
class Surface:
    """A fitted surface.

    Attributes:
        mean: Its coefficients.
        covariance: Of the coefficients.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(
        cls, names: Sequence[str], points: np.ndarray, shares: Sequence[float], losses: Sequence[float]
    ) -> "Surface":
        """Fits the surface.

        Args:
            names: The key of each coordinate.
            points: Coordinates of the runs, (runs, coordinates).
            shares: Share of the whole budget of each run.
            losses: Loss of each run, in any unit.
        """
        budgets = _log_shares(shares)
        means, scales = np.array(_priors(names)).T
        spread = np.hypot(NOISE, MISFIT - SHORT_MISFIT * np.maximum(budgets, -1.5))
        terms = _terms(points, budgets) / spread[:, None]
        covariance = np.linalg.inv(terms.T @ terms + np.diag(1 / scales**2))
        mean = covariance @ (terms.T @ (np.log(losses) / spread) + means / scales**2)
        return cls(mean, covariance)

    def predict(self, points: np.ndarray, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """The logarithm of the loss, and its standard deviation without the noise of a run.

        Args:
            points: Coordinates, (points, coordinates).
            share: Share of the whole budget.
        """
        terms = _terms(points, np.full(len(points), _log_shares([share])[0]))
        return terms @ self.mean, np.sqrt(((terms @ self.covariance) * terms).sum(1))


def _log_shares(shares: Sequence[float]) -> np.ndarray:
    logs: np.ndarray = np.log(np.asarray(shares, float)) / np.log(16)
    return logs


def _pairs(number: int) -> list[tuple[int, int]]:
    return [(one, other) for one in range(number) for other in range(one, number)]


def _terms(points: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    ones = np.ones(len(points))
    quadratic = [points[:, one] * points[:, other] for one, other in _pairs(points.shape[1])]
    return np.stack([ones, budgets, budgets**2, *points.T, *quadratic, *(points.T * budgets)], axis=1)


def _priors(names: Sequence[str]) -> list[tuple[float, float]]:
    """Mean and standard deviation of each coefficient, in the order of the terms."""
    last = [name.rpartition(".")[2] for name in names]
    quadratic = []
    for one, other in _pairs(len(names)):
        of_rate = {last[one], last[other]} == {"d_model", "lr"}
        quadratic.append(CURVATURE if one == other else WIDTH_AND_RATE if of_rate else PRODUCT)
    return [INTERCEPT, BUDGET, BUDGET_SQUARED, *[SLOPE] * len(names), *quadratic, *[WITH_BUDGET] * len(names)]
