"""The queue's file: it stays readable after a writer is cut, and a damaged file is named."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from disks import small_disk

from bytelm.errors import StorageError

pytest.importorskip("optuna")

from bytelm.experiments.journal import Journal
from bytelm.experiments.study import JOURNAL, Study
from bytelm.experiments.task import Plan

PROJECT = Path(__file__).resolve().parents[2]
FILE = Path("runs/s", JOURNAL)


@pytest.fixture
def study(folder):
    """Opens the study with this many seeds, and queues the missing ones."""

    def study(seeds=0):
        made = Study("s", Plan(["tiny.yaml"], seeds=tuple(range(seeds)) or (None,)))
        for task in made.missing() if seeds else ():
            made.queue(task)
        return made

    return study


def seeds(study):
    """Returns the seeds of the queued runs."""
    taken = []
    while (claim := study.next()) is not None:
        study.close(claim.number, 2.0)
        taken.append(claim.task.seed)
    return taken


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_line_that_was_cut_is_removed_and_the_queue_continues(study, share):
    study(2)
    whole = FILE.read_bytes()
    study(3)
    line = FILE.read_bytes()[len(whole) :]
    FILE.write_bytes(whole + line[: int(share * len(line)) + 1])
    assert seeds(study(3)) == [0, 1, 2]  # the seed that was lost is queued again
    assert all(entry.startswith(b"{") and entry.endswith(b"}") for entry in FILE.read_bytes().splitlines())


def test_a_journal_with_only_an_incomplete_line_is_empty(study):
    FILE.parent.mkdir(parents=True)
    FILE.write_bytes(b'{"op_code":0,"worker' + b" " * 200_000)  # more than is searched at once
    assert seeds(study(1)) == [0]


def test_readers_leave_a_line_alone_that_is_still_being_written(study):
    reader = study(1)
    before = FILE.read_bytes()
    FILE.write_bytes(before + b'{"op_code":4,"wor')
    assert reader.queued == 1
    assert FILE.read_bytes() == before + b'{"op_code":4,"wor'


def test_a_full_disk_ends_in_one_error_and_leaves_whole_lines(study):
    with small_disk("runs") as disk:
        study(2)
        disk.fill(leave=8192)
        with pytest.raises(StorageError, match=r"runs/s/study.journal: the queue could not be written \(No space left"):
            study(100)
        assert FILE.read_bytes().endswith(b"}\n")
        kept = sum(entry["op_code"] == 4 for entry in Journal(FILE).read_logs(0))  # it can still be read
        assert 2 < kept < 100
        disk.empty()
        assert seeds(study(60)) == list(range(max(kept, 60)))


def test_a_read_only_disk_ends_in_one_error(study):
    with small_disk("runs") as disk:
        study(2)
        disk.read_only()
        with pytest.raises(
            StorageError, match=r"runs/s/study.journal: the queue cannot be opened \(Read-only file sys"
        ):
            study(3)


HOLDER = """
import sys, time
from bytelm.system.locks import lock
with open(sys.argv[1], "rb+") as file:
    assert lock(file.fileno())
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_worker_that_is_killed_while_it_writes_blocks_no_other(study):
    queue = study(1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, FILE],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        holder.send_signal(signal.SIGKILL)
    assert seeds(queue) == [0]


@pytest.mark.parametrize("damage", [b"{", b"3", b"[]", b"{}", b"\xff\xfe", b"\0" * 50, b"[" * 100_000], ids=str)
def test_a_damaged_line_is_named(study, damage):
    study(3)
    lines = FILE.read_bytes().splitlines()
    FILE.write_bytes(b"\n".join([*lines[:2], damage, *lines[2:]]) + b"\n")
    with pytest.raises(StorageError, match=r"^runs/s/study.journal: line 3 is damaged"):
        study(3)


def test_a_file_that_is_no_journal_is_named(folder):
    with pytest.raises(StorageError, match=r"^tiny.yaml: line 1 is damaged, or the file is not a study's queue"):
        Study("s", Plan(["tiny.yaml"]), storage="tiny.yaml")


def test_appended_text_is_read_line_by_line(tmp_path):
    one, other = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    one.append_logs([{"op_code": 0, "text": "größer\n\r"}])
    other.append_logs([{"op_code": 1}, {"op_code": 2}])
    assert [entry["op_code"] for entry in one.read_logs(0)] == [0, 1, 2]
    assert [entry["op_code"] for entry in other.read_logs(0)] == [0, 1, 2]
    one.append_logs([{"op_code": 3}])
    assert list(other.read_logs(3)) == [{"op_code": 3}]
    assert [entry["op_code"] for entry in other.read_logs(1)] == [1, 2, 3]  # also from an earlier position
