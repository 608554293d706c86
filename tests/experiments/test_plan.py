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
from bytelm.experiments.check import _check
from bytelm.experiments.plan import command, stages
from bytelm.program import main

SPACE = "{model.gpt.d_model: [4, 8, 16]}"


@pytest.fixture
def planned(folder, monkeypatch, capsys):
    """Runs the command with runs in this process; returns its output, its messages, and the names of its runs."""
    made = []

    class Runner:
        def __init__(self, study, total_time=None):
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
    monkeypatch.setattr(stages, "Runner", Runner)
    monkeypatch.setattr(command, "Checker", Checker)
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
    assert first == "plan: 3 candidates; the first 3 runs are of 1500 tok"
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
    assert f"val_bpb is {best['score']:.4f}, reached in 62 steps by the run {figures['run']} " in sentence
    assert "With fewer than 100 steps" in sentence
    recommended = yaml.safe_load((folder / "recommended.yaml").read_text())
    assert recommended["time_budget"] == {"limit": "8 ktok"}
    assert str(recommended["model"]["gpt"]["d_model"]) == best["candidate"]["model.gpt.d_model"]
    page = (folder / "plan.md").read_text()
    assert "## Limits of the prediction" in page
    assert (folder / "plan.svg").read_text().startswith("<?xml")
    assert "data:image/svg" in (folder / "plan.html").read_text()
    build(["fit", "--config", str(folder / "recommended.yaml"), "--experiment", "again"])
    again = json.loads(Path("runs/again/version_0/record.json").read_text())
    assert again["val_bpb"] == best["score"]  # the same run, of a budget that is not a time


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--within", "3 steps"], r"within: '3 steps' cannot be used; accepted: a time"),
        (
            ["--time_budget.limit", "5%"],
            r"time_budget.limit: '5%' cannot be used; accepted: a time, steps, tokens or FLOPs",
        ),
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
