"""scripts/challenge_steps.py: the steps of all configs, its table, and runs that are not repeated."""

import json
from pathlib import Path

import pytest

from scripts import challenge_steps as script

PROJECT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((PROJECT / "configs/autoresearch").glob("*.yaml"))


def test_every_config_has_a_number_of_steps():
    steps = {config.stem: script.steps_of(config) for config in CONFIGS}
    assert len(steps) == 36
    assert all(60 < limit <= 300 for limit, _ in steps.values())
    assert steps["32-rope-d80-ff256"] == (243, "")
    assert steps["34-rope-d80-ff256-lr3.5e-3"] == (243, "~")
    assert {name[:2] for name, (_, mark) in steps.items() if mark} == script.UNPUBLISHED.keys()


def test_the_table_has_the_challenges_score_and_the_mean():
    config = PROJECT / "configs/autoresearch/32-rope-d80-ff256.yaml"
    scores = {(config.stem, 42): 2.90, (config.stem, 1): 3.04}
    lines = script.table([config], scores, [42, 1]).splitlines()
    assert lines[0] == "| config | steps | challenge | mean | seed 42 | seed 1 | mean less challenge |"
    assert lines[2] == "| 32-rope-d80-ff256 | 243 | 2.950 | 2.970 | 2.900 | 3.040 | +0.020 |"


def test_a_run_that_is_there_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = PROJECT / "configs/autoresearch/32-rope-d80-ff256.yaml"
    folder = Path("runs/challenge-steps/32-rope-d80-ff256,seed=1/version_0")
    folder.mkdir(parents=True)
    record = {"status": "completed", "total_steps": 243, "val_bpb": 2.9}
    (folder / "record.json").write_text(json.dumps(record))
    assert script.train(config, 1, 243) == record


@pytest.mark.slow
def test_it_trains_a_config_with_each_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shakespeare.txt").write_bytes(bytes(range(32, 127)) * 20_000)
    monkeypatch.setenv("BYTELM_DATA", str(tmp_path))
    options = ["--configs", "32-*", "--seeds", "1", "2", "--workers", "2", "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["challenge_steps.py", *options])
    script.main()
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| 32-rope-d80-ff256 | 243 | 2.950 | ")
    records = [json.loads(file.read_text()) for file in Path("runs/challenge-steps").rglob("record.json")]
    assert [(record["total_steps"], record["seed"]) for record in sorted(records, key=lambda r: r["seed"])] == [
        (2, 1),
        (2, 2),
    ]
