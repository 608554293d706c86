"""record.json: one schema, complete files, and messages for unreadable ones."""

import json
import re
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest

from bytelm.callbacks.run_record import git_state
from bytelm.errors import CheckpointError, Diverged, Interrupted, StorageError
from bytelm.runs import record
from bytelm.runs.record import Record, of_process


def test_written_values_are_read_back(tmp_path):
    values: Record = {"status": "completed", "reason": None, "val_bpb": 2.5, "total_steps": 4, "seed": 42}
    record.write(tmp_path / "new" / "version_0", values)
    assert record.read(tmp_path / "new" / "version_0") == values
    assert [path.name for path in (tmp_path / "new" / "version_0").iterdir()] == ["record.json"]
    text = (tmp_path / "new" / "version_0" / "record.json").read_text()
    assert text == json.dumps(values, indent=2) + "\n"


def test_a_run_writes_no_key_that_is_not_in_the_schema(trained):
    written = json.loads(Path("runs/tiny/version_0/record.json").read_text())
    assert set(written) <= get_type_hints(Record).keys()
    assert {"status", "val_bpb", "total_steps", "corpus", "versions", "checkpoint", "run"} <= set(written)
    record.check(written)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[1]", "it is not an object with keys"),
        ("{}", "it has no status"),
        ('{"status": 3}', "it has no status"),
        ('{"status": "completed", "val_bpb": "low"}', 'val_bpb: "low" is not of its type'),
        ('{"status": "completed", "total_steps": true}', "total_steps: true is not of its type"),
        ('{"status": "completed", "seed": 1' + "0" * 400 + "}", "seed: 1000"),
        ('{"status": "completed", "corpus": []}', "corpus: [] is not of its type"),
        ('{"status": "completed", "corpus": {"sha256": 3}}', "corpus: {"),
        ('{"status": "completed", "git": {"commit": "a", "dirty": "no"}}', "git: {"),
        ("[" * 100_000, "recursion"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_damaged_record_is_named_with_the_reason(text, reason, tmp_path):
    (tmp_path / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StorageError, match=re.escape(reason)) as error:
        record.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/record.json is damaged: ")
    assert "\n" not in str(error.value)


def test_a_record_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"record\.json cannot be read: No such file or directory"):
        record.read(tmp_path)


def test_later_versions_may_add_keys_and_leave_some_null(tmp_path):
    values = {"status": "completed", "new": {"a": [1]}, "val_bpb": None, "corpus": {"name": None, "pages": 3}}
    (tmp_path / "record.json").write_text(json.dumps(values))
    assert record.read(tmp_path) == values


def cause(error, behind):
    error.__cause__ = behind
    return error


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Interrupted(15, "after step 3"), "interrupted", "interrupted by SIGTERM after step 3"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (Diverged("the loss is NaN"), "diverged", "the loss is NaN"),
        (cause(RuntimeError("x"), Diverged("the loss is NaN")), "diverged", "the loss is NaN"),
        (CheckpointError("damaged"), "error", "damaged"),
        (RuntimeError(), "error", "RuntimeError"),
        (MemoryError(), "error", "out of memory; lower data.batch_size"),
    ],
)
def test_an_error_gives_the_status_and_the_reason(error, status, reason):
    failed = record.failed({"status": "completed", "total_steps": 3}, error)
    assert failed["status"] == status
    assert failed["reason"].startswith(reason)
    assert failed["total_steps"] == 3


def ended(**values):
    given = {
        **{"left": None, "earlier": None, "exit_status": 1, "message": None, "asked": None, "why": None},
        **{"started_at": 0.0, "seconds": 2.0},
    }
    return of_process(**{**given, **values})


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        ({}, "error", "ended with exit status 1"),
        ({"message": "the disk is full", "exit_status": 5}, "error", "the disk is full"),
        ({"exit_status": -9}, "error", "killed by SIGKILL"),
        ({"exit_status": -9, "asked": "interrupted"}, "interrupted", "killed by SIGKILL"),
        ({"exit_status": 143, "asked": "timeout", "why": "not done after 30 s"}, "timeout", "not done after 30 s"),
        ({"exit_status": 0, "asked": "timeout", "why": "not done after 30 s"}, "completed", None),
        ({"left": {"status": "diverged", "reason": "NaN"}, "message": "other"}, "diverged", "NaN"),
        ({"left": {"status": "error"}, "message": "other"}, "error", "other"),
        ({"left": {"status": "error", "reason": "a"}, "exit_status": 0}, "completed", None),
    ],
)
def test_status_of_a_process(given, status, reason):
    found = ended(**given)
    assert (found["status"], found["reason"]) == (status, reason)
    record.check(found)


def test_a_process_without_a_record_keeps_what_an_earlier_one_has_recorded():
    earlier: Record = {"status": "interrupted", "reason": "cut", "total_steps": 5, "total_time_secs": 100.0}
    found = ended(earlier=earlier, exit_status=-9)
    assert (found["status"], found["reason"]) == ("error", "killed by SIGKILL")
    assert (found["total_steps"], found["total_time_secs"], found["wall_time_secs"]) == (5, 2.0, 102.0)
    assert found["started_at"] == "1970-01-01T00:00:00.000+00:00"


def test_the_time_of_all_processes_is_added_up():
    earlier: Record = {"status": "interrupted", "total_time_secs": 100.0, "wall_time_secs": 150.0}
    found = ended(left={"status": "completed", "total_time_secs": 1.5}, earlier=earlier, exit_status=0)
    assert (found["total_time_secs"], found["wall_time_secs"]) == (1.5, 152.0)
    assert "wall_time_secs" not in ended(left={"status": "completed"}, exit_status=0)
    assert ended(left={"status": "completed"}, exit_status=0)["total_time_secs"] == 2.0


def test_files_that_are_not_the_repositorys_are_no_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    Path("code.py").touch()
    for command in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    Path("runs.txt").touch()
    assert git_state()["dirty"] is False
    Path("code.py").write_text("changed = True")
    assert git_state()["dirty"] is True
