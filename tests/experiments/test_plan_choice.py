"""Which runs a plan makes, and what it says of its candidates."""

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.experiments.plan.candidates import candidates_of
from bytelm.experiments.plan.choice import MARGIN, first_candidates, next_run, short_share
from bytelm.experiments.plan.coordinates import Coordinates
from bytelm.experiments.plan.result import Result
from bytelm.experiments.plan.runs import Measured, PlannedRun, Standing, part_of
from bytelm.runs.score import VAL_BPB
from bytelm.units import Duration

SHORT = 1 / 16  # of the budget of 160 s


def candidate(place):
    return (("d", str(2**place)),)


def coordinates(number):
    return Coordinates([candidate(place) for place in range(number)], ["d"])


def whole(place):
    return PlannedRun(candidate(place), 1.0)


def short(place):
    return PlannedRun(candidate(place), SHORT)


def measured(run, score):
    training = 160 * run.share
    return Measured(*run, 1e5, 1e6 * run.share, 200, score, training + 4, training)


def standing(scores, is_open=(), failed=()):
    """The runs so far: the completed ones with their scores, those that have not ended, and those that failed."""
    runs = [measured(run, score) for run, score in scores.items()]
    seconds = sum(160 * run.share + 4 for run in (*scores, *failed))
    return Standing([*scores, *failed, *is_open], list(is_open), runs, seconds, VAL_BPB)


def seconds(value):
    return Duration(value, "seconds")


def test_the_next_run_is_a_whole_one_of_the_best_prediction_that_fits_into_the_time():
    scores = {short(place): score for place, score in enumerate([3.3, 3.0, 3.2, 3.9])}
    spent, a_whole = 4 * 14.0, 160 * MARGIN + 4
    space, now = coordinates(4), standing(scores)
    assert next_run(space, now, seconds(spent + a_whole + 0.1), SHORT) == whole(1)
    assert next_run(space, now, seconds(spent + a_whole - 0.1), SHORT) is None
    assert next_run(space, now, None, SHORT) == whole(1)  # five budgets

    now = standing(scores, is_open=[whole(1)])  # another worker has begun it
    chosen = next_run(space, now, seconds(spent + 2 * a_whole + 0.1), SHORT)
    assert chosen in (whole(0), whole(2))
    assert next_run(space, now, seconds(spent + 2 * a_whole - 0.1), SHORT) is None
    other = next_run(space, now, seconds(spent + 2 * a_whole + 0.1), SHORT, {chosen.candidate})
    assert other not in (None, chosen)
    assert next_run(space, standing(scores, is_open=[whole(place) for place in range(4)]), seconds(1e6), SHORT) is None


def test_time_that_whole_runs_leave_over_goes_to_short_ones_of_further_candidates():
    scores = {short(place): 3.0 + place / 10 for place in (0, 2, 4, 6)}
    within = seconds(4 * 14.0 + 2 * (160 * MARGIN + 4) + 14.1)
    chosen = next_run(coordinates(7), standing(scores), within, SHORT)
    assert chosen.share == SHORT
    assert chosen not in scores
    assert next_run(coordinates(7), standing(scores, is_open=[whole(0)]), within, SHORT).is_whole


def test_a_run_that_failed_counts_as_a_bad_one():
    scores = {short(place): 3.0 for place in (0, 2, 4)}
    one = 160 * MARGIN + 4.1
    space = coordinates(5)
    within = seconds(3 * 14.0 + one)
    assert next_run(space, standing(scores), within, SHORT) == whole(2)  # losses rise to both ends
    within = seconds(3 * 14.0 + 164.0 + one)
    assert next_run(space, standing(scores, failed=[whole(3)]), within, SHORT) == whole(1)


def test_no_whole_run_is_made_of_candidates_that_are_not_likely_to_win():
    scores = {short(place): 3.0 + place / 4 for place in range(5)} | {whole(0): 1.5, whole(1): 2.5}
    assert next_run(coordinates(5), standing(scores), seconds(1e6), SHORT) is None


@pytest.mark.parametrize(
    ("first", "within", "limit"),
    [(6, 800.0, "15s"), (6, None, "15s"), (2, None, "40s"), (100, 800.0, "0.88s")],
)
def test_the_first_short_runs_are_trained_in_a_part_of_the_time(first, within, limit):
    budget = seconds(160.0)
    assert str(part_of(budget, short_share(budget, within and seconds(within), first))) == limit


def test_the_first_runs_are_spread_over_a_space_and_are_all_of_a_few_candidates():
    space = {"a": {"low": 1.0, "high": 100.0, "log": True}, "b": {"low": 0, "high": 40, "step": 2}, "c": ["x", "y"]}
    every = Coordinates(candidates_of(space, {}, 0), space)
    first = first_candidates(every, seed=1)
    assert len(set(first)) == 6
    assert first_candidates(every, seed=1) == first
    points = every.of(first)
    assert np.abs(points[:, :2]).max() < 0.85
    assert (np.sort(points[:, 0])[[0, -1]] * [-1, 1] > 0.4).all()
    assert first_candidates(coordinates(3), seed=1) == [candidate(place) for place in range(3)]


def test_a_whole_run_replaces_the_prediction():
    scores = {short(0): 3.0, whole(0): 2.5, short(1): 3.1}
    result = Result(coordinates(3), seconds(160.0), standing(scores))
    predicted = {one.candidate: one for one in result.predictions}
    reached, of_short, untried = (predicted[candidate(place)] for place in range(3))
    assert (reached.score, reached.is_reached) == (2.5, True)
    assert (of_short.longest.share, of_short.is_reached) == (SHORT, False)
    assert (untried.longest, untried.is_reached) == (None, False)
    low, high = reached.interval
    assert low * high == pytest.approx(2.5**2)
    assert high / 2.5 == pytest.approx(1.034, abs=1e-3)  # seeds that differ by 1.2 %
    assert untried.interval[1] / untried.score > of_short.interval[1] / of_short.score > 1.034
    assert result.best == reached


def test_candidates_without_a_run_are_shown_if_they_are_not_nearly_the_same_as_others():
    candidates = [(("d", str(d)),) for d in (10, 11, 30, 31, 50, 51, 70, 90, 100)]
    runs = [measured(PlannedRun((("d", str(d)),), 1.0), score) for d, score in ((10, 3.0), (30, 2.0))]
    now = Standing([], [], runs, 0.0, VAL_BPB)
    result = Result(Coordinates(candidates, ["d"]), seconds(160.0), now)
    shown = [dict(one.candidate)["d"] for one in result.shown]
    assert len(shown) == 5
    assert not {"11", "31"} & set(shown)
    assert len({"50", "51"} & set(shown)) == 1
    assert [one.score for one in result.shown] == sorted(one.score for one in result.shown)
