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
from bytelm.experiments import loss_law, plan
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
def test_a_plan_recommends_the_best_whole_run_and_continues_where_it_was(planned, capsys):
    planned.most_runs = 1
    with pytest.raises(SystemExit) as ended:
        planned("--time_budget.limit", "8 ktok", "--space", SPACE)
    assert ended.value.code == StorageError.exit_status
    assert "1 completed runs are too few" in capsys.readouterr().err
    planned.most_runs = 100
    out = " ".join(planned("--time_budget.limit", "8 ktok", "--space", SPACE, "--within", "0.1s")[0])
    assert "an extrapolation from 25% of the budget" in out
    out, err, made = planned("--time_budget.limit", "8 ktok", "--space", SPACE)
    assert [name.rpartition("=")[2] for name in made] == ["8_ktok"] * len(made)
    assert 1 <= len(made) <= 3
    first, *others = [line for line in err if line.startswith("plan:")]
    assert first == "plan: 3 candidates, 2 ktok each"
    assert len(others) == len(made)
    assert planned("--time_budget.limit", "8 ktok", "--space", SPACE)[2] == []

    folder = Path("runs/plan-tiny")
    figures = json.loads((folder / "plan.json").read_text())
    reached = [one for one in figures["predictions"] if one["is_reached"]]
    best = min(reached, key=lambda one: one["score"])
    assert best["interval"][0] < best["score"] < best["interval"][1]
    assert len(figures["runs"]) == 3 + len(made) == 3 + len(reached)
    assert figures["recommended"] == best["candidate"]
    record = json.loads(Path(figures["run"], "record.json").read_text())
    assert record["val_bpb"] == best["score"]
    (sentence,) = [line for line in out if line.startswith("Recommended for 8 ktok: d_model ")]
    assert f"val_bpb {best['score']:.4f}, reached in 62 steps by the run {figures['run']} " in sentence
    assert "With fewer than 100 steps" in sentence
    recommended = yaml.safe_load((folder / "recommended.yaml").read_text())
    assert recommended["time_budget"] == {"limit": "8 ktok"}
    assert str(recommended["model"]["gpt"]["d_model"]) == best["candidate"]["model.gpt.d_model"]
    page = (folder / "plan.md").read_text()
    assert "## What this does not know" in page
    assert (folder / "plan.svg").read_text().startswith("<?xml")
    build(["fit", "--config", str(folder / "recommended.yaml"), "--experiment", "again"])
    again = json.loads(Path("runs/again/version_0/record.json").read_text())
    assert again["val_bpb"] == best["score"]  # the same run, of a budget that is not a time


class Queue:
    """The queue of a plan with runs that are queued, but were not made here."""

    def __init__(self, folder):
        self.folder = folder
        self.plan = Plan(["c.yaml"])
        self.tasks = {}

    def folders(self):
        return self.tasks

    def add(self, candidate, limit):
        self.tasks[self.plan.task("c.yaml", None, (*candidate, ("time_budget.limit", limit)))] = f"{len(self.tasks)}"


def planner(n, runs=(), monkeypatch=None):
    """A plan of 160 s, with runs."""
    candidates = [(("d", str(place)),) for place in range(n)]
    made = plan.Planner("c.yaml", [], Duration(160.0, "seconds"), candidates, Queue(Path("runs/plan-c")))
    for one in runs:
        made.study.add(one.candidate, f"{160 * one.share:g}s")
    if monkeypatch is not None:
        records = [{"total_time_secs": one.seconds} for one in runs]
        folders = [SimpleNamespace(experiment=f"{k}", status="completed", record=r) for k, r in enumerate(records)]
        monkeypatch.setattr(plan, "read_runs", lambda folder: folders)
        monkeypatch.setattr(loss_law, "DRAWS", 8)
        monkeypatch.setattr(made, "measured", lambda: list(runs))
    return made


def measured(place, share, score, params=1e5):
    tokens, training = 1e6 * share, 160 * share
    candidate = (("d", str(place)),)
    return plan.Measured(candidate, share, params, tokens, 200, None, score, tokens / training, training + 4, training)


