"""The report's pictures, with matplotlib: scores by name, run order and parameters; training by time and tokens."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bytelm.experiments.comparison import Experiment
from bytelm.experiments.report.curves import Curve, Curves
from bytelm.experiments.report.text import printable
from bytelm.runs.score import Score

WIDTH, HEIGHT = 12.0, 5.0  # inches
ROW = 0.27  # inches per name on an axis
MOST_NAMES = 60  # on an axis
MOST_LABELS = 15  # points that are all labelled; if there are more, only those that were the best so far
LONGEST_LABEL = 44
CHART_POINTS = 400  # of a curve on the page, about
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "legend.frameon": False,
    "svg.hashsalt": "bytelm",  # equal pictures are equal files
    "text.parse_math": False,  # a name such as `$x{$` is text
}


def save(figure: Figure, path: Path) -> None:
    """Writes a picture as SVG."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # missing glyphs of a name are shown as boxes
        figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})


def by_name(phases: Mapping[str, Sequence[Experiment]], score: Score) -> Figure:
    """Draws scores beside the experiments' names, the best first, with the range over seeds.

    Args:
        phases: Experiments by the name of their phase.
        score: The score that ranks them.
    """
    colors = {e: f"C{place}" for place, part in enumerate(phases.values()) for e in part}
    ranked = sorted((e for e in colors if e.scores), key=lambda e: e.score or 0.0)[:MOST_NAMES]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + ROW * max(len(ranked), 4)))  # without pyplot, which keeps figures
        axes = figure.subplots()
        axes.set_xlabel(_label(score))
        for place, experiment in enumerate(ranked):
            color, scores = colors[experiment], experiment.scores
            if len(scores) > 1:
                axes.plot(scores, [place] * len(scores), "|-", color=color, ms=7, lw=1.5)
            axes.plot([experiment.score or 0.0], [place], "o", color=color, ms=6, zorder=3)
        names = labels(e.name for e in ranked)
        axes.set_yticks(range(len(ranked)), [names[e.name] for e in ranked])
        axes.set_ylim(len(ranked) - 0.4, -0.6)
        if len(phases) > 1:
            for place, phase in enumerate(phases):
                axes.plot([], [], "o", color=f"C{place}", label=short(phase))
        if any(len(e.scores) > 1 for e in ranked):
            axes.plot([], [], "|-", color="gray", ms=7, lw=1.5, label="scores of several runs, and their mean")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        return figure


def in_order(phases: Mapping[str, Sequence[Experiment]], score: Score) -> Figure:
    """Draws scores in the order in which the experiments were run, with the best so far.

    Args:
        phases: Experiments by the name of their phase.
        score: The score that ranks them.
    """
    # Several phases may share an experiment.
    order = sorted(dict.fromkeys(e for part in phases.values() for e in part), key=lambda e: e.number)
    places = {experiment: place for place, experiment in enumerate(order, start=1)}
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("experiments, in their order", _label(score))
        _points(axes, phases, {e: float(place) for e, place in places.items()})
        scored = [(places[e], e.score) for e in order if e.score is not None]
        best = np.minimum.accumulate([value for _, value in scored])
        axes.step([place for place, _ in scored], best, where="post", color="black", lw=1)
        if without := [places[e] for e in order if not e.scores]:  # they also take a place
            top = axes.get_xaxis_transform()
            axes.plot(without, [1] * len(without), "x", color="crimson", transform=top, clip_on=False, label="no score")
        axes.plot([], [], color="black", lw=1, label="best so far")
        if len(order) <= MOST_NAMES:
            few = len(order) <= MOST_LABELS
            style: Any = {"rotation": 30, "ha": "right"} if few else {"rotation": 90, "fontsize": 7}
            names = labels(e.name for e in order)
            axes.set_xticks(range(1, len(order) + 1), [names[e.name] for e in order], **style)
        axes.legend(fontsize=8)
        return figure


