"""What the runs of a plan say of the size of a network at several budgets: its law of the loss (loss_law.py).

The law says what the plan's choice does not need: how the loss falls with the size and with the budget. A budget is
turned into tokens by the time per token of the runs, taken for a constant and a part in proportion to the parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import nnls

from bytelm.experiments.loss_law import LossLaw, effective_tokens, interval

BEYOND = (1.0, 2.0, 4.0)  # shares of the budget that are predicted, beside those of the runs
SIZES, COLUMNS = 61, 5  # sizes from the smallest to the largest one run: of a curve, of a table


@dataclass(frozen=True)
class PlanLaw:
    """A law with all that turns a budget into tokens.

    Attributes:
        law: The law.
        times: Share of the budget that a token takes: the constant part, and the part of each parameter.
        speed_apart: Root mean square of the runs' distance from these times, in logarithms.
        unique: Tokens of the text; None if they are not known.
        sizes: Numbers of parameters.
        run_shares: Shares of the budget that were run.
        readings: How often the longest run read its text; None if that is not known.
    """

    law: LossLaw
    times: np.ndarray
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
    ) -> "PlanLaw":
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
            times=parts / [1.0, scale],
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
        tokens = share / (self.times[0] + self.times[1] * self.sizes)
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

    def draw(self, axes: Axes, limit: Callable[[float], str], shares: Sequence[float]) -> None:
        """Draws the loss against the size for each budget, with the interval of the whole one.

        Args:
            axes: Where to.
            limit: Text of a share of the budget.
            shares: The shares that have a color already, in their order.
        """
        for place, share in enumerate([*shares, *(one for one in self.shares if one not in shares)]):
            losses, color = self.losses(share), f"C{place}"
            is_run = share in self.run_shares
            label = limit(share) if is_run else f"{limit(share)}, not run"
            axes.plot(self.sizes, losses[0], color=color, ls="-" if is_run else "--", label=label)
            if share == 1.0:
                axes.fill_between(self.sizes, *np.quantile(losses[1:], [0.025, 0.975], axis=0), color=color, alpha=0.15)
        axes.set_xscale("log")
        axes.set_xlabel("parameters (the law)")
        axes.legend(fontsize=8)


def page(figures: dict[str, Any], whole: str, score: str, readings: float | None) -> list[str]:
    """The law's part of plan.md, as paragraphs.

    Args:
        figures: Those of a PlanLaw.
        whole: Text of the whole budget.
        score: Name of the score.
        readings: How often the longest run read its text; None if that is not known.
    """
    values = [["", "fit", "95 % interval"]]
    values += [[name, f"{fit:.3g}", f"{low:.3g} to {high:.3g}"] for name, (fit, low, high) in figures["values"].items()]
    budgets = figures["budgets"]
    rows = [["budget", "best size", f"{score} there", *(_size(float(size)) for size in budgets[0]["curve"])]]
    for one in budgets:
        size, low, high = map(_size, one["best_parameters"])
        losses = "{:.3f} ({:.3f} to {:.3f})".format(*one["score"])
        name = one["limit"] if one["is_run"] else f"{one['limit']} (not run)"
        rows.append([name, f"{size} ({low} to {high})", losses, *(f"{loss:.3f}" for loss in one["curve"].values())])
    best, low, high = next(one["best_parameters"] for one in budgets if one["limit"] == whole)
    smallest, *_, largest = map(float, budgets[0]["curve"])
    holds = f"For {whole} the law holds {_size(best)} parameters for best ({_size(low)} to {_size(high)})"
    if not smallest * 1.01 < best < largest / 1.01:
        holds += ", which is the end of the sizes that were run: the best one may lie beyond"
    left_open = ""
    if names := figures["open"]:
        left_open = f" The runs leave {', '.join(names)} open: intervals go to the end of what a fit may have."
    read = "" if readings is None else f" The longest run read its text {readings:.2g} times."
    return [
        "## Loss by parameters and tokens",
        "L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3) with N parameters and D tokens, fitted to "
        "all completed runs. It is knowledge beside the recommendation, which does not depend on it. Intervals are "
        f"those of fits to resampled runs.{left_open}",
        markdown(values),
        f"{holds}. At several budgets, and at five of the sizes:",
        markdown(rows),
        "What the law does not know:",
        f"- Rates and shapes, which differ between the runs: these are {figures['apart']:.1%} from the law (root mean "
        "square). At each size the law is that of their mixture, and the best of them are below it.\n"
        "- Tokens at a budget follow from the time per token at a size, from which the runs are "
        f"{figures['speed_apart']:.0%} away: networks of one size differ in speed, such as deep ones from wide ones.\n"
        f"- Repeated text and overfitting.{read} Repeated tokens count less, as Muennighoff et al. 2023 measured on "
        "larger networks; a network that memorises its text becomes worse, which the law never does.\n"
        "- Budgets beyond those that were run. In tests, extrapolations by such laws were 13 % too low to 40 % too "
        "high.",
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *others))


def _size(number: float) -> str:
    return f"{float(f'{number:.3g}'):,.0f}"
