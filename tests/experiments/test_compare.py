"""`python -m bytelm compare`. Runs here are stand-ins, which take no time; one slow test runs the whole program."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_folders import CORPUS, config, make_run

pytest.importorskip("scipy")
pytest.importorskip("optuna")

from bytelm.errors import StorageError
from bytelm.experiments import compare
from bytelm.program import main

NOISE = [0.003, -0.002, 0.001, -0.004, 0.002, 0.0, -0.001, 0.004, -0.003, 0.002]  # of the seeds from 1


@pytest.fixture
def world(folder, monkeypatch):
    """Stand-ins replace runs and checks: `scores` are the scores of configs without noise, by name."""
    Path("a.yaml").write_text("model: a\n")
    Path("b.yaml").write_text("model: b\n")
    Path("c.yaml").write_text("model: c\n")

    class World:
        def __init__(self):
            self.scores = {"a": 2.0, "b": 1.9, "c": 2.0}
            self.limit = "180s"
            self.begun = []
            self.corpora = {}
            self.failing = set()
            self.outcomes = []
            self.most_runs = 100

    world = World()

    class Runner:
        def __init__(self, study, max_runs, total_time, run_timeout):
            self.study, self.outcomes = study, world.outcomes

        def work(self):
            for task in self.study.missing():
                self.study.queue(task)
            while len(world.begun) < world.most_runs and (claim := self.study.next()) is not None:
                task = claim.task
                name = Path(task.config).stem
                name = name if name in world.scores else "a"
                limit = task.options[task.options.index("--time_budget.limit") + 1]
                world.begun.append((Path(claim.experiment).name, limit))
                failed = claim.experiment.rpartition("/")[2] in world.failing
                make_run(
                    claim.experiment,
                    world.scores[name] + NOISE[task.seed - 1] * (-1 if name == "b" else 1),
                    at=len(world.begun),
                    status="diverged" if failed else "completed",
                    settings=config(limit=limit, seed=task.seed),
                    corpus=world.corpora.get(name, CORPUS),
                )
                self.study.close(claim.number, None if failed else 1.0)

    class Checker:
        def __init__(self, is_warm):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def check(self, options):
            return {"time_budget": {"limit": world.limit}}, ""

    monkeypatch.setattr(compare, "Runner", Runner)
    monkeypatch.setattr(compare, "Checker", Checker)
    return world


@pytest.fixture
def compared(world, capsys):
    """Runs the command; returns its lines and the figures of the study."""

    def compared(*args):
        main(["compare", *args])
        captured = capsys.readouterr()
        path = re.search(r"comparison.json: (.*)", captured.out)[1]
        return [line for line in captured.out.splitlines() if line], json.loads(Path(path).read_text())

    return compared


def rejected(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *args])
    (line,) = capsys.readouterr().err.splitlines()
    return ended.value.code, line


def test_seeds_are_added_in_pairs_until_the_difference_is_settled(world, compared):
    lines, figures = compared("a.yaml", "b.yaml", "--seeds", "9")
    pairs = [f"{name},seed={seed}" for seed in range(1, 5) for name in "ab"]
    assert world.begun == [(name, "180s") for name in pairs]
    assert lines[0] == "equal time: 180s each"
    assert "b is better than a by 0.0990 val_bpb (5.0%): settled after 4 seeds." in lines
    difference = figures["differences"]["b"]
    assert (difference["pairs"], difference["settled"]) == (4, True)
    assert difference["mean"] == pytest.approx(-0.1 + 2 * 0.002 / 4)
    low, high = difference["interval_95"]
    assert low < difference["mean"] < high < 0
    assert [line.split() for line in lines[1:4]] == [
        ["val_bpb", "seeds", "steps", "tokens", "seconds"],
        ["a", "1.9995", "±", "0.0031", "4", "100", "180.0"],
        ["b", "1.9005", "±", "0.0031", "4", "100", "180.0"],
    ]
    assert lines[4] == (
        "b minus a: -0.0990, 95 % interval -0.1089 to -0.0891; 99.9 % that b is better; 31.8 times the noise of a "
        "seed (0.0031)"
    )


def test_the_same_command_runs_nothing_again_and_more_seeds_are_added_to_the_earlier_ones(world, compared):
    world.scores["b"] = 1.998
    lines, figures = compared("a.yaml", "b.yaml", "--seeds", "3")
    (sentence,) = [line for line in lines if line.startswith("Not settled after 3 seeds: b is ahead by 0.0")]
    needed = figures["differences"]["b"]["seeds_needed"]
    assert (
        f"if the difference stays as measured, {needed - 3} more seeds would settle it (--seeds {needed})" in sentence
    )
    assert not figures["differences"]["b"]["settled"]
    assert compared("a.yaml", "b.yaml", "--seeds", "3") == (lines, figures)
    assert len(world.begun) == 6
    compared("a.yaml", "b.yaml", "--seeds", "4")
    assert world.begun[6:] == [("a,seed=4", "180s"), ("b,seed=4", "180s")]


def test_several_comparisons_share_the_error_rate(world, compared):
    lines, figures = compared("a.yaml", "b.yaml", "c.yaml", "--seeds", "5")
    assert len(world.begun) == 15  # c does not differ
    alone = compared("a.yaml", "b.yaml", "--seeds", "5", "--study", "two")[1]
    p = {name: each["p_value"] for name, each in figures["differences"].items()}
    assert p["b"] < alone["differences"]["b"]["p_value"]  # of five seeds, not four
    assert figures["differences"]["b"]["settled"]
    assert not figures["differences"]["c"]["settled"]
    assert figures["differences"]["c"]["mean"] == 0
    assert "c and a have the same score after 5 seeds: not settled." in lines


def test_runs_that_exist_are_not_made_again(world, compared):
    for seed in (1, 7):
        make_run(f"s/old,seed={seed}", 2.0 + NOISE[seed - 1], at=seed, settings=config(seed=seed))
    _, figures = compared("runs/s", "b.yaml", "--seeds", "3")
    assert [name for name, _ in world.begun] == ["b,seed=1", "b,seed=7", "old,seed=2", "b,seed=2"]
    assert figures["contestants"]["old"]["runs"]["7"] == "runs/s/old,seed=7/version_0"
    assert list(figures["contestants"]["old"]["scores"]) == ["1", "7", "2"]


def test_runs_within_another_budget_are_made_again(world, compared):
    make_run("s/old", 2.0, settings=config(seed=1))
    compared("runs/s/old", "b.yaml", "--seeds", "2", "--limit", "60s")
    assert [limit for _, limit in world.begun] == ["60s"] * 4


def test_a_study_stands_for_its_best_experiment(world, compared):
    make_run("s/good", 1.5, at=1, settings=config(seed=1))
    make_run("s/bad", 2.5, at=2, settings=config(seed=1, d_model=8))
    _, figures = compared("a.yaml", "runs/s", "--seeds", "2")
    assert figures["contestants"]["good"]["config"] == "runs/s/good/version_0/config.yaml"


@pytest.mark.parametrize(
    ("equal", "record", "limit"),
    [("tokens", {"tokens_seen": 3_000_000}, "3 Mtok"), ("flops", {"total_flops": 2 * 10**12}, "2 TFLOP")],
)
def test_the_amount_is_that_of_the_first_config_or_has_to_be_given(world, compared, capsys, equal, record, limit):
    make_run("s/old", 2.0, settings=config(seed=1), **record)
    lines, _ = compared("runs/s/old", "b.yaml", "--seeds", "2", "--equal", equal)
    assert lines[0] == f"equal {equal}: {limit} each"
    assert world.begun[0][1] == limit
    status, line = rejected(capsys, "a.yaml", "b.yaml", "--equal", equal)
    assert status == 2
    assert f"equal: '{equal}' cannot be used; a is limited to 180s; accepted: --equal {equal} --limit " in line
    assert line.rstrip().endswith(", or --equal time")
    world.limit = "40 steps"
    status, line = rejected(capsys, "a.yaml", "b.yaml")
    expected = "equal: 'time' cannot be used; a is limited to 40 steps; accepted: --equal time --limit 180s"
    assert (status, line.rstrip().partition("error: ")[2]) == (2, expected)


def test_a_failed_run_costs_its_pair_alone(world, compared):
    world.failing = {"b,seed=2"}
    _, figures = compared("a.yaml", "b.yaml", "--seeds", "3")
    assert figures["differences"]["b"]["pairs"] == 2
    assert list(figures["contestants"]["b"]["scores"]) == ["1", "3"]
    world.failing = {"c,seed=1", "c,seed=2"}
    lines, _ = compared("a.yaml", "c.yaml", "--seeds", "2")
    assert lines[3].split() == ["c", "none", "0"]
    assert "c and a have no seed with two scores; see the runs' records." in lines


def test_a_run_that_is_rejected_ends_the_comparison_with_its_reason(world, capsys):
    world.outcomes = [SimpleNamespace(status="rejected", reason="data.path: 'x' cannot be used")]
    status, line = rejected(capsys, "a.yaml", "b.yaml")
    assert status == 2
    assert line.endswith("b.yaml' cannot be used; a run was rejected: data.path: 'x' cannot be used")


def test_runs_beyond_the_limits_are_not_waited_for(world, compared):
    world.most_runs = 3
    lines, figures = compared("a.yaml", "b.yaml", "--seeds", "5")
    assert len(world.begun) == 3
    assert figures["differences"]["b"]["pairs"] == 1
    assert any(line.startswith("Not settled after 1 seed:") for line in lines)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a.yaml"], "contestants: ['a.yaml'] cannot be used; accepted: two or more"),
        (["a.yaml", "no.yaml"], "contestants: 'no.yaml' cannot be used; no such file or folder"),
        (["a.yaml", "b.yaml", "--seeds", "1"], "seeds: 1 cannot be used; accepted: at least 2"),
        (["a.yaml", "b.yaml", "--limit", "3 Mtok"], "limit: '3 Mtok' cannot be used; accepted with --equal time: such"),
        (["a.yaml", "b.yaml", "--total_time", "5%"], "total_time: '5%' cannot be used; accepted: a time"),
        (["a.yaml", "b.yaml", "--study", "/x"], "study: '/x' cannot be used; accepted: the name of a folder in runs/"),
        (
            ["a.yaml", "b.yaml", "--", "--seed_everything=3"],
            "seed_everything: '3' cannot be used; it has no effect aft",
        ),
        (
            ["a.yaml", "b.yaml", "--limit", "3s", "--", "--time_budget.limit", "4s"],
            "time_budget.limit: '4s' cannot be used; it has no effect after --: it is also given as --limit",
        ),
    ],
)
def test_invalid_comparisons_are_rejected_in_one_line(world, capsys, args, said):
    status, line = rejected(capsys, *args)
    assert status == 2
    assert said in line
    assert world.begun == []


def test_a_folder_without_a_score_and_one_with_several_budgets_are_rejected(world, capsys):
    make_run("s/old", status="error")
    assert rejected(capsys, "a.yaml", "runs/s")[0] == StorageError.exit_status
    make_run("t/one", settings=config())
    make_run("t/two", settings=config(limit="60s"), at=1)
    status, line = rejected(capsys, "a.yaml", "runs/t")
    assert (status, "its runs have different budgets or corpora (180s, 60s)" in line) == (2, True)


def test_scores_on_different_corpora_are_rejected(world, capsys):
    world.corpora = {"b": {"name": "other.txt", "bytes": 5, "sha256": "b"}}
    status, line = rejected(capsys, "a.yaml", "b.yaml")
    assert (status, "their corpora differ" in line) == (2, True)


@pytest.mark.slow
def test_two_configs_are_compared_by_real_runs(folder, capsys):
    Path("wide.yaml").write_text(Path("tiny.yaml").read_text().replace("d_model: 16", "d_model: 32"))
    main(["compare", "tiny.yaml", "wide.yaml", "--seeds", "5", "--equal", "flops", "--limit", "300 MFLOP"])
    out = capsys.readouterr().out
    assert "wide is better than tiny" in out or "tiny is better than wide" in out or "Not settled" in out
    records = [json.loads(path.read_text()) for path in Path("runs").rglob("record.json")]
    assert len(records) >= 4
    assert all(record["total_flops"] <= 300e6 for record in records)
