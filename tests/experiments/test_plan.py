"""`python -m bytelm plan`: real runs of tiny networks, in this process."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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
def test_a_plan_recommends_the_best_whole_run_and_continues_where_it_was(planned, capsys):
    planned.most_runs = 1
    with pytest.raises(SystemExit) as ended:
        planned("--time_budget.limit", "8 ktok", "--space", SPACE)
    assert ended.value.code == StorageError.exit_status
    assert "1 completed runs are too few" in capsys.readouterr().err
    planned.most_runs = 100
    out = " ".join(planned("--time_budget.limit", "8 ktok", "--space", SPACE, "--within", "0.1s")[0])
    assert "an extrapolation from 19% of the budget" in out
    out, err, made = planned("--time_budget.limit", "8 ktok", "--space", SPACE)
    assert [name.rpartition("=")[2] for name in made] == ["8_ktok"] * len(made)
    assert 1 <= len(made) <= 3
    first, *others = [line for line in err if line.startswith("plan:")]
    assert first == "plan: 3 candidates; 3 of them 1500 tok each"
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


def planner(n, runs=(), monkeypatch=None, records=None):
    """A plan of 160 s with n candidates, and with runs, which have ended as their records say."""
    candidates = [(("d", str(2**place)),) for place in range(n)]
    made = plan.Planner("c.yaml", [], Duration(160.0, "seconds"), candidates, ["d"], Queue(Path("runs/plan-c")))
    for one in runs:
        made.study.add(one.candidate, f"{160 * one.share:g}s")
    if monkeypatch is not None:
        records = records or [{"total_time_secs": one.seconds} for one in runs]
        folders = [SimpleNamespace(experiment=f"{k}", status="completed", record=r) for k, r in enumerate(records)]
        monkeypatch.setattr(plan, "read_runs", lambda folder: folders)
        monkeypatch.setattr(made, "measured", lambda: list(runs))
    return made


def measured(place, share, score):
    training = 160 * share
    return plan.Measured((("d", str(2**place)),), share, 1e5, 1e6 * share, 200, score, training + 4, training)


def seconds(value):
    return Duration(value, "seconds")


SHORT = seconds(10.0)


def run_of(maker, place, limit="160s"):
    return (*maker.candidates[place], ("time_budget.limit", limit))


def test_the_next_run_is_a_whole_one_of_the_best_prediction_that_fits_into_the_time(monkeypatch):
    runs = [measured(place, 1 / 16, score) for place, score in enumerate([3.3, 3.0, 3.2, 3.9])]
    spent, whole = 4 * 14.0, 160 * plan.MARGIN + 4
    maker = planner(4, runs, monkeypatch)
    assert maker.next_run(seconds(spent + whole + 0.1), SHORT) == run_of(maker, 1)
    assert maker.next_run(seconds(spent + whole - 0.1), SHORT) is None
    assert maker.next_run(None, SHORT) == run_of(maker, 1)  # five budgets

    maker.study.add(maker.candidates[1], "160s")  # another worker has begun it
    chosen = maker.next_run(seconds(spent + 2 * whole + 0.1), SHORT)
    assert chosen in (run_of(maker, 0), run_of(maker, 2))
    assert maker.next_run(seconds(spent + 2 * whole - 0.1), SHORT) is None
    maker._rejected.add(chosen[:-1])
    assert maker.next_run(seconds(spent + 2 * whole + 0.1), SHORT) not in (None, chosen)
    for place in (0, 2, 3):
        maker.study.add(maker.candidates[place], "160s")
    assert maker.next_run(seconds(1e6), SHORT) is None


def test_time_that_whole_runs_leave_over_goes_to_short_ones_of_further_candidates(monkeypatch):
    runs = [measured(place, 1 / 16, 3.0 + place / 10) for place in (0, 2, 4, 6)]
    maker = planner(7, runs, monkeypatch)
    within = seconds(4 * 14.0 + 2 * (160 * plan.MARGIN + 4) + 14.1)
    chosen = maker.next_run(within, SHORT)
    assert chosen[-1] == ("time_budget.limit", "10s")
    assert chosen[:-1] not in [one.candidate for one in runs]
    maker.study.add(maker.candidates[0], "160s")
    assert maker.next_run(within, SHORT)[-1] == ("time_budget.limit", "160s")


def test_a_run_that_failed_counts_as_a_bad_one(monkeypatch):
    runs = [measured(place, 1 / 16, 3.0) for place in (0, 2, 4)]
    maker = planner(5, runs, monkeypatch, [{"total_time_secs": 14.0}] * 5)
    within = seconds(5 * 14.0 + 160 * plan.MARGIN + 4.1)
    assert maker.next_run(within, SHORT) == run_of(maker, 2)  # losses rise to both ends
    maker.study.add(maker.candidates[3], "160s")
    assert maker.next_run(within, SHORT) == run_of(maker, 1)


def test_no_whole_run_is_made_of_candidates_that_are_not_likely_to_win(monkeypatch):
    runs = [measured(place, 1 / 16, 3.0 + place / 4) for place in range(5)]
    maker = planner(5, [*runs, measured(0, 1.0, 1.5), measured(1, 1.0, 2.5)], monkeypatch)
    assert maker.next_run(seconds(1e6), SHORT) is None


def test_the_recommended_config_has_every_option_of_its_candidate():
    candidate = (("model.optimizer.lr", "0.01"), ("config", "more.yaml"), ("model.optimizer", "Adam"), ("a.b", "[1]"))
    text = planner(2)._recommended(plan.Prediction(candidate, 3.0, (2.9, 3.1), None), None, "the command")
    assert yaml.safe_load(text) == {
        "base": ["../../c.yaml", "../../more.yaml"],
        "model": {"optimizer": "Adam", "optimizer.lr": 0.01},
        "a": {"b": [1]},
        "time_budget": {"limit": "160s"},
    }


def test_runs_of_candidates_with_own_code_are_those_of_the_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("seed_everything: 1\n")
    Path("my_parts.py").write_text("A = 1\n")
    maker = planner(2)
    maker.candidates = [(("model.gpt.feedforward", "my_parts.A"),), (("model.gpt.feedforward", "GELU"),)]
    for candidate in maker.candidates:
        maker.study.add(candidate, "40s")
    assert list(maker._tasks().values()) == [(candidate, 0.25) for candidate in maker.candidates]
    Path("my_parts.py").write_text("A = 2\n")
    assert list(maker._tasks().values()) == [(maker.candidates[1], 0.25)]


def test_a_whole_run_replaces_the_prediction():
    maker = planner(3)
    runs = [measured(0, 1 / 16, 3.0), measured(0, 1.0, 2.5), measured(1, 1 / 16, 3.1)]
    predicted = {one.candidate: one for one in maker.predictions(maker._surface(runs), runs)}
    reached, short, untried = (predicted[candidate] for candidate in maker.candidates)
    assert (reached.score, reached.is_reached) == (2.5, True)
    assert (short.longest, short.is_reached, untried.longest, untried.is_reached) == (runs[2], False, None, False)
    low, high = reached.interval
    assert low * high == pytest.approx(2.5**2)
    assert high / 2.5 == pytest.approx(1.034, abs=1e-3)  # seeds that differ by 1.2 %
    assert untried.interval[1] / untried.score > short.interval[1] / short.score > 1.034


@pytest.mark.parametrize(
    ("first", "within", "limit"),
    [(6, 800.0, "15s"), (6, None, "15s"), (2, None, "40s"), (100, 800.0, "0.88s")],  # of 160 s
)
def test_the_first_short_runs_are_trained_in_a_part_of_the_time(first, within, limit):
    assert str(planner(3)._short_limit(None if within is None else seconds(within), first)) == limit


def test_a_plan_that_continues_has_the_short_runs_that_it_began_with():
    maker = planner(24, [measured(0, 1 / 16, 3.0)])
    assert str(maker._short_limit(seconds(8000.0), 6)) == "10s"


def test_the_first_runs_are_spread_over_a_space_and_are_all_of_a_few_candidates():
    space = {"a": {"low": 1.0, "high": 100.0, "log": True}, "b": {"low": 0, "high": 40, "step": 2}, "c": ["x", "y"]}
    candidates = plan._candidates(space, {}, 0)
    assert len(candidates) == plan.MOST_CANDIDATES
    values = [dict(candidate) for candidate in candidates]
    assert {each["b"] for each in values} == {str(number) for number in range(0, 41, 2)}
    assert 0.4 < sum(float(each["a"]) < 10 for each in values) / len(values) < 0.6
    maker = plan.Planner("c.yaml", [], seconds(160.0), candidates, space, Queue(Path("runs/plan-c")), seed=1)
    first = maker.first()
    assert len(set(first)) == 6
    assert maker.first() == first
    points = maker.coordinates.of(first)
    assert np.abs(points[:, :2]).max() < 0.85
    assert (np.sort(points[:, 0])[[0, -1]] * [-1, 1] > 0.4).all()
    assert planner(3).first() == planner(3).candidates


def test_a_list_of_candidates_is_taken_as_it_is():
    points = plan._candidates([{"model.gpt.d_model": 64, "model.optimizer.lr": 1e-3}, {"model.gpt.d_model": 96}], {}, 0)
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


def test_the_default_space_is_around_the_config_and_d_ff_stays_in_proportion():
    known = {"d_model": 80, "n_heads": 4, "d_ff": 256, "n_layers": 2}
    known = {**{f"model.gpt.{key}": value for key, value in known.items()}, "model.optimizer.lr": 4e-3}
    space = plan._around(known)
    assert space == {
        "model.gpt.d_model": [40, 56, 80, 112, 160],
        "model.gpt.n_layers": [1, 2, 3, 4],
        "model.optimizer.lr": {"low": 1e-3, "high": 1.6e-2, "log": True},
    }
    for point in map(dict, plan._candidates(space, known, 0)):
        assert int(point["model.gpt.d_ff"]) == round(256 * int(point["model.gpt.d_model"]) / 80)
    assert plan._around({"model.gpt.d_model": 16, "model.gpt.n_heads": 2}) == {"model.gpt.d_model": [8, 12, 16, 24, 32]}
    given = plan._candidates({"model.gpt.d_model": [40, 80], "model.gpt.d_ff": [7]}, known, 0)
    assert given == [
        (("model.gpt.d_model", "40"), ("model.gpt.d_ff", "7")),
        (("model.gpt.d_model", "80"), ("model.gpt.d_ff", "7")),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--within", "3 steps"], r"within: '3 steps' cannot be used; accepted: a time"),
        (["--time_budget.limit", "5%"], r"limit: '5%' cannot be used; accepted: a time, steps, tokens or FLOPs"),
        (["--space", "{model.gpt.d_model: [16]}"], r"space: .* accepted: values that make at least two candidates"),
        (
            ["--space", "{model.gpt.d_ff: 16}"],
            r"space.model.gpt.d_ff: 16 cannot be used; accepted: a list of values, or",
        ),
        (["--space", "{model.gpt.d_ff: {low: 8, high: 4}}"], r"space.model.gpt.d_ff: .* accepted: a low that is below"),
        (["--sampler_seed", "-1"], r"sampler_seed: '?-1'? cannot be used; accepted: a whole number from 0"),
        (["--space", "[5, 6]"], r"space: \[5, 6\] cannot be used; accepted: \{key: \[values\]\}, "),
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
