"""`python -m bytelm plan`: real runs of tiny networks, in this process."""

import json
import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.cli import build
from bytelm.errors import StorageError
from bytelm.experiments import plan
from bytelm.experiments.check import _check
from bytelm.program import main

SPACE = "{model.gpt.d_model: [4, 8, 16]}"


@pytest.fixture
def planned(folder, monkeypatch, capsys):
    """Runs the command with runs in this process; returns its output, its messages, and the names of its runs."""
    made = []

    class Runner:
        def __init__(self, study, max_runs, total_time):
            self.study, self.total_time, self.outcomes = study, total_time, []

        def work(self):
            for task in self.study.missing():
                self.study.queue(task)
            while len(made) < planned.most_runs and (claim := self.study.next()) is not None:
                made.append(Path(claim.experiment).name)
                build(["fit", *claim.task.fit_options, "--experiment", claim.experiment])
                self.study.close(claim.number, 1.0)

    class Checker:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def check(self, options):
            return _check([*options])

    def planned(*options):
        made.clear()
        main(["plan", "--config", "tiny.yaml", *options])
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err.splitlines(), list(made)

    planned.most_runs = 100
    monkeypatch.setattr(plan, "Runner", Runner)
    monkeypatch.setattr(plan, "Checker", Checker)
    return planned


@pytest.mark.slow
def test_a_plan_recommends_a_config_that_runs_and_continues_where_it_was(planned, capsys):
    planned.most_runs = 4
    with pytest.raises(SystemExit) as ended:
        planned("--time_budget.limit", "16 ktok", "--space", SPACE)
    assert ended.value.code == StorageError.exit_status
    assert "4 completed runs are too few" in capsys.readouterr().err
    planned.most_runs = 100
    out, err, made = planned("--time_budget.limit", "16 ktok", "--space", SPACE)
    assert made[:2] == ["tiny,d_model=8,limit=2_ktok", "tiny,d_model=16,limit=2_ktok"]
    assert [name.rpartition("=")[2] for name in made[2:]] == ["4_ktok"] * 2  # the two with the best predictions
    assert [line for line in err if line.startswith("plan:")] == [
        *("plan: 3 candidates, 1 ktok each", "plan: 3 candidates, 2 ktok each", "plan: 2 candidates, 4 ktok each")
    ]
    assert planned("--time_budget.limit", "16 ktok", "--space", SPACE)[2] == []

    folder = Path("runs/plan-tiny")
    figures = json.loads((folder / "plan.json").read_text())
    best = figures["predictions"][0]
    assert best["score"] == min(one["score"] for one in figures["predictions"])
    assert best["interval"][0] < best["score"] < best["interval"][1]
    assert len(figures["runs"]) == 8
    (sentence,) = [line for line in out if line.startswith("Recommended for 16 ktok: d_model ")]
    assert f"predicted val_bpb {best['score']:.4f}" in sentence
    assert "The shortest run has 7 steps: with fewer than 100" in sentence  # of 128 tokens
    recommended = yaml.safe_load((folder / "recommended.yaml").read_text())
    assert recommended["time_budget"] == {"limit": "16 ktok"}
    assert str(recommended["model"]["gpt"]["d_model"]) == best["candidate"]["model.gpt.d_model"]
    page = (folder / "plan.md").read_text()
    assert "## What this does not know" in page
    assert (folder / "plan.svg").read_text().startswith("<?xml")
    run = build(["fit", "--config", str(folder / "recommended.yaml"), "--experiment", "whole"])
    assert run.trainer.datamodule is not None
    record = json.loads(Path("runs/whole/version_0/record.json").read_text())
    assert record["tokens_seen"] == pytest.approx(16_000, rel=0.02)


@pytest.mark.parametrize(
    ("resolved", "widths"),
    [
        ({"d_model": 80, "n_heads": 4, "d_ff": 256}, [40, 56, 80, 112, 160]),
        ({"d_model": 16, "n_heads": 2}, [8, 12, 16, 24, 32]),
    ],
)
def test_the_default_ladder_is_of_widths_that_the_heads_divide(resolved, widths):
    points = [dict(point) for point in plan._candidates(None, {"model": {"gpt": resolved}})]
    assert [int(point["model.gpt.d_model"]) for point in points] == widths
    for point in points:
        if "d_ff" in resolved:
            assert int(point["model.gpt.d_ff"]) == round(256 * int(point["model.gpt.d_model"]) / 80)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--within", "3 steps"], r"within: '3 steps' cannot be used; accepted: a time"),
        (["--time_budget.limit", "5%"], r"limit: '5%' cannot be used; accepted: a time, steps, tokens or FLOPs"),
        (["--space", "{model.gpt.d_model: [16]}"], r"space: .* accepted: values that make at least two candidates"),
    ],
)
def test_what_cannot_be_planned_is_rejected(planned, capsys, options, said):
    with pytest.raises(SystemExit) as ended:
        planned(*options)
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.slow
def test_a_plan_by_the_clock_with_real_processes(folder, capsys):
    main(["plan", "--config", "tiny.yaml", "--time_budget.limit", "8s", "--within", "3m"])
    assert "Recommended for 8s: d_model " in capsys.readouterr().out