def test_the_next_whole_run_is_the_best_prediction_that_fits_into_the_time(monkeypatch):
    runs = [measured(place, 1 / 16, 3.0 + place / 10) for place in range(4)]
    spent, whole = 4 * 14.0, 160 * plan.MARGIN + 4
    maker = planner(4, runs, monkeypatch)
    assert maker.next_whole(Duration(spent + whole + 0.1, "seconds")) == (("d", "0"),)
    assert maker.next_whole(Duration(spent + whole - 0.1, "seconds")) is None
    assert maker.next_whole(None) == (("d", "0"),)  # five budgets

    maker.study.add(maker.candidates[0], "160s")  # another worker has begun it
    assert maker.next_whole(Duration(spent + 2 * whole + 0.1, "seconds")) == (("d", "1"),)
    assert maker.next_whole(Duration(spent + 2 * whole - 0.1, "seconds")) is None
    for candidate in maker.candidates[1:]:
        maker.study.add(candidate, "160s")
    assert maker.next_whole(None) is None


def test_no_whole_run_is_made_of_candidates_that_are_not_likely_to_win(monkeypatch):
    short = [measured(place, 1 / 16, 3.0 + place / 10) for place in range(4)]
    hopeless = [measured(4, 1 / 16, 9.0), measured(0, 1.0, 2.0)]
    maker = planner(5, [*short, *hopeless], monkeypatch)
    assert maker.next_whole(None) == (("d", "1"),)
    for candidate in maker.candidates[1:4]:
        maker.study.add(candidate, "160s")
    assert maker.next_whole(Duration(1e6, "seconds")) is None


def test_a_prediction_is_for_the_tokens_at_the_speed_of_the_longest_run():
    maker = planner(2)
    one, other = maker.candidates
    runs = [measured(0, 1 / 16, 3.0), replace(measured(0, 1 / 8, 2.9), speed=7e3), measured(1, 1 / 16, 3.1)]
    law = SimpleNamespace(predict=lambda c, n, d: 2.0 + c, interval=lambda c, n, d: (1.9, d))
    first, second = maker.predictions(law, runs)
    assert (first.candidate, first.tokens, first.longest) == (one, 160 * 7e3, runs[1])
    assert first.interval == (1.9, 160 * 7e3)
    assert (second.candidate, second.tokens, second.is_reached) == (other, 1e6, False)


def test_a_whole_run_replaces_the_prediction():
    maker = planner(2)
    law = SimpleNamespace(predict=lambda c, n, d: 2.0, interval=lambda c, n, d: (1.9, 2.1))
    runs = [measured(0, 1 / 16, 3.0), measured(0, 1.0, 2.5), measured(1, 1 / 16, 3.1)]
    predicted, reached = maker.predictions(law, runs)
    assert (reached.score, reached.is_reached, predicted.is_reached) == (2.5, True, False)
    low, high = reached.interval
    assert low * high == pytest.approx(2.5**2)
    assert high / 2.5 == pytest.approx(1.034, abs=1e-3)  # seeds that differ by 1.2 %


@pytest.mark.parametrize(
    ("candidates", "within", "limit"),
    [(24, 800.0, "7.3s"), (24, None, "7.3s"), (3, None, "40s"), (200, 800.0, "0.88s")],  # of 160 s
)
def test_short_runs_of_all_candidates_are_trained_in_a_part_of_the_time(candidates, within, limit):
    within = None if within is None else Duration(within, "seconds")
    assert str(planner(candidates)._short_limit(within)) == limit


def test_a_plan_that_continues_has_the_short_runs_that_it_began_with():
    maker = planner(24, [measured(0, 1 / 16, 3.0)])
    assert str(maker._short_limit(Duration(8000.0, "seconds"))) == "10s"


def test_a_list_of_candidates_is_taken_as_it_is():
    points = plan._candidates([{"model.gpt.d_model": 64, "model.optimizer.lr": 1e-3}, {"model.gpt.d_model": 96}], {})
    assert points == [(("model.gpt.d_model", "64"), ("model.optimizer.lr", "0.001")), (("model.gpt.d_model", "96"),)]


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
    main(["plan", "--config", "tiny.yaml", "--time_budget.limit", "4s", "--within", "1m"])
    assert re.search(
        r"Recommended for 4s: d_model .*reached in \d+ steps by the run runs/plan-tiny/", capsys.readouterr().out
    )
