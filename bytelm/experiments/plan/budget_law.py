"""The law of the loss (loss_law.py) in parameters and a share of the budget, for the best size at several budgets.

A share of the budget is turned into tokens by the cost of a token in the runs, taken for a constant and a part in
proportion to the parameters. Networks of one size differ in this cost by their shapes: `speed_apart` says how far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from bytelm.experiments.plan.loss_law import LossLaw, effective_tokens, interval

BEYOND = (1.0, 2.0, 4.0)  # shares of the budget that are predicted, beside those of the runs
SIZES, COLUMNS = 61, 5  # sizes from the smallest to the largest one run: of a curve, of a table


@dataclass(frozen=True)
class BudgetLaw:
    """A law, with the cost of a token.

    Attributes:
        law: The law.
        costs: Share of the budget that a token takes: the constant part, and the part of each parameter.
        speed_apart: Root mean square of the runs' distance from these costs, in logarithms.
        unique: Tokens of the text; None if they are not known.
        sizes: Numbers of parameters.
        run_shares: Shares of the budget that were run.
        readings: How often the longest run read its text; None if that is not known.
    """

    law: LossLaw
    costs: np.ndarray
    speed_apart: float
    unique: float | None
    sizes: np.ndarray
    run_shares: list[float]
    readings: float | None

    @classmethod
    def fit(
        cls,
        params: Sequence[float],
        tokens: Sequence[float],
        shares: Sequence[float],
        losses: Sequence[float],
        uniques: Sequence[float | None],
    ) -> "BudgetLaw":
        """Fits the law. All arguments have one value per run.

        Args:
            params: Parameters of its network.
            tokens: Tokens it was trained on.
            shares: Share of the budget that it was given.
            losses: Its loss.
            uniques: Tokens of its text; None if they are not known.

        Raises:
            ValueError: There are too few runs or sizes.
        """
        effective = [float(effective_tokens(*each)) for each in zip(tokens, uniques, strict=True)]
        law = LossLaw.fit(params, effective, losses)
        sizes, scale = np.asarray(params, float), float(np.median(params))
        measured = np.asarray(shares, float) / np.asarray(tokens, float)
        relative = np.stack([np.ones_like(sizes), sizes / scale], axis=1) / measured[:, None]
        parts, _ = nnls(relative, np.ones_like(sizes))
        known = [(each, count / each) for count, each in zip(tokens, uniques, strict=True) if each]
        return cls(
            law=law,
            costs=parts / [1.0, scale],
            speed_apart=float(np.sqrt((np.log(relative @ parts) ** 2).mean())),
            unique=float(np.median([each for each, _ in known])) if known else None,
            sizes=np.geomspace(sizes.min(), sizes.max(), SIZES),
            run_shares=sorted(set(shares)),
            readings=max((readings for _, readings in known), default=None),
        )

    @property
    def shares(self) -> list[float]:
        """Shares of the budget: those that were run, and the predicted ones."""
        return sorted({*self.run_shares, *BEYOND})

    def losses(self, share: float) -> np.ndarray:
        """The loss at each of the sizes by each fit, (fits, sizes).

        Args:
            share: Share of the budget.
        """
        tokens = share / (self.costs[0] + self.costs[1] * self.sizes)
        return self.law.losses(self.sizes, effective_tokens(tokens, self.unique))

    def figures(self, limit: Callable[[float], str]) -> dict[str, Any]:
        """All figures, for plan.json.

        Args:
            limit: Text of a share of the budget.
        """
        budgets = []
        for share in self.shares:
            losses = self.losses(share)
            best, lowest = self.sizes[losses.argmin(1)], losses.min(1)
            columns = slice(None, None, (SIZES - 1) // (COLUMNS - 1))
            budgets.append(
                {
                    "limit": limit(share),
                    "is_run": share in self.run_shares,
                    "best_parameters": (float(best[0]), *interval(best)),
                    "score": (float(lowest[0]), *interval(lowest)),
                    "curve": dict(
                        zip((f"{n:.0f}" for n in self.sizes[columns]), map(float, losses[0, columns]), strict=True)
                    ),
                }
            )
        return {
            "values": self.law.values(),
            "open": self.law.open_values(),
            "apart": self.law.apart,
            "speed_apart": self.speed_apart,
            "unique_tokens": self.unique,
            "budgets": budgets,
        }
