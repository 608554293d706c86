"""`python -m bytelm plan`: real runs of tiny networks, in this process."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.cli import build
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments import plan
from bytelm.experiments.check import _check
from bytelm.experiments.task import Plan, read_space
from bytelm.program import main
from bytelm.units import Duration

PROJECT = Path(__file__).resolve().parents[2]
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
        def __init__(self, is_warm):
            pass

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
    assert [name.rpartition("=")[2] for name in made] == ["2_ktok"] * 2 + ["4_ktok"] * 2 + ["8_ktok"] * 2
    assert [line for line in err if line.startswith("plan:")] == [
        *("plan: 3 candidates, 1 ktok each", "plan: 3 candidates, 2 ktok each"),
        *("plan: 2 candidates, 4 ktok each", "plan: 2 candidates, 8 ktok each"),
    ]
    assert planned("--time_budget.limit", "16 ktok", "--space", SPACE)[2] == []

    folder = Path("runs/plan-tiny")
    figures = json.loads((folder / "plan.json").read_text())
    best = min((one for one in figures["predictions"] if one["share"] >= 0.25), key=lambda one: one["score"])
    assert best["interval"][0] < best["score"] < best["interval"][1]
    assert len(figures["runs"]) == 10
    assert figures["recommended"] == best["candidate"]
    (sentence,) = [line for line in out if line.startswith("Recommended for 16 ktok: d_model ")]
    assert f"predicted val_bpb {best['score']:.4f}" in sentence
    assert "Its longest run has 62 steps: with fewer than 100" in sentence  # of 128 tokens
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


class Queue:
    def __init__(self, folder):
        self.folder = folder
        self.plan = Plan(["c.yaml"])


def planner(n):
    candidates = [(("d", str(place)),) for place in range(n)]
    return plan.Planner("c.yaml", [], Duration(160.0, "seconds"), candidates, Queue(Path("runs/plan-c")))


def measured(candidate, share, score, params=1e5):
    tokens = 1e6 * share
    return plan.Measured(candidate, share, params, tokens, 200, None, score, tokens / (160 * share))


def test_a_round_has_the_best_by_score_and_the_best_by_prediction():
    maker = planner(9)
    runs = [measured(c, 1 / 16, 3.0 + place / 10) for place, c in enumerate(maker.candidates)]
    maker.predictions = lambda law, measured: [SimpleNamespace(candidate=c) for c in reversed(maker.candidates)]
    best = [dict(candidate)["d"] for candidate in maker.promising(runs, 5)]
    assert best == ["0", "8", "1", "7", "2"]
    assert maker.promising([], 5) == []
    few = maker.promising(runs[:3], 2)  # too few for a law
    assert [dict(candidate)["d"] for candidate in few] == ["0", "1"]


def test_a_prediction_is_for_the_tokens_at_the_speed_of_the_longest_run():
    maker = planner(2)
    one, other = maker.candidates
    runs = [measured(one, 1 / 16, 3.0), measured(one, 1 / 8, 2.9), measured(other, 1 / 16, 3.1)]
    runs[1] = replace(runs[1], speed=7e3)
    law = SimpleNamespace(predict=lambda c, n, d: 2.0 + c, interval=lambda c, n, d: (1.9, d))
    first, second = maker.predictions(law, runs)
    assert (first.candidate, first.tokens, first.share, first.runs) == (one, 160 * 7e3, 1 / 8, 2)
    assert first.interval == (1.9, 160 * 7e3)
    assert (second.candidate, second.tokens, second.share, second.runs) == (other, 1e6, 1 / 16, 1)


def test_a_round_has_as_many_runs_as_fit_into_the_time():
    maker = planner(3)
    runs = [replace(measured(c, 1 / 16, 3.0), seconds=14.0, training_seconds=10.0) for c in maker.candidates]
    assert maker._fitting(runs, 1 / 8, 42.0 + 24.0 * 2 + 1) == 2  # 4 s of start-up and 20 s of training
    assert maker._fitting(runs, 1 / 8, 50.0) == 0
    assert maker._fitting([], 1 / 8, 50.0) == 0


def test_a_list_of_candidates_is_taken_as_it_is():
    points = plan._candidates([{"model.gpt.d_model": 64, "model.optimizer.lr": 1e-3}, {"model.gpt.d_model": 96}], {})
    assert points == [(("model.gpt.d_model", "64"), ("model.optimizer.lr", "0.001")), (("model.gpt.d_model", "96"),)]


@pytest.mark.parametrize(
    ("share", "steps", "said"),
    [(0.5, 100, ""), (0.5, 99, "fewer than 100"), (0.25, 100, "given 25% of the budget"), (0.25, 99, "fewer than 100")],
)
def test_a_prediction_from_short_runs_is_called_unreliable(share, steps, said):
    doubt = plan._doubt(share, steps)
    assert (said in doubt, "unreliable" in doubt) == (True, bool(said))


def test_a_space_may_be_a_file(tmp_path):
    space = read_space(str(PROJECT / "configs/spaces/challenge.yaml"))
    assert space["model.gpt.position"] == ["Learned", "Rotary"]
    assert Plan(["c.yaml"], space=space, sampler="tpe").space is space
    assert read_space(space) is space
    with pytest.raises(ConfigError, match=r"nowhere.yaml' cannot be used; No such file.*accepted: a YAML file"):
        read_space(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="it is not valid YAML"):
        read_space(str(tmp_path / "bad.yaml"))


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
        (["--space", "{model.gpt.d_ff: 16}"], r"space.model.gpt.d_ff: 16 cannot be used; accepted: a list of values"),
        (["--space", "[5, 6]"], r"space: \[5, 6\] cannot be used; accepted: \{key: \[values\]\}, or "),
        (
            ["--space", "{time_budget.limit: [1s, 2s]}"],
            r"space.time_budget.limit: .* a plan is for one limit; accepted",
        ),
        (["--study", "../plan"], r"study: '../plan' cannot be used; accepted: the name of a folder in runs/"),
        (["--model.gpt.d_ff", "16"], r"model.gpt.d_ff: unknown key; did you mean -- --model.gpt.d_ff 16\?"),
        (
            ["--space", "{model.gpt.d_ff: [16, 32]}", "--", "--model.gpt.d_ff", "8"],
            r"model.gpt.d_ff: '8' cannot be used; it has no effect after --: the space has values of it",
        ),
        (
            ["--time_budget.limit", "8 steps", "--", "--time_budget.limit", "9 steps"],
            r"time_budget.limit: '9 steps' cannot be used; it has no effect after --: it is also given before --",
        ),
        (
            ["--space", "{model.gpt.d_ff: [16, 32], model.gpt.n_layrs: [1]}"],
            r"space: 'model.gpt.n_layrs' .* n_layers\?",
        ),
        (
            ["--space", "[{model.gpt.n_layrs: 1}, {model.gpt.n_layrs: 2}]"],
            r"space: \{'model.gpt.n_layrs': 1\} .* n_layers\?",
        ),
    ],
)
def test_invalid_plans_are_rejected(planned, capsys, options, said):
    with pytest.raises(SystemExit) as ended:
        planned(*options)
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.slow
def test_a_plan_by_the_clock_with_real_processes(folder, capsys):
    main(["plan", "--config", "tiny.yaml", "--time_budget.limit", "8s", "--within", "3m"])
    assert "Recommended for 8s: d_model " in capsys.readouterr().out
