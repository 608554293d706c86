"""A law of the loss in parameters and tokens, fitted to runs.

L = E + A / N^alpha + B / D^beta: approach 3 of Hoffmann et al. 2022 (arXiv:2203.15556). The logarithms of losses are
fitted by Huber loss, with L-BFGS from several starts. The intervals are those of fits to resampled runs (bootstrap).

A text that is read several times teaches less each time. D is therefore the effective number of tokens of Muennighoff
et al. 2023 (arXiv:2305.16264): with U tokens of text and R repetitions after the first reading, U + U R* (1 -
exp(-R / R*)). Their R* of 15.4 was measured on larger networks and texts.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

NAMES = ("E", "A", "alpha", "B", "beta")
REPETITIONS = 15.387743  # R*: after this many repetitions, another one is worth 1/e of fresh text
LEAST_RUNS, LEAST_SIZES = 6, 3  # one run more than values; two sizes say nothing of a curve
# Of the logarithm of a loss. The paper has 0.001, for runs that hardly vary with the seed. Small runs vary by 0.5 to
# 2 %: nearly all of them would count as outliers.
DELTA = 0.012
DRAWS = 100  # resampled sets of runs
STARTS = 2  # of each of their fits; random ones, so that values that the runs leave open differ between the fits
LEAST_TERM = 0.01  # of the lowest loss: a term of the law
MOST_EXPONENT = 2.0


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
    """A fitted law.

    Attributes:
        fits: log E, log A', alpha, log B' and beta of the fit to all runs, then of those to resampled ones, (1 + DRAWS,
            5). A' and B' are the terms of N and D at the center.
        bounds: The lowest and the highest value of each that a fit may have, (5, 2).
        center: Mean logarithms of the runs' parameters and effective tokens.
        apart: Root mean square of the runs' distance from the law, in logarithms of the loss.
    """

    fits: np.ndarray
    bounds: np.ndarray
    center: np.ndarray
    apart: float

    @classmethod
    def fit(cls, params: Sequence[float], tokens: Sequence[float], losses: Sequence[float], seed: int = 0) -> "LossLaw":
        """Fits the law.

        Args:
            params: Parameters of each run's network.
            tokens: Its effective tokens.
            losses: Its loss, in any unit.
            seed: Seed of the resampling.

        Raises:
            ValueError: There are fewer than LEAST_RUNS runs, or LEAST_SIZES numbers of parameters.
        """
        if len(losses) < LEAST_RUNS or len(set(params)) < LEAST_SIZES:
            raise ValueError(
                f"{len(losses)} completed runs of {len(set(params))} sizes are too few for its five values; it needs "
                f"{LEAST_RUNS} runs of {LEAST_SIZES} sizes"
            )
        logs, wanted = np.log(np.array([params, tokens], float)), np.log(np.asarray(losses, float))
        center = logs.mean(1)
        terms = _terms(*(logs - center[:, None]))
        flat = terms.reshape(-1, len(NAMES))
        low, high = float(wanted.min()), float(wanted.max())
        term, exponent = (low + np.log(LEAST_TERM), high), (0.0, MOST_EXPONENT)
        bounds = np.array([term, term, exponent, term, exponent])
        starts = [
            [low + np.log(e), low + np.log((1 - e) / 2), alpha, low + np.log((1 - e) / 2), beta]
            for e, alpha, beta in itertools.product((0.1, 0.5, 0.8), (0.2, 0.8), (0.2, 0.8))
        ]

        def solve(counts: np.ndarray, starts: Sequence[Sequence[float]]) -> np.ndarray:
            def distance(values: np.ndarray) -> tuple[float, np.ndarray]:
                parts = np.exp(terms @ values)
                total = parts.sum(0)
                off = (np.log(total) - wanted) / DELTA
                inner = np.clip(off, -1, 1)
                huber = inner * (off - inner / 2)
                return float(counts @ huber), (parts * (counts * inner / DELTA / total)).ravel() @ flat

            ends = [minimize(distance, start, jac=True, method="L-BFGS-B", bounds=bounds, tol=1e-6) for start in starts]
            best: np.ndarray = min(ends, key=lambda end: float(end.fun)).x
            return best

        rng = np.random.default_rng(seed)
        number = len(losses)
        with threadpool_limits(1, "blas"):  # beside other processes, threads take 30 times as long for tiny matrices
            fits = [solve(np.ones(number), starts)]
            for _ in range(DRAWS):
                counts = rng.multinomial(number, np.full(number, 1 / number)).astype(float)
                some = rng.choice(len(starts), STARTS, replace=False)
                fits.append(solve(counts, [starts[place] for place in some]))
        apart = np.log(np.exp(terms @ fits[0]).sum(0)) - wanted
        return cls(np.array(fits), bounds, center, float(np.sqrt((apart**2).mean())))

    def losses(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The losses of networks by each fit, (1 + DRAWS, networks).

        Args:
            params: Their parameters.
            tokens: Their effective tokens.
        """
        terms = _terms(np.log(params) - self.center[0], np.log(tokens) - self.center[1])
        total: np.ndarray = np.exp(terms @ self.fits.T).sum(0).T
        return total

    def values(self) -> dict[str, tuple[float, float, float]]:
        """E, A, alpha, B and beta, each with the ends of its 95 % interval."""
        e, a, alpha, b, beta = self.fits.T
        logs = (e, a + alpha * self.center[0], alpha, b + beta * self.center[1], beta)
        columns = [each if name in ("alpha", "beta") else np.exp(each) for name, each in zip(NAMES, logs, strict=True)]
        return {name: (float(each[0]), *interval(each)) for name, each in zip(NAMES, columns, strict=True)}

    def open_values(self) -> list[str]:
        """The values that the runs leave open: their intervals reach a bound of the fit.

        A term that may be nothing leaves its exponent open, too.
        """
        ends = np.array([interval(each) for each in self.fits.T])
        is_open = (np.abs(ends - self.bounds) < 1e-3).any(1)
        is_open[[2, 4]] |= is_open[[1, 3]]
        return [name for name, one in zip(NAMES, is_open, strict=True) if one]


def interval(fits: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of what the resampled fits say, without the first one."""
    low, high = np.quantile(fits[1:], [0.025, 0.975])
    return float(low), float(high)


def _terms(of_n: np.ndarray, of_d: np.ndarray) -> np.ndarray:
    """What the logarithms of the law's three terms are made of, (3, runs, 5): its product with a fit are they."""
    one, no = np.ones_like(of_n), np.zeros_like(of_n)
    rows = [[one, no, no, no, no], [no, one, -of_n, no, no], [no, no, no, one, -of_d]]
    return np.moveaxis(np.array(rows), 1, 2)
