"""The ledger: its rows have the values of the runs' folders."""

import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from run_folders import CORPUS, config, make_run

from bytelm.program import main
from bytelm.runs.ledger import best_of, read_runs, write_ledger
from bytelm.runs.score import VAL_LOSS
from bytelm.system.locks import lock

RUNS = Path("runs")
COLUMNS = [
    *("run", "study", "experiment", "status", "decision"),
    *("val_bpb", "train_loss", "total_steps", "training_time_secs", "total_time_secs"),
    *("wall_time_secs", "num_params_M", "tokens_per_sec", "peak_memory_mb", "seed", "started_at", "ended_at"),
    *("budget", "corpus", "reason"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows():
    """The ledger's rows by experiment."""
    with open(RUNS / "ledger.csv", newline="", encoding="utf-8") as file:
        return {row["experiment"]: row for row in csv.DictReader(file)}


def change(folder, **values):
    """Changes the record of a run."""
    file = folder / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def statuses():
    return {run.experiment: run.status for run in read_runs(RUNS)}


def decisions():
    return {run.experiment: run.decision for run in read_runs(RUNS)}


# Statuses of runs


def test_a_run_has_the_status_of_its_record():
    for at, status in enumerate(("completed", "error", "timeout", "diverged", "interrupted")):
        make_run(f"s/{status}", status=status, at=at)
    assert statuses() == {status: status for status in ("completed", "error", "timeout", "diverged", "interrupted")}


def test_a_run_that_left_no_record_was_interrupted():
    folder = make_run("s/killed", status=None, settings=config(seed=7))
    os.utime(folder / "config.yaml", (1_000_000_000, 1_000_000_000))
    (run,) = read_runs(RUNS)
    assert (run.status, run.record["reason"], run.record["seed"]) == ("interrupted", "it left no record", 7)
    assert run.record["started_at"] == "2001-09-09T01:46:40.000+00:00"
    assert run.record["started_at"] < run.record["ended_at"]
    assert run.score is None


def test_a_run_that_a_process_is_at_work_on_is_running(at_work):
    first, again = make_run("s/first", status=None), make_run("s/again", status="interrupted")
    processes = [at_work(folder / ".lock") for folder in (first, again)]
    assert statuses() == {"first": "running", "again": "running"}
    for run in read_runs(RUNS):
        assert (run.decision, run.record["reason"], run.record["ended_at"]) == (None, None, None)
    for process in processes:
        process.kill()
        process.wait()
    assert statuses() == {"first": "interrupted", "again": "interrupted"}


def test_a_run_with_a_record_alone_is_there():
    folder = make_run("s/a", 2.0)
    (folder / "config.yaml").unlink()
    (run,) = read_runs(RUNS)
    assert (run.status, run.score, run.budget, run.decision) == ("completed", 2.0, None, "keep")


def test_a_record_that_does_not_say_when_the_run_ended_tells_it_by_its_own_time():
    folder = make_run("s/a")
    record = json.loads((folder / "record.json").read_text())
    del record["ended_at"]
    (folder / "record.json").write_text(json.dumps(record))
    os.utime(folder / "record.json", (1_000_000_000, 1_000_000_000))
    (run,) = read_runs(RUNS)
    assert run.record["ended_at"] == "2001-09-09T01:46:40.000+00:00"


def test_an_experiment_may_be_called_like_a_run():
    make_run("s/version_2", 2.0)
    assert statuses() == {"version_2": "completed"}


def test_simultaneous_readers_do_not_take_each_other_for_a_run():
    run = make_run("s/a", 2.0)
    (run / ".lock").touch()
    with open(run / ".lock", "rb+") as asking:
        assert lock(asking.fileno(), shared=True)
        assert statuses() == {"a": "completed"}


def test_a_score_that_is_no_number_is_none():
    make_run("s/a", float("nan"))
    assert decisions() == {"a": "discard"}
    assert best_of(read_runs(RUNS)) is None


def test_folders_that_are_no_run_are_not_listed():
    folder = make_run("s/a")
    Path("runs/s/empty/version_0").mkdir(parents=True)
    for other in ("runs/s", "runs/s/a", "runs/s/report", "runs/s/a/version_0/checkpoints"):
        Path(other).mkdir(exist_ok=True)
        Path(other, "record.json").write_text("{}")
    assert [run.folder for run in read_runs(RUNS)] == [folder]


def test_runs_are_read_of_everything_a_study_an_experiment_or_one_run():
    make_run("one/a", at=1)
    make_run("one/a", at=2, version=1)
    make_run("one/b", at=3)
    make_run("nested/other/a", at=4)
    make_run("plain", at=5)
    for root, number in {"runs": 5, "runs/one": 3, "runs/one/a": 2, "runs/one/a/version_1": 1, "runs/none": 0}.items():
        assert len(read_runs(Path(root))) == number, root
    assert [(run.study, run.experiment) for run in read_runs(RUNS)] == [
        *[("one", "a"), ("one", "a"), ("one", "b"), ("nested/other", "a")],
        ("runs", "plain"),
    ]


# Keep or discard


def test_a_run_is_kept_that_was_the_best_when_it_ended():
    make_run("s/first", 3.0, at=1)
    make_run("s/best", 2.5, at=4)
    make_run("s/better", 2.7, at=2)  # ended before the best
    make_run("s/worse", 2.6, at=5)
    make_run("s/equal", 2.5, at=6)
    make_run("s/broken", status="error", at=0)
    assert decisions() == {
        "broken": "discard",
        "first": "keep",
        "better": "keep",
        "best": "keep",
        "worse": "discard",
        "equal": "discard",
    }
    assert [run.experiment for run in read_runs(RUNS)] == ["broken", "first", "better", "best", "worse", "equal"]


def test_only_runs_of_the_same_study_budget_and_corpus_compete():
    make_run("s/best", 2.0, at=1)
    make_run("t/other-study", 3.0, at=2)
    make_run("s/other-time", 3.0, at=3, settings=config(limit="60s"))
    make_run("s/other-limits", 3.0, at=4, settings=config(limit=["180s", "500 steps"]))
    make_run("s/other-corpus", 3.0, at=5, corpus={**CORPUS, "sha256": "b"})
    make_run("s/another-name-for-it", 3.0, at=6, corpus={**CORPUS, "name": "copy.txt"})
    assert {name: decision for name, decision in decisions().items() if decision == "discard"} == {
        "another-name-for-it": "discard"
    }


def test_a_score_of_a_run_that_was_not_completed_does_not_count():
    make_run("s/complete", 2.0, at=2)
    for at, status in ((1, "interrupted"), (3, "timeout")):
        change(make_run(f"s/{status}", status=status, at=at), val_bpb=1.0)
    assert decisions() == {"interrupted": "discard", "complete": "keep", "timeout": "discard"}
    assert best_of(read_runs(RUNS)).experiment == "complete"


def test_a_run_under_way_neither_competes_nor_is_the_best(at_work):
    folder = make_run("s/resumed", status="interrupted", at=1)
    change(folder, val_bpb=1.0)
    at_work(folder / ".lock")
    make_run("s/complete", 2.0, at=2)
    assert decisions() == {"complete": "keep", "resumed": None}
    assert best_of(read_runs(RUNS)).experiment == "complete"


def test_the_best_is_the_lowest_score():
    assert best_of([]) is None
    make_run("s/broken", status="error")
    assert best_of(read_runs(RUNS)) is None
    for name, val_bpb in (("a", 2.2), ("b", 2.1), ("c", 2.3)):
        make_run(f"s/{name}", val_bpb)
    assert best_of(read_runs(RUNS)).experiment == "b"


def test_runs_of_which_none_has_a_val_bpb_are_ranked_by_val_loss():
    for at, loss in enumerate((5.5, 5.0, 5.2)):
        make_run(f"s/{loss}", None, at=at, val_loss=loss)
    make_run("s/broken", status="interrupted", at=4, val_loss=4.0)
    assert decisions() == {"5.5": "keep", "5.0": "keep", "5.2": "discard", "broken": "discard"}
    best = best_of(read_runs(RUNS))
    assert (best.experiment, best.score, best.ranked_by) == ("5.0", 5.0, VAL_LOSS)


def test_among_runs_with_a_val_bpb_those_without_have_no_rank():
    make_run("s/without", None, at=1, val_loss=1.0)
    assert decisions() == {"without": "keep"}  # until there is another
    make_run("s/with", 2.0, at=2, val_loss=1.4)
    make_run("s/better", 1.5, at=3, val_loss=1.1)
    assert decisions() == {"without": "discard", "with": "keep", "better": "keep"}
    assert best_of(read_runs(RUNS)).experiment == "better"


def test_runs_that_do_not_compete_are_ranked_by_scores_of_their_own():
    make_run("s/bytes", 2.0, at=1, val_loss=1.4)
    make_run("s/tokens", None, at=2, val_loss=1.0, corpus={**CORPUS, "sha256": "b"})
    make_run("t/tokens-of-another-study", None, at=3, val_loss=1.0)
    assert set(decisions().values()) == {"keep"}
    assert best_of(read_runs(RUNS / "s")).experiment == "bytes"


# The file


def test_a_row_has_the_values_of_the_folder():
    limits = config(limit=["180s", "500 steps"])
    folder = make_run("s/a,lr=1e-3", 2.25, settings=limits, train_loss=1.5, peak_memory_mb=300.5)
    write_ledger(RUNS)
    (row,) = rows().values()
    assert list(row) == COLUMNS
    assert row == {
        "run": str(folder),
        "study": "s",
        "experiment": "a,lr=1e-3",
        "status": "completed",
        "decision": "keep",
        "val_bpb": "2.25",
        "train_loss": "1.5",
        "total_steps": "100",
        "training_time_secs": "180.0",
        "total_time_secs": "190.0",
        "wall_time_secs": "190.0",
        "num_params_M": "0.2232",
        "tokens_per_sec": "30000.0",
        "peak_memory_mb": "300.5",
        "seed": "42",
        "started_at": "2026-01-01T00:00:00.000+00:00",
        "ended_at": "2026-01-01T00:00:30.000+00:00",
        "budget": "180s, 500 steps",
        "corpus": "corpus.txt",
        "reason": "",
    }


def test_a_ledger_has_a_column_of_val_loss_where_a_run_has_nothing_else():
    make_run("s/with", 2.0, at=1, val_loss=1.4)
    write_ledger(RUNS)
    assert list(rows()["with"]) == COLUMNS
    make_run("s/without", None, at=2, val_loss=5.0)
    write_ledger(RUNS)
    place = COLUMNS.index("val_bpb") + 1
    assert list(rows()["with"]) == [*COLUMNS[:place], "val_loss", *COLUMNS[place:]]
    assert [(row["val_bpb"], row["val_loss"]) for row in rows().values()] == [("2.0", "1.4"), ("", "5.0")]


def test_any_reason_comes_through():
    reason = 'd_model: 3, "n_heads": 2\nnext line; größer'
    make_run("s/a", status="error", reason=reason)
    write_ledger(RUNS)
    assert rows()["a"]["reason"] == reason


def test_a_second_ledger_is_the_same():
    make_run("s/a", 2.0, at=1)
    make_run("s/b", status="diverged", at=2)
    make_run("s/killed", status=None)
    (make_run("s/record-alone", 2.5, at=3) / "config.yaml").unlink()
    listed = write_ledger(RUNS)
    before = (RUNS / "ledger.csv").read_bytes()
    (RUNS / "ledger.csv").unlink()
    assert write_ledger(RUNS) == listed
    assert (RUNS / "ledger.csv").read_bytes() == before
    assert len(rows()) == len(listed) == 4
    assert list(RUNS.rglob("*.part")) == []


def test_workers_may_write_it_at_the_same_moment():
    for at, name in enumerate("abc"):
        make_run(f"s/{name}", at=at)
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda _: write_ledger(RUNS), range(40)))
    assert all(runs == written[0] for runs in written)
    assert list(rows()) == ["a", "b", "c"]
    assert list(RUNS.rglob("*.part")) == []


def test_a_ledger_that_was_changed_by_hand_is_put_right():
    make_run("s/a", 2.0)
    write_ledger(RUNS)
    (RUNS / "ledger.csv").write_text("run,val_bpb\nruns/s/a/version_0,0.1\n")
    write_ledger(RUNS)
    assert rows()["a"]["val_bpb"] == "2.0"


def test_the_command_rewrites_it(capsys):
    make_run("s/a", 2.0, at=1)
    make_run("s/b", status="error", at=2)
    main(["ledger"])
    assert capsys.readouterr().out.splitlines() == ["runs: 2 (1 completed, 1 error)", "ledger: runs/ledger.csv"]
    assert list(rows()) == ["a", "b"]
    main(["ledger", "runs/s"])
    assert Path("runs/s/ledger.csv").read_text() == Path("runs/ledger.csv").read_text()


def test_the_command_says_where_there_are_no_runs(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["ledger", "nowhere"])
    assert ended.value.code == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bytelm: error: nowhere: no such folder")
