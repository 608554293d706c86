"""The report's pictures, with matplotlib: scores by run number, by parameters, and training by the clock."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bytelm.experiments.comparison import Experiment
from bytelm.runs.ledger import Run
from bytelm.runs.score import VAL_BPB, Score
from bytelm.units import time_limit

SIZE = (9.0, 4.8)
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "legend.frameon": False,
    "svg.hashsalt": "bytelm",  # the same picture is the same file
}
SMOOTHED_OVER = 40  # parts that a curve is averaged in


def save(figure: Figure, path: Path) -> None:
    """Writes a picture as SVG."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})


def by_number(phases: Mapping[str, Sequence[Experiment]], score: Score) -> Figure:
    """Scores in the order of the runs, with the best so far.

    Args:
        phases: Experiments by the name of their phase.
        score: What they are ranked by.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("run", _label(score))
        _points(axes, phases, {e: e.number for part in phases.values() for e in part})
        scored = sorted(
            ((e.number, e.score) for part in phases.values() for e in part if e.score is not None),
        )
        numbers = [number for number, _ in scored]
        axes.step(numbers, np.minimum.accumulate([value for _, value in scored]), where="post", color="black", lw=1)
        for part in phases.values():
            for experiment in part:
                if not experiment.scores:  # a run without a score has its place, too
                    axes.plot(
                        experiment.number, 1, "x", color="crimson", transform=axes.get_xaxis_transform(), clip_on=False
                    )
        axes.plot([], [], color="black", lw=1, label="best so far")
        axes.legend(fontsize=8)
        return figure


def by_parameters(phases: Mapping[str, Sequence[Experiment]], score: Score) -> Figure:
    """Scores against the number of parameters.

    Args:
        phases: Experiments by the name of their phase.
        score: What they are ranked by.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("parameters (millions)", _label(score))
        sizes = {e: e.figure("num_params_M") for part in phases.values() for e in part}
        _points(axes, phases, {e: size for e, size in sizes.items() if size})
        axes.set_xscale("log")
        ticks = [size for size in sizes.values() if size]
        if ticks and max(ticks) / min(ticks) < 30:
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.tick_params(axis="x", which="minor", labelsize=8)
        axes.legend(fontsize=8)
        return figure


def by_time(runs: Sequence[Run], score: Score) -> Figure:
    """Training loss, in the score's unit, and score, against the seconds that the clock of the budget counted.

    Args:
        runs: Those to show.
        score: What they are ranked by.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("training time (s)", score.unit)
        lowest, highest = math.inf, 0.0
        for place, run in enumerate(runs):
            curves = read_curves(run, score)
            color = f"C{place}"
            seconds, loss = curves["train/loss"]
            if len(seconds):
                axes.plot(seconds, loss, color=color, lw=1, alpha=0.75)
                lowest, highest = min(lowest, *loss), max(highest, loss[len(loss) // 20])
            seconds, scores = curves[score.tag]
            axes.plot(seconds, scores, "o-" if len(scores) > 1 else "o", color=color, label=run.experiment)
            if len(scores):
                lowest, highest = min(lowest, *scores), max(highest, scores[-1])
        if highest:
            axes.set_ylim(lowest - 0.05 * (highest - lowest), highest * 1.02)
        axes.plot([], [], "-", color="gray", lw=1, label="training loss, smoothed")
        axes.plot([], [], "o", color="gray", label=score.name)
        axes.legend(fontsize=8)
        return figure


def read_curves(run: Run, score: Score) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A run's `train/loss` (smoothed, in the score's unit) and score, each as seconds of training and values.

    Beside val_bpb the training loss of tokens that are no bytes is in another unit, and is left out.

    Args:
        run: Whose.
        score: Which of TensorBoard's curves are read with the loss.
    """
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]

    def values(tag: str) -> tuple[np.ndarray, np.ndarray]:
        found = events.Scalars(tag) if tag in tags else []
        return np.array([one.step for one in found], float), np.array([one.value for one in found], float)

    steps, progress = values("time_budget/progress")
    seconds = progress * _limit(run)
    loss_steps, loss = values("train/loss")
    gpt = ((run.config.get("model") or {}).get("gpt") or {}).get("init_args", {})
    if score == VAL_BPB and gpt.get("vocab_size") != 256:
        loss_steps, loss = loss_steps[:0], loss[:0]
    width = max(1, len(loss) // SMOOTHED_OVER)
    nats = math.log(2) if score == VAL_BPB else 1.0  # in the unit
    smooth = np.convolve(loss, np.ones(width) / width, "valid") / nats if len(loss) else loss
    score_steps, scores = values(score.tag)
    return {
        "train/loss": (np.interp(loss_steps[width - 1 :], steps, seconds) if len(loss) else loss, smooth),
        score.tag: (np.interp(score_steps, steps, seconds) if len(steps) else score_steps, scores),
    }


def _limit(run: Run) -> float:
    """Seconds of training that a run had: its limit, or, where that is in steps or tokens, what it took."""
    limits = (run.config.get("time_budget") or {}).get("limit") or []
    is_one = isinstance(limits, str) or len(limits) == 1
    seconds = time_limit(limits) if is_one else None
    return run.record.get("training_time_secs") or 0.0 if seconds is None else seconds


def _label(score: Score) -> str:
    return f"{score.name} ({score.unit}, lower is better)"


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)  # without pyplot, which keeps figures, and may want a display
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _points(axes: Axes, phases: Mapping[str, Sequence[Experiment]], x: Mapping[Experiment, float | None]) -> None:
    """A point for each experiment, filled if it is better than all before it, with the range over its seeds."""
    for place, (phase, members) in enumerate(phases.items()):
        color = f"C{place}"
        shown = [e for e in members if e.scores and x.get(e) is not None]
        for kept in (False, True):
            some = [e for e in shown if e.kept == kept]
            means = [e.score or 0.0 for e in some]
            ranges = [[m - min(e.scores) for m, e in zip(means, some, strict=True)]]
            ranges += [[max(e.scores) - m for m, e in zip(means, some, strict=True)]]
            axes.errorbar(
                [float(x[e] or 0) for e in some],
                means,
                yerr=ranges if any(map(any, ranges)) else None,
                fmt="o",
                color=color,
                mfc=color if kept else "white",
                ms=6,
                lw=1,
                zorder=3,
            )
        for e in shown:
            axes.annotate(
                str(e.number), (float(x[e] or 0), e.score or 0.0), (4, 4), textcoords="offset points", fontsize=7
            )
        axes.plot([], [], "o", color=color, label=phase)
