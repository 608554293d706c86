"""The runs of a plan that are in its study's queue."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.experiments.plan.runs import PlannedRun, PlanRuns
from bytelm.experiments.task import Plan
from bytelm.units import Duration


def test_runs_of_candidates_with_own_code_are_those_of_the_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("seed_everything: 1\n")
    Path("my_parts.py").write_text("A = 1\n")
    candidates = [(("model.gpt.feedforward", "my_parts.A"),), (("model.gpt.feedforward", "GELU"),)]
    plan = Plan(["c.yaml"])
    queue = {plan.task("c.yaml", None, (*each, ("time_budget.limit", "40s"))): each[0][1] for each in candidates}
    runs = PlanRuns(SimpleNamespace(plan=plan, folders=lambda: queue), "c.yaml", candidates, Duration(160.0, "seconds"))
    own, shipped = (PlannedRun(each, 0.25) for each in candidates)
    assert runs.queued() == {"my_parts.A": own, "GELU": shipped}
    Path("my_parts.py").write_text("A = 2\n")
    assert runs.queued() == {"GELU": shipped}
