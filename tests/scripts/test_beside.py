"""scripts/benchmark.py --beside: configs and another training script in turn, and their scores."""

import re
import sys

import pytest

from scripts import benchmark

OTHER = """
import sys
print("step 1 | loss: 5.0")
print("---")
print("val_bpb:          1.250000")
print("num_steps:        7")
print("total_tokens_M:   0.5")
print("training_seconds:", sys.argv[1])
"""


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    benchmark.main()


@pytest.fixture
def trained(monkeypatch):
    """The configs that were trained, in order, without their training."""
    found = []

    def train(config, seconds, overrides):
        found.append((config.stem, seconds, list(overrides)))
        return {"val_bpb": 1.0 + len(found), "total_steps": 9, "mfu": None}

    monkeypatch.setattr(benchmark, "run_bytelm", train)
    return found


def test_configs_and_the_script_run_in_turn(tmp_path, monkeypatch, capsys, trained):
    (tmp_path / "other.py").write_text(OTHER)
    command = f"cd {tmp_path} && {sys.executable} other.py {{seconds}}"
    run(
        monkeypatch,
        *("--budget", "6s", "--repeats", 2, "--config", "a.yaml", "--config", "b.yaml", "--beside", command),
        *("--", "--trainer.devices", 1),
    )
    given = ["--trainer.devices", "1"]
    assert trained == [("a", 6, given), ("b", 6, given), ("b", 6, given), ("a", 6, given)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:4] == ["contender", "val_bpb of each run", "mean", "steps"]
    assert {len(row) for row in rows} == {3 + len(benchmark.COLUMNS)}
    assert rows[2][:5] == ["`a`", "2.0000, 5.0000", "3.5000", "9", ""]
    assert rows[4] == [f"`{command}`", "1.2500, 1.2500", "1.2500", "7", "500,000", "6.0", "", ""]


@pytest.mark.parametrize(
    ("script", "message"),
    [("print('loss: 3')", "no line such as `val_bpb"), ("import sys; sys.exit('it broke')", "status 1:\nit broke")],
)
def test_a_script_without_a_score_ends_the_comparison(script, message, monkeypatch, trained):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--repeats", 1, "--config", "a.yaml", "--beside", f'{sys.executable} -c "{script}"')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config", "a.yaml", "--config", "b.yaml"), "config: 'a.yaml b.yaml' .* only with --beside"),
        (("--peek",), "peek: unknown key; did you mean peak?"),
        (("--peak", "--busy", 2), "busy: it is given beside peak"),
        (("--startup", "--budget", "9s"), "budget: '9s' cannot be used; it has no effect with --startup"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(options, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"bytelm: error: {message}", line)
