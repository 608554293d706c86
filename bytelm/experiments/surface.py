"""A surface of the loss over the options of a run and its budget, fitted to a few runs.

The logarithm of the loss is a quadratic of the options and of the logarithm of the budget (a response surface, Box and
Wilson 1951). A plan has fewer runs than such a surface has coefficients. These therefore have normal prior
distributions, and the fit is Bayesian linear regression, whose result is a normal distribution, too. The priors are
those of losses near their minimum: within the range of an option, the loss first falls and then rises by some 10 %.
A larger network wants a lower learning rate. The best values may change with the budget.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from bytelm.experiments.task import Point

NOISE = 0.012  # of the logarithm of the loss of a run within the whole budget: small runs vary by 0.5 to 2 % with seeds
# Priors: mean and standard deviation. An option goes from -1 to 1 between the ends of its range, and the budget, as a
# logarithm, from -1 for a sixteenth to 0 for the whole one.
INTERCEPT, BUDGET, BUDGET_SQUARED = (0.0, 10.0), (-0.5, 0.25), (0.0, 0.3)
SLOPE, CURVATURE, PRODUCT, WITH_BUDGET = (0.0, 0.15), (0.1, 0.05), (0.0, 0.05), (0.0, 0.12)
WIDTH_AND_RATE = (0.06, 0.05)
# Standard deviation of what the surface leaves over: at the whole budget, and what is added at a sixteenth.
MISFIT, SHORT_MISFIT = 0.015, 0.015
LOG_RATIO = 2.0  # positive numbers that differ by this factor count as logarithms


class Coordinates:
    """The options of candidates as numbers from -1 to 1.

    Args:
        candidates: All candidates.
        keys: The keys of the options; one without a value in some of the candidates does not count.
    """

    def __init__(self, candidates: Sequence[Point], keys: Collection[str]) -> None:
        values = [dict(candidate) for candidate in candidates]
        self._axes: dict[str, tuple[bool, float, float]] = {}
        self._choices: list[tuple[str, str]] = []
        for key in keys:
            if not all(key in each for each in values):
                continue
            texts = list(dict.fromkeys(each[key] for each in values))
            numbers = [_number(text) for text in texts]
            if len(texts) < 2:
                continue
            if any(number is None for number in numbers):
                self._choices += [(key, text) for text in texts[1:]]
            else:
                known = [number for number in numbers if number is not None]
                low, high = min(known), max(known)
                is_log = low > 0 and high / low >= LOG_RATIO
                self._axes[key] = (is_log, *((math.log(low), math.log(high)) if is_log else (low, high)))

    @property
    def numbers(self) -> list[str]:
        """The keys whose values are numbers."""
        return list(self._axes)

    @property
    def logs(self) -> list[str]:
        """The keys whose logarithms count."""
        return [key for key, (is_log, *_) in self._axes.items() if is_log]

    @property
    def names(self) -> list[str]:
        """The key of each coordinate."""
        return [*self._axes, *(key for key, _ in self._choices)]

    def of(self, candidates: Sequence[Point]) -> np.ndarray:
        """The coordinates of candidates, (candidates, coordinates)."""
        rows = []
        for candidate in candidates:
            values, row = dict(candidate), []
            for key, (is_log, low, high) in self._axes.items():
                number = float(values[key])
                row.append(2 * ((math.log(number) if is_log else number) - low) / (high - low) - 1)
            row += [1.0 if values[key] == text else -1.0 for key, text in self._choices]
            rows.append(row)
        return np.array(rows, float).reshape(len(rows), len(self.names))


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


def _number(text: str) -> float | None:
    """A number in the text of an option; None for anything else, such as a truth value."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