def by_parameters(phases: Mapping[str, Sequence[Experiment]], score: Score) -> Figure:
    """Draws scores against the number of parameters.

    Args:
        phases: Experiments by the name of their phase.
        score: The score that ranks them.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("parameters (millions)", _label(score))
        sizes = {e: e.figure("num_params_M") for part in phases.values() for e in part}
        _points(axes, phases, {e: size for e, size in sizes.items() if size}, are_named=True)
        log_scale(axes)
        axes.legend(fontsize=8)
        return figure


def training(runs: Sequence[Curves], score: Score, over: Literal["seconds", "tokens"]) -> Figure:
    """Draws training loss, in the score's unit, and score, during training.

    Args:
        runs: The runs to show.
        score: The score that ranks them.
        over: The horizontal axis: seconds of the budget's clock, or tokens seen.
    """
    unit, scale = ("training time (s)", 1.0) if over == "seconds" else ("tokens seen (millions)", 1e6)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(unit, score.unit)
        lowest, highest = math.inf, 0.0
        names = labels(one.run.experiment for one in runs)
        for place, curves in enumerate(runs):
            color = f"C{place}"
            loss, scores = curves.loss.values, curves.scores.values
            if len(loss):
                axes.plot(getattr(curves.loss, over) / scale, loss, color=color, lw=1, alpha=0.75)
                lowest, highest = min(lowest, *loss), max(highest, loss[len(loss) // 20])
            style = "o-" if len(scores) > 1 else "o"
            label = names[curves.run.experiment]
            axes.plot(getattr(curves.scores, over) / scale, scores, style, color=color, label=label)
            if len(scores):
                lowest, highest = min(lowest, *scores), max(highest, scores[-1])
        if highest:
            margin = 0.05 * (highest - lowest) or 0.05 * highest
            axes.set_ylim(lowest - margin, highest + margin)
        axes.plot([], [], "-", color="gray", lw=1, label="training loss, smoothed")
        axes.plot([], [], "o", color="gray", label=score.name)
        axes.legend(fontsize=8)
        return figure


def chart(runs: Sequence[Curves], score: Score) -> dict[str, Any]:
    """Returns the curves that `training` draws, as plain values for the page's script.

    Args:
        runs: The runs to show.
        score: The score that ranks them.
    """

    def values(curve: Curve) -> dict[str, list[float]]:
        some = slice(None, None, max(len(curve.values) // CHART_POINTS, 1))
        return {key: [float(f"{x:.6g}") for x in getattr(curve, key)[some]] for key in ("seconds", "tokens", "values")}

    lines = [
        {"name": printable(one.run.experiment), "loss": values(one.loss), "scores": values(one.scores)} for one in runs
    ]
    colors = [to_hex(f"C{place}") for place in range(len(lines))]
    return {
        "unit": score.unit,
        "score": score.name,
        "runs": [{**line, "color": color} for line, color in zip(lines, colors, strict=True)],
    }


def labels(names: Iterable[str]) -> dict[str, str]:
    """Returns a label for each of the names in a picture, without the parts that all of them have.

    Args:
        names: Names such as `base,lr=0.01,limit=10s`, which a study makes of a config and the searched values.
    """
    parts = {name: name.split(",") for name in names}
    shared = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    return {name: short(",".join(one for one in some if one not in shared) or name) for name, some in parts.items()}


def short(name: str) -> str:
    """Returns a name as a label."""
    text = printable(name)
    text = text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL // 2]}…{text[-(LONGEST_LABEL // 2 - 1) :]}"
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves out labels that begin with `_`


def log_scale(axes: Axes, ticks: Sequence[float] = ()) -> None:
    """Makes the horizontal axis logarithmic, with plain numbers: STYLE shows the formulas of the default as they are.

    Args:
        axes: The axes.
        ticks: Numbers on the axis. Default: 1, 2 and 5 of each power of ten.
    """
    axes.set_xscale("log")
    if ticks:
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def _label(score: Score) -> str:
    return f"{score.name} ({score.unit}, lower is better)"


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _points(
    axes: Axes, phases: Mapping[str, Sequence[Experiment]], x: Mapping[Experiment, float], are_named: bool = False
) -> None:
    """Draws a point for each experiment, filled if it is better than all before it, with the range over its seeds.

    Args:
        axes: Where to draw.
        phases: Experiments by the name of their phase.
        x: Horizontal position of each experiment; others are left out.
        are_named: Whether names are written beside the points; if there are many, only beside the filled ones.
    """
    named = set(x) if len(x) <= MOST_LABELS else {e for e in x if e.kept}
    names = labels(e.name for e in x)
    for place, (phase, members) in enumerate(phases.items()):
        color = f"C{place}"
        shown = [e for e in members if e.scores and e in x]
        for kept in (False, True):
            some = [e for e in shown if e.kept == kept]
            means = [e.score or 0.0 for e in some]
            # The rounded mean of equal scores can be above or below all of them.
            ranges = [[max(m - min(e.scores), 0.0) for m, e in zip(means, some, strict=True)]]
            ranges += [[max(max(e.scores) - m, 0.0) for m, e in zip(means, some, strict=True)]]
            axes.errorbar(
                [x[e] for e in some],
                means,
                yerr=ranges if any(map(any, ranges)) else None,
                fmt="o",
                color=color,
                mfc=color if kept else "white",
                ms=6,
                lw=1,
                zorder=3,
            )
        for e in shown if are_named else ():
            if e in named:
                at, offset = (x[e], e.score or 0.0), (5, 4)
                axes.annotate(names[e.name], at, offset, textcoords="offset points", fontsize=7)
        axes.plot([], [], "o", color=color, label=short(phase))
    if any(e.scores and not e.kept for e in x):
        axes.plot([], [], "o", color="gray", mfc="white", label="not the best so far")
