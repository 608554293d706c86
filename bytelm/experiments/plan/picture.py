"""The picture of a plan: the loss against each option and against the number of parameters, for several budgets."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytelm.experiments.plan.budget_law import BudgetLaw
from bytelm.experiments.plan.candidates import value_of
from bytelm.experiments.plan.result import Result
from bytelm.experiments.report.plots import STYLE, log_scale

PANEL = 4.0  # inches, the side of a panel
POINTS = 61  # of a curve
LEGEND: Any = {"fontsize": 8, "title_fontsize": 8}
FEW_VALUES = 6  # of an option; more are not all written on its axis


def draw(result: Result) -> Figure:
    """Draws the runs, and the surface's loss if one option of the recommended candidate is changed.

    The last panel has the loss against the parameters: the runs, and the law.
    """
    names = list(dict.fromkeys(result.coordinates.names))
    with matplotlib.rc_context(STYLE):
        number = len(names) + (result.law is not None)
        figure = Figure(figsize=(PANEL * number, PANEL), layout="constrained")
        panels = figure.subplots(1, number, squeeze=False, sharey=True)[0]
        shares = sorted({one.share for one in result.measured} | {1.0})
        for name, axes in zip(names, panels, strict=False):
            _draw_option(axes, result, name, shares)
        panels[0].legend(title="predicted", **LEGEND)
        if result.law is not None:
            _draw_law(panels[-1], result, result.law, shares)
        highest = max(one.score for one in result.measured)  # predictions far from all runs are cut off
        lowest = min(float(np.min(line.get_ydata())) for axes in panels for line in axes.lines)
        margin = 0.08 * (highest - lowest) or 0.05 * highest
        panels[0].set_ylim(lowest - margin, highest + margin)
        panels[0].set_ylabel(f"{result.score.name} ({result.score.unit}, lower is better)")
        return figure


def _draw_option(axes: Axes, result: Result, name: str, shares: list[float]) -> None:
    coordinates, best = result.coordinates, result.best.candidate
    is_number = name in coordinates.numbers
    texts = list(dict.fromkeys(dict(candidate)[name] for candidate in coordinates.candidates))
    if is_number:
        at, values = coordinates.along(name, POINTS)
        points = np.repeat(coordinates.of([best]), POINTS, axis=0)
        points[:, coordinates.names.index(name)] = at
    else:
        values = np.arange(len(texts))
        points = coordinates.of([tuple({**dict(best), name: text}.items()) for text in texts])
        axes.set_xticks(values, texts)
        axes.margins(x=0.3)
    for place, share in enumerate(shares):
        losses = np.exp(result.surface.predict(points, share)[0])
        style = "-" if is_number else "_"
        axes.plot(values, losses, style, color=f"C{place}", ms=25, label=result.limit(share))
        for one in result.measured:
            if one.share == share:
                own = dict(one.candidate)[name]
                axes.plot(value_of(own) if is_number else texts.index(own), one.score, "o", color=f"C{place}")
    axes.set_xlabel(name.rpartition(".")[2])
    if name in coordinates.logs:
        log_scale(axes, sorted(map(float, texts)) if len(texts) <= FEW_VALUES else ())


def _draw_law(axes: Axes, result: Result, law: BudgetLaw, shares: list[float]) -> None:
    for place, share in enumerate([*shares, *(one for one in law.shares if one not in shares)]):
        color, losses = f"C{place}", law.losses(share)
        if some := [one for one in result.measured if one.share == share]:
            axes.plot([one.params / 1e6 for one in some], [one.score for one in some], "o", color=color)
        label = result.limit(share) if some else f"{result.limit(share)}, not run"
        axes.plot(law.sizes / 1e6, losses[0], "-" if some else "--", color=color, label=label)
        if share == 1.0:
            ends, label = np.quantile(losses[1:], [0.025, 0.975], axis=0), f"{label}, 95 % interval"
            axes.fill_between(law.sizes / 1e6, *ends, color=color, alpha=0.15, label=label)
    log_scale(axes)
    axes.set_xlabel("parameters (millions)")
    axes.legend(title="law", loc="upper left", bbox_to_anchor=(1, 1), **LEGEND)
