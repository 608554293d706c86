"""A law of the loss in parameters and tokens, fitted to short runs of several candidates.

L = E + A / N^alpha + B / D^beta, the form of Hoffmann et al. 2022 (arXiv:2203.15556, approach 3). Short runs of a few
small networks leave several of these five values open: any E, from nothing to nearly the lowest loss, fits them, and
the predictions differ. The law therefore has prior distributions, wide ones around values of published laws, and the
best fit is the most probable one. Candidates also differ in things that the law does not know, such as their learning
rates: each has its own B and beta, near the common ones. One run of a candidate moves these little, several move them
more.

The interval of a prediction is that of fits to perturbed runs under perturbed priors (randomised maximum a posteriori,
Bardsley et al. 2014): it contains what the runs leave open, and the noise of one run.

A text that is read several times teaches less each time. D is therefore the effective number of tokens of Muennighoff
et al. 2023 (arXiv:2305.16264): with U tokens of text and R repetitions after the first reading, U + U R* (1 -
exp(-R / R*)). Their R* of 15.4 was measured on larger networks and texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

REPETITIONS = 15.387743  # R*: after this many repetitions, another one is worth 1/e of fresh text
LEAST_POINTS = 2
DRAWS = 60  # perturbed fits
NOISE = (
    0.012  # standard deviation of the logarithm of a run's loss, at least: small runs vary by 0.5 to 2 % with the seed
)
# Priors: mean and standard deviation of logarithms. E, and the terms of N and D at the runs' mean size and tokens, are
# shares of the lowest loss.
OF_E, OF_A, OF_B = (np.log(0.35), 0.5), (np.log(0.2), 0.7), (np.log(0.4), 0.6)
OF_ALPHA, OF_BETA = (np.log(0.35), 0.3), (np.log(0.3), 0.4)
OF_OWN_B, OF_OWN_BETA = 0.1, 0.1  # standard deviations of the candidates' own factors of B and beta
COMMON = 5  # log of E, A, alpha, B, beta


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
        parameters: Logarithms of E, A, alpha, B and beta, then of each candidate's factor of B, then of that of beta.
        draws: The same for each perturbed fit, (DRAWS, 5 + 2 candidates).
        center: Logarithms of the mean size and the mean tokens of the runs, at which A and B are the terms themselves.
        noise: Standard deviation of the logarithm of a run's loss.
    """

    parameters: np.ndarray
    draws: np.ndarray
    center: tuple[float, float]
    noise: float

    @classmethod
    def fit(
        cls,
        candidates: Sequence[int],
        params: Sequence[float],
        tokens: Sequence[float],
        losses: Sequence[float],
        shares: Sequence[float] | None = None,
        seed: int = 0,
    ) -> "LossLaw":
        """Fits the law. All arguments have one value per run.

        Args:
            candidates: Number of the run's candidate, from 0.
            params: Parameters of its network.
            tokens: Its effective tokens.
            losses: Its loss, in any unit.
            shares: Share of the whole budget that it was given. Longer runs count more: the law is only nearly right,
                and its slope at the whole budget matters. Default: all count the same.
            seed: Seed of the perturbations.

        Raises:
            ValueError: There are fewer than LEAST_POINTS runs.
        """
        if len(losses) < LEAST_POINTS:
            raise ValueError(f"{len(losses)} runs are too few for a law; at least {LEAST_POINTS}")
        which = np.asarray(candidates)
        spread = np.ones(len(losses)) if shares is None else 1 / np.sqrt(np.asarray(shares, float))
        n, d, loss = (np.log(np.asarray(values, float)) for values in (params, tokens, losses))
        center = (float(n.mean()), float(d.mean()))
        scaled = (n - center[0], d - center[1])
        own = int(which.max()) + 1
        lowest = float(loss.min())
        e, a, b = (lowest + mean for mean, _ in (OF_E, OF_A, OF_B))
        means = np.array([e, a, OF_ALPHA[0], b, OF_BETA[0], *[0.0] * (2 * own)])
        scales = np.array([OF_E[1], OF_A[1], OF_ALPHA[1], OF_B[1], OF_BETA[1], *[OF_OWN_B] * own, *[OF_OWN_BETA] * own])

        def solve(start: np.ndarray, means: np.ndarray, loss: np.ndarray, noise: np.ndarray) -> np.ndarray:
            def apart(values: np.ndarray) -> np.ndarray:
                return np.concatenate([(_log_loss(values, which, *scaled) - loss) / noise, (values - means) / scales])

            def slopes(values: np.ndarray) -> np.ndarray:
                return np.concatenate([_slopes(values, which, *scaled) / noise[:, None], np.diag(1 / scales)])

            found: np.ndarray = least_squares(apart, start, slopes, method="lm").x
            return found

        best = solve(means, means, loss, NOISE * spread)
        apart = (_log_loss(best, which, *scaled) - loss) / spread
        noise = max(NOISE, float(np.sqrt((apart**2).mean())))
        if noise > NOISE:
            best = solve(best, means, loss, noise * spread)
        rng = np.random.default_rng(seed)
        draws = [
            solve(best, means + rng.normal(0.0, scales), loss + rng.normal(0.0, noise * spread), noise * spread)
            for _ in range(DRAWS)
        ]
        return cls(best, np.array(draws), center, noise)

    def predict(self, candidate: int, params: float, tokens: float) -> float:
        """The loss of a candidate after a number of effective tokens."""
        return float(np.exp(self._of(self.parameters, candidate, params, tokens)))

    def interval(self, candidate: int, params: float, tokens: float) -> tuple[float, float]:
        """95 % interval of the loss of one run of a candidate."""
        logs = np.array([self._of(one, candidate, params, tokens) for one in self.draws])
        center = float(self._of(self.parameters, candidate, params, tokens))
        half = 1.96 * float(np.hypot(np.sqrt(((logs - center) ** 2).mean()), self.noise))
        return float(np.exp(center - half)), float(np.exp(center + half))

    def curve(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The loss of networks whose B and beta are the common ones."""
        common = np.concatenate([self.parameters[:COMMON], [0.0, 0.0]])
        return np.exp(_log_loss(common, 0, np.log(params) - self.center[0], np.log(tokens) - self.center[1]))

    def _of(self, parameters: np.ndarray, candidate: int, params: float, tokens: float) -> np.ndarray:
        return _log_loss(parameters, candidate, np.log(params) - self.center[0], np.log(tokens) - self.center[1])


def _terms(
    parameters: np.ndarray, which: np.ndarray | int, log_params: np.ndarray, log_tokens: np.ndarray
) -> list[np.ndarray]:
    e, a, alpha, b, beta = parameters[:COMMON]
    own_b, own_beta = np.split(parameters[COMMON:], 2)
    of_d = b + own_b[which] - np.exp(beta + own_beta[which]) * log_tokens
    return [np.full_like(of_d, e), a - np.exp(alpha) * log_params, of_d]


def _log_loss(
    parameters: np.ndarray, which: np.ndarray | int, log_params: np.ndarray, log_tokens: np.ndarray
) -> np.ndarray:
    total: np.ndarray = np.logaddexp.reduce(_terms(parameters, which, log_params, log_tokens))
    return total


def _slopes(parameters: np.ndarray, which: np.ndarray, log_params: np.ndarray, log_tokens: np.ndarray) -> np.ndarray:
    """Derivatives of the logarithms of the losses by the parameters."""
    terms = np.array(_terms(parameters, which, log_params, log_tokens))
    e, a, b = np.exp(terms - np.logaddexp.reduce(terms))
    own_b, own_beta = np.split(parameters[COMMON:], 2)
    beta = -b * np.exp(parameters[4] + own_beta[which]) * log_tokens
    of_own = np.eye(len(own_b))[which]
    common = np.stack([e, a, -a * np.exp(parameters[2]) * log_params, b, beta], axis=1)
    return np.concatenate([common, b[:, None] * of_own, beta[:, None] * of_own], axis=1)
