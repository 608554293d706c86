"""Progress converts durations into shares of a run, and a budget knows whether another step fits."""

import math
import subprocess
import sys

import pytest

from bytelm.budget import Budget, Progress
from bytelm.units import Duration


def progress(fraction: float, limits: dict[str, float], **used: float) -> Progress:
    return Progress(
        fraction, {"seconds": 0.0, "steps": 0.0, "tokens": 0.0, **used}, {"seconds": 2.0, "steps": 1.0}, limits
    )


@pytest.mark.parametrize(
    ("at", "duration", "share"),
    [
        # Exact, whatever the pace.
        (progress(0.7, {"seconds": 100}, seconds=70, steps=3), Duration(0.05, "fraction"), 0.05),
        (progress(0.0, {"steps": 5_000}), Duration(500, "steps"), 0.1),
        (progress(0.5, {"steps": 5_000}, steps=2_500, seconds=9), Duration(500, "steps"), 0.1),
        (progress(0.5, {"seconds": 200}, steps=9, seconds=100), Duration(50, "seconds"), 0.25),
        (progress(0.5, {"seconds": 200}, steps=9, seconds=100), Duration(0, "steps"), 0.0),
        # By pace: 50 steps took a quarter of the run, so that it will have 200.
        (progress(0.25, {"seconds": 100}, seconds=25, steps=50), Duration(20, "steps"), 0.1),
        (progress(0.25, {"steps": 400}, seconds=5, steps=100), Duration(2, "seconds"), 0.1),
        # By pace, although steps are limited too: the time runs out after 2,000 of the 5,000.
        (progress(0.5, {"seconds": 100, "steps": 5_000}, seconds=50, steps=1_000), Duration(500, "steps"), 0.25),
        # Before there is a pace, by the coming step: at 2 s a step the run will have 50.
        (progress(0.0, {"seconds": 100, "steps": 5_000}), Duration(5, "steps"), 0.1),
        (progress(0.02, {"seconds": 100}, seconds=2), Duration(5, "steps"), 0.1),
        # Of a unit in which nothing is known, any amount is longer than the run.
        (progress(0.0, {"seconds": 100}), Duration(5, "tokens"), math.inf),
    ],
)
def test_share_of_the_run(at, duration, share):
    assert at.share(duration) == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize(
    ("at", "duration", "through"),
    [
        (progress(0.0, {"seconds": 100}), Duration(0, "steps"), 1.0),
        (progress(0.0, {"seconds": 100}), Duration(9, "steps"), 0.1),
        (progress(0.1, {"seconds": 100}, seconds=10, steps=4), Duration(9, "steps"), 0.5),
        (progress(0.2, {"seconds": 100}, seconds=20, steps=9), Duration(9, "steps"), 1.0),
        (progress(0.9, {"seconds": 100}, seconds=90, steps=500), Duration(9, "steps"), 1.0),
        (progress(0.04, {"seconds": 100}, seconds=4), Duration(10, "seconds"), 6 / 12),
        (progress(0.04, {"seconds": 100}, seconds=4), Duration(0.1, "fraction"), 0.06 / 0.12),
        # Of two limits, the one that a step takes more of: 2 of 100 seconds, not 1 of 1,000 steps.
        (progress(0.04, {"seconds": 100, "steps": 1_000}), Duration(0.1, "fraction"), 0.06 / 0.12),
    ],
)
def test_how_far_a_step_takes_the_run_through_a_phase(at, duration, through):
    assert at.through(duration) == pytest.approx(through, abs=1e-15)


@pytest.mark.parametrize("unit", ["seconds", "steps", "tokens", "fraction"])
def test_amounts_are_used_amounts_of_a_unit(unit):
    at = progress(0.25, {"seconds": 8}, seconds=2, steps=3, tokens=4)
    assert at.amount(unit) == {"seconds": 2, "steps": 3, "tokens": 4, "fraction": 0.25}[unit]


USED, STEP = {"seconds": 8.0, "steps": 4.0, "tokens": 400.0}, {"seconds": 2.0, "steps": 1.0, "tokens": 100.0}


@pytest.mark.parametrize(
    ("limits", "fraction", "fits", "reached", "tightest"),
    [
        ({"seconds": 10.0}, 0.8, True, False, "seconds"),
        ({"seconds": 9.9}, 8 / 9.9, False, False, "seconds"),
        ({"steps": 4.0}, 1.0, False, True, "steps"),
        ({"steps": 5.0, "tokens": 1_000.0}, 0.8, True, False, "steps"),
        ({"seconds": 100.0, "tokens": 400.0}, 1.0, False, True, "tokens"),
        ({"seconds": 4.0}, 1.0, False, True, "seconds"),  # never more than 1
    ],
)
def test_the_limit_that_is_nearest_decides(limits, fraction, fits, reached, tightest):
    budget = Budget(limits)
    at = budget.progress(USED, STEP)
    assert (at.fraction, at.used, at.per_step, at.limits) == (fraction, USED, STEP, limits)
    assert budget.fits(USED, STEP) is fits
    assert budget.is_reached(USED) is reached
    assert budget.tightest(USED, STEP) == tightest


def test_the_budget_needs_neither_torch_nor_lightning():
    code = (
        "import sys, bytelm.budget, bytelm.clock; sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
