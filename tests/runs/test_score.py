"""The score that runs are ranked by, also of runs on tokens of an unknown tokenizer."""

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("markdown")
pytest.importorskip("scipy")

from token_shards import train_on_tokens

from bytelm.experiments.report.page import report
from bytelm.runs.ledger import best_of, read_runs, write_ledger
from bytelm.runs.score import VAL_BPB, VAL_LOSS, score_of

NAN = float("nan")


def record(val_bpb=None, val_loss=None, status="completed"):
    return {"status": status, "val_bpb": val_bpb, "val_loss": val_loss}


@pytest.mark.parametrize(
    ("values", "score"),
    [
        (record(2.5), 2.5),
        (record(0.0), 0.0),
        (record(NAN), None),
        (record(float("inf")), None),
        (record(val_loss=5.0), None),
        (record(2.5, status="interrupted"), None),
        ({"status": "completed"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_score_is_a_number_of_a_completed_run(values, score):
    assert VAL_BPB.of(values) == score


@pytest.mark.parametrize(
    ("records", "score"),
    [
        ([], VAL_BPB),
        ([record(status="error")], VAL_BPB),
        ([record(2.5, 1.7)], VAL_BPB),
        ([record(val_loss=5.0), record(status="error")], VAL_LOSS),
        ([record(val_loss=0.0)], VAL_LOSS),
        ([record(val_loss=5.0), record(2.5, 1.7)], VAL_BPB),
        ([record(val_loss=5.0), record(2.5, 1.7, status="interrupted")], VAL_LOSS),
    ],
    ids=str,
)
def test_runs_are_ranked_by_val_loss_where_none_has_a_val_bpb(records, score):
    assert score_of(iter(records)) is score


def test_real_runs_on_tokens_of_an_unknown_tokenizer_are_ranked_and_reported(run):
    train_on_tokens()
    run("--experiment", "s/low", "--model.optimizer.lr", "1e-9")
    run("--experiment", "s/high", "--model.optimizer.lr", "1e-2")
    low, high = (json.loads(Path(f"runs/s/{name}/version_0/record.json").read_text()) for name in ("low", "high"))
    assert low["val_bpb"] is high["val_bpb"] is None
    assert low["val_loss"] > high["val_loss"]  # the tokens are below 256, which a network of 320 can learn

    assert best_of(read_runs(Path("runs"))).experiment == "high"
    write_ledger(Path("runs"))
    with open("runs/ledger.csv", newline="") as file:
        rows = {row["experiment"]: row for row in csv.DictReader(file)}
    assert {name: row["decision"] for name, row in rows.items()} == {"low": "keep", "high": "keep"}
    assert rows["high"]["val_loss"] == str(high["val_loss"])

    page = report(["runs/s"]).with_suffix(".md").read_text()
    assert "| Experiment | val_loss (nats per token) | Steps |" in page
    assert f"**high**: val_loss {high['val_loss']:.4f}, 4 steps" in page
    assert "val_bpb" not in page
