"""Which runs a plan makes: first short ones that are spread over the space, then that of the best prediction.

All functions here are pure: they choose from what is measured and queued (runs.py).
"""

import math
import statistics
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from bytelm.experiments.plan.coordinates import Coordinates
from bytelm.experiments.plan.runs import Measured, PlannedRun, Standing, part_of
from bytelm.experiments.plan.surface import NOISE, Surface
from bytelm.experiments.task import Point
from bytelm.units import Duration

WITHIN = 5.0  # default of --within, in budgets
SHORT_RUNS = 0.11  # of the time of all runs: the training time of the first short ones
LONGEST_SHORT = 1 / 4  # of the budget
RUNS_PER_KEY = 2  # first short runs
LEAST_SHORT, MOST_SHORT = 4, 12
SPREAD = 0.8  # of the ranges: the part in which the first short runs are
LEAST_RUNS = 2  # completed, for a prediction
CAUTION = 0.5  # standard deviations that are taken off a prediction: candidates of which little is known are tried
FAILED = 1.1  # loss of a failed run, beside its prediction
MARGIN = 1.01  # of the expected time of a whole run


def first_candidates(coordinates: Coordinates, seed: int) -> list[Point]:
    """The candidates of the first short runs: all if there are few, otherwise those nearest to a Latin hypercube.

    Args:
        coordinates: All candidates.
        seed: Seed of the choice.
    """
    keys = len(coordinates.names)
    number = min(max(LEAST_SHORT, RUNS_PER_KEY * keys), MOST_SHORT)
    if len(coordinates.candidates) <= number:
        return coordinates.candidates
    wanted = qmc.LatinHypercube(keys, optimization="random-cd", seed=seed).random(number)
    chosen: list[int] = []
    for point in SPREAD * (2 * wanted - 1):
        far = np.abs(coordinates.points - point).sum(1)
        far[chosen] = np.inf
        chosen.append(int(far.argmin()))
    return [coordinates.candidates[place] for place in chosen]


def short_share(budget: Duration, within: Duration | None, number: int) -> float:
    """The share of the budget of the first short runs.

    Args:
        budget: The whole budget.
        within: Time limit of all runs together.
        number: How many short runs there are.
    """
    budgets = WITHIN
    if within is not None and budget.unit == "seconds":
        budgets = within.value / budget.value
    share = min(SHORT_RUNS * budgets / number, LONGEST_SHORT)
    rounded = float(f"{share * budget.value:.2g}")
    return part_of(budget, rounded / budget.value).value / budget.value


def next_run(
    coordinates: Coordinates,
    standing: Standing,
    within: Duration | None,
    short: float,
    rejected: Collection[Point] = (),
) -> PlannedRun | None:
    """The next run: that of the best prediction that has had none.

    It is given the whole budget, unless the time for a short one is left over by the whole runs that fit.

    Args:
        coordinates: All candidates.
        standing: The runs so far.
        within: Time limit of all runs together. None: they are given five budgets together.
        short: Share of the budget of a short run.
        rejected: Candidates that cannot run.

    Returns:
        The run; None if no whole run fits, or none is likely to be better than the best one.
    """
    if (surface := fitted(coordinates, standing.measured, standing)) is None:
        return None
    costs = _costs(standing, within, short)
    if costs.left < costs.whole:
        return None
    candidates = coordinates.candidates
    begun = {run.candidate for run in standing.queued if run.is_whole}
    tried = {run.candidate for run in standing.queued}
    has_untried = len(tried.union(rejected)) < len(candidates)
    is_short = not begun and costs.left % costs.whole >= costs.short and has_untried
    means, deviations = surface.predict(coordinates.points)
    worth = means - CAUTION * deviations
    excluded = tried if is_short else begun
    for candidate in excluded:
        worth[coordinates.near(candidate)] = np.inf
    worth[[candidates.index(candidate) for candidate in excluded.union(rejected)]] = np.inf
    place = int(worth.argmin())
    best = min((math.log(one.score) for one in standing.measured if one.is_whole), default=math.inf)
    lowest = means[place] - 1.96 * math.hypot(deviations[place], NOISE)
    if worth[place] == np.inf or lowest >= best:
        return None
    return PlannedRun(candidates[place], short if is_short else 1.0)


class _Costs(NamedTuple):
    """What runs take, and what is left for them, in seconds or in budgets."""

    whole: float
    short: float
    left: float


def _costs(standing: Standing, within: Duration | None, short: float) -> _Costs:
    if within is None:
        return _Costs(1.0, short, WITHIN - sum(run.share for run in standing.queued))
    measured = standing.measured
    whole = max(
        statistics.median(map(_expected, measured)), max((one.seconds for one in measured if one.is_whole), default=0.0)
    )
    a_short = statistics.fmean([one.seconds for one in measured if not one.is_whole] or [whole])
    to_come = sum(whole if run.is_whole else a_short for run in standing.open)
    return _Costs(whole, a_short, within.value - standing.seconds - to_come)


def _expected(run: Measured) -> float:
    """Time of a whole run of the same candidate, in seconds."""
    return MARGIN * run.training_seconds / run.share + run.seconds - run.training_seconds


def fitted(coordinates: Coordinates, measured: Sequence[Measured], standing: Standing | None = None) -> Surface | None:
    """The surface that is fitted to runs; None if there are too few.

    Args:
        coordinates: All candidates.
        measured: The completed runs.
        standing: The other runs. Those that have not ended count as they are predicted, so that another worker chooses
            other ones, and those that failed as worse than predicted. Default: they do not count.
    """
    if len(measured) < LEAST_RUNS:
        return None
    names = coordinates.names
    points = coordinates.of([one.candidate for one in measured])
    shares, losses = [one.share for one in measured], [one.score for one in measured]
    surface = Surface.fit(names, points, shares, losses)
    known = {(one.candidate, one.share) for one in measured}
    others = [] if standing is None else [run for run in standing.queued if run not in known]
    if standing is None or not others:
        return surface
    for run in others:
        at = coordinates.of([run.candidate])
        loss = math.exp(surface.predict(at, run.share)[0][0]) * (1.0 if run in standing.open else FAILED)
        points, shares, losses = np.concatenate([points, at]), [*shares, run.share], [*losses, loss]
    return Surface.fit(names, points, shares, losses)
