"""The two stages of a plan: short runs that are spread over the space, then one run after another (choice.py).

Several workers can make the runs: they wait for each other's first runs only.
"""

import sys
import time

from bytelm.config.messages import note
from bytelm.errors import ConfigError
from bytelm.experiments.plan.candidates import shown
from bytelm.experiments.plan.choice import first_candidates, next_run, short_share
from bytelm.experiments.plan.coordinates import Coordinates
from bytelm.experiments.plan.runs import PlannedRun, PlanRuns, part_of
from bytelm.experiments.runner import Runner
from bytelm.experiments.task import Point
from bytelm.units import Duration

LOOK_SECONDS = 1.0  # between two looks at the runs of other workers


def make_runs(runs: PlanRuns, coordinates: Coordinates, within: Duration | None, seed: int) -> set[Point]:
    """Makes the runs, as far as the time allows.

    Args:
        runs: The runs so far, of an earlier command or of other workers.
        coordinates: All candidates.
        within: Time limit of all runs together.
        seed: Seed of the choice of the first ones.

    Returns:
        Candidates that were rejected, because they cannot run.

    Raises:
        ConfigError: No candidate can run.
    """
    first = first_candidates(coordinates, seed)
    begun = [run.share for run in runs.queued().values() if not run.is_whole]  # by a command that this one continues
    short = min(begun) if begun else short_share(runs.budget, within, len(first))
    told = f"{len(coordinates.candidates)} candidates; the first {len(first)} runs are of {part_of(runs.budget, short)}"
    print(f"plan: {told}", file=sys.stderr, flush=True)
    is_done = _make_first(runs, [PlannedRun(candidate, short) for candidate in first], within)
    rejected = set(first) - {run.candidate for run in runs.queued().values()}
    while is_done:
        if (chosen := next_run(coordinates, runs.standing(), within, short, rejected)) is not None:
            limit = part_of(runs.budget, chosen.share)
            print(f"plan: {shown(chosen.candidate)}, {limit}", file=sys.stderr, flush=True)
            Runner(runs.study_of([chosen])).work()  # nothing, if another worker has just chosen the same
            queued = {(run.candidate, run.is_whole) for run in runs.queued().values()}
            if (chosen.candidate, chosen.is_whole) not in queued:
                rejected.add(chosen.candidate)
        elif runs.study.is_busy():
            time.sleep(LOOK_SECONDS)
        else:
            break
    return rejected


def _make_first(runs: PlanRuns, first: list[PlannedRun], within: Duration | None) -> bool:
    """Makes the first runs, and waits for those of other workers; returns whether all have ended."""
    study = runs.study_of(first)
    runner = Runner(study, total_time=within)
    runner.work()
    tasks = study.plan.grid()
    while study.is_busy(tasks):  # another worker's run is part of what the next ones are chosen by
        time.sleep(LOOK_SECONDS)
        runner.work()  # in case that worker was killed
    reasons = [outcome.reason for outcome in runner.outcomes if outcome.status == "rejected"]
    if len(reasons) == len(first):
        raise ConfigError("space", study.plan.configs[0], f"no candidate can run: {reasons[0]}")
    if study.open(tasks):
        note(f"--within {within} is used up; the same command with more time continues")
        return False
    return True
