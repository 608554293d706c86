"""A law of the loss in parameters and tokens, fitted to short runs.

L(N, D) = E + A / N^alpha + B / D^beta, as in approach 3 of Hoffmann et al. 2022 (arXiv:2203.15556): the Huber loss of
the difference of logarithms, minimised by L-BFGS from several starts. The uncertainty is that of a bootstrap.

A text that is read several times teaches less each time. D is therefore the effective number of tokens of Muennighoff
et al. 2023 (arXiv:2305.16264): with U tokens of text and R repetitions after the first reading, U + U R* (1 -
exp(-R / R*)). Their R* of 15.4 was measured on larger networks and texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

REPETITIONS = 15.387743  # R*: after this many repetitions, another one is worth 1/e of fresh text
DELTA = 1e-3  # where the Huber loss of a logarithm becomes linear
STARTS = 24
BOOTSTRAPS = 100
LEAST_POINTS = 6
# Of E, as a share of the lowest loss. Short runs leave E open. Their best fit is often E = 0, and then the predictions
# are too low (docs/research.md).
LEAST_E = 0.4
# Of log A, log B, alpha, beta. Few points of small networks leave exponents open; these are generous.
OF_FACTOR, OF_EXPONENT = (-10.0, 40.0), (0.02, 2.0)


def effective_tokens(tokens: np.ndarray | float, unique: float | None) -> np.ndarray:
    """Tokens of fresh text that teach as much as tokens of a text that is read repeatedly.

    Args:
        tokens: Tokens trained on.
        unique: Tokens of the text; None if it is not known, or is not repeated.
    """
    tokens = np.asarray(tokens, float)
    if unique is None:
        return tokens
    repeated = np.maximum(tokens / unique - 1, 0.0)
    return np.minimum(tokens, unique) + unique * REPETITIONS * (1 - np.exp(-repeated / REPETITIONS))


@dataclass(frozen=True)
class LossLaw:
    """A fitted law. All arguments of its methods are arrays of equal shape.

    Attributes:
        parameters: log A, log B, log E, alpha, beta of the best fit.
        bootstrap: The same for each resampled set of points, (BOOTSTRAPS, 5).
        residuals: Logarithm of measured over fitted loss, of each point.
    """

    parameters: np.ndarray
    bootstrap: np.ndarray
    residuals: np.ndarray

    @classmethod
    def fit(cls, params: Sequence[float], tokens: Sequence[float], losses: Sequence[float], seed: int = 0) -> "LossLaw":
        """Fits the law.

        Args:
            params: Parameters of each run's network.
            tokens: Effective tokens of each run.
            losses: Loss of each run, in any unit.
            seed: Seed of the starts and of the bootstrap.

        Raises:
            ValueError: There are fewer than LEAST_POINTS points.
        """
        if len(losses) < LEAST_POINTS:
            raise ValueError(f"{len(losses)} runs are too few for a law with 5 parameters; at least {LEAST_POINTS}")
        n, d, loss = (np.log(np.asarray(values, float)) for values in (params, tokens, losses))
        of_e = (float(loss.min() + np.log(LEAST_E)), float(loss.min()))
        bounds = (OF_FACTOR, OF_FACTOR, of_e, OF_EXPONENT, OF_EXPONENT)
        rng = np.random.default_rng(seed)
        fits = [
            _minimise(np.clip(start, *np.array(bounds).T), n, d, loss, bounds) for start in _starts(rng, n, d, loss)
        ]
        best = min(fits, key=lambda fit: fit[1])[0]
        resampled = []
        for _ in range(BOOTSTRAPS):
            some = rng.integers(len(loss), size=len(loss))
            resampled.append(_minimise(best, n[some], d[some], loss[some], bounds)[0])
        return cls(best, np.array(resampled), loss - _log_loss(best, n, d))

    def predict(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """The loss of networks of a size after a number of effective tokens."""
        return np.exp(_log_loss(self.parameters, np.log(params), np.log(tokens)))

    def interval(self, params: float, tokens: float, seed: int = 0) -> tuple[float, float]:
        """95 % interval of the loss of one run: the uncertainty of the law, and the scatter of runs around it."""
        laws = np.array([_log_loss(one, np.log(params), np.log(tokens)) for one in self.bootstrap])
        freedom = max(len(self.residuals) - 5, 1)
        scatter = float(np.sqrt((self.residuals**2).sum() / freedom))
        noise = np.random.default_rng(seed).normal(0.0, scatter, (50, 1))
        low, high = np.quantile(np.exp(laws + noise), [0.025, 0.975])
        return float(low), float(high)


def _log_loss(parameters: np.ndarray, log_params: np.ndarray, log_tokens: np.ndarray) -> np.ndarray:
    a, b, e, alpha, beta = parameters
    return np.logaddexp(np.logaddexp(a - alpha * log_params, b - beta * log_tokens), e)


def _minimise(
    start: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray, bounds: Sequence[tuple[float, float]]
) -> tuple[np.ndarray, float]:
    def error(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = parameters
        terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
        fitted = np.logaddexp.reduce(terms)
        apart = (fitted - loss) / DELTA
        huber = np.where(np.abs(apart) <= 1, apart**2 / 2, np.abs(apart) - 0.5)
        shares = np.exp(terms - fitted)
        by_term = (np.clip(apart, -1, 1) / DELTA * shares).sum(-1)
        slopes = [-(np.clip(apart, -1, 1) / DELTA * share * x).sum() for share, x in ((shares[0], n), (shares[1], d))]
        return float(huber.sum()), np.array([*by_term, *slopes])

    found = minimize(error, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000})
    return found.x, float(found.fun)


def _starts(rng: np.random.Generator, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> list[np.ndarray]:
    """Starts in which the three terms have random shares of the mean loss."""
    starts = []
    for _ in range(STARTS):
        alpha, beta = rng.uniform(0.1, 1.0, 2)
        of_n, of_d, rest = np.log(rng.dirichlet([1.0, 1.0, 1.0])) + loss.mean()
        starts.append(np.array([of_n + alpha * n.mean(), of_d + beta * d.mean(), rest, alpha, beta]))
    return starts
