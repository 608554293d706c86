"""The stages of a plan, with runs that are made at once."""

from types import SimpleNamespace

import pytest

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.errors import ConfigError
from bytelm.experiments.plan import stages
from bytelm.experiments.plan.coordinates import Coordinates
from bytelm.experiments.plan.runs import Measured, Standing
from bytelm.runs.score import VAL_BPB
from bytelm.units import Duration

CANDIDATES = [(("d", str(2**place)),) for place in range(8)]
LOSSES = [3.0, 2.8, 2.6, 2.4, 2.2, 2.3, 2.5, 2.7]


class Runs:
    """The runs of a plan, each of which ends at once, or is rejected."""

    budget = Duration(160.0, "seconds")

    def __init__(self, rejected):
        self.rejected = rejected
        self.made = []
        self.study = SimpleNamespace(is_busy=lambda: False)

    def study_of(self, runs):
        return SimpleNamespace(
            runs=runs,
            plan=SimpleNamespace(grid=list, configs=["c.yaml"]),
            is_busy=lambda tasks: False,
            open=lambda tasks: [],
            made=self.made,
            rejected=self.rejected,
        )

    def queued(self):
        return dict(enumerate(self.made))

    def standing(self):
        runs = [
            Measured(*run, 1e5, 1e6, 200, LOSSES[CANDIDATES.index(run.candidate)] - run.share, 0.0, 160 * run.share)
            for run in self.made
        ]
        return Standing(self.made, [], runs, sum(160 * run.share for run in self.made), VAL_BPB)


@pytest.fixture
def runner(monkeypatch):
    class Runner:
        def __init__(self, study, total_time=None):
            self.study, self.outcomes = study, []

        def work(self):
            for run in self.study.runs:
                if CANDIDATES.index(run.candidate) in self.study.rejected:
                    self.outcomes.append(SimpleNamespace(status="rejected", reason="too wide"))
                else:
                    self.study.made.append(run)

    monkeypatch.setattr(stages, "Runner", Runner)


@pytest.mark.parametrize("rejected", [(), (0, 4)])
def test_whole_runs_follow_short_ones_without_candidates_that_cannot_run(runner, rejected):
    runs = Runs(rejected)
    found = stages.make_runs(runs, Coordinates(CANDIDATES, ["d"]), Duration(800.0, "seconds"), seed=1)
    assert found <= {CANDIDATES[place] for place in rejected}
    short = [run for run in runs.made if not run.is_whole]
    whole = [run.candidate for run in runs.made if run.is_whole]
    assert runs.made[: len(short)] == short
    assert len(short) >= 4 - len(rejected)
    assert len(whole) >= 2
    assert CANDIDATES[5 if rejected else 4] in whole
    assert len(set(whole)) == len(whole)


def test_a_plan_without_a_candidate_that_can_run_is_an_error(runner):
    with pytest.raises(ConfigError, match="no candidate can run: too wide"):
        stages.make_runs(Runs(range(8)), Coordinates(CANDIDATES, ["d"]), Duration(800.0, "seconds"), seed=1)
