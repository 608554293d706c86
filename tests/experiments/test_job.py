"""A run in its own process: it is always ended, and its outcome is always recorded.

The runs are processes, but small scripts, which start at once, replace `python -m bytelm fit`.
"""

import json
import multiprocessing
import os
import signal
import sys
import textwrap
import time
from ast import literal_eval
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from disks import small_disk

from bytelm.errors import StorageError
from bytelm.experiments import job as job_module
from bytelm.experiments.job import Job, Outcome, RunIsTaken, tail
from bytelm.runs.ledger import read_runs
from bytelm.runs.record import wall_time
from bytelm.runs.score import VAL_BPB
from bytelm.units import Size

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = Path("runs/s/a")
RECORD = FOLDER / "version_0" / "record.json"

# Functions for all scripts.
PRELUDE = f"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

sys.path.insert(0, {str(PROJECT)!r})


def record(version=0, **values):
    file = Path({str(FOLDER)!r}, f"version_{{version}}", "record.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values))


def on_sigterm(function):
    signal.signal(signal.SIGTERM, lambda signum, frame: function())


def sleeper():
    "Starts a process that does nothing; it ignores what this one ignores."
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]).pid


def tell(name, *values):
    "Writes a file, whole or not at all."
    Path(name + ".part").write_text(" ".join(map(str, values)))
    os.replace(name + ".part", name)


"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run that is a script."""
    monkeypatch.chdir(tmp_path)
    started = []

    def start(script, *options, **settings):
        Path("script.py").write_text(PRELUDE + textwrap.dedent(script))
        started.append(Job(options, "s/a", **settings))
        return started[-1]

    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{tmp_path}/script.py" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(job_module, "sys", SimpleNamespace(executable=str(program)))
    yield start
    for job in started:
        job.close()
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()


@pytest.fixture
def run(start):
    """Runs a script to its end; returns the outcome."""

    def run(script, *options, **settings):
        with start(script, *options, **settings) as job:
            return job.wait(0.02)

    return run


@pytest.fixture
def told(until):
    """Waits for a script's message; returns it."""

    def told(name):
        until(Path(name).exists)
        return Path(name).read_text().split()

    return told


def on_record(file=RECORD):
    return json.loads(file.read_text())


def earlier(**record):
    """Creates the files of an earlier attempt at the run."""
    RECORD.parent.mkdir(parents=True)
    RECORD.write_text(json.dumps(record))


# Endings


def test_a_run_is_given_its_options_and_continues_where_it_was_cut(run):
    run("print(sys.argv[1:])", "--config", "tiny.yaml", "--seed_everything", "7")
    assert literal_eval(Path(FOLDER, "log.txt").read_text()) == [
        *("-m", "bytelm", "fit"),
        *("--config", "tiny.yaml", "--seed_everything", "7"),
        *("--experiment", "s/a", "--ckpt_path", "last"),
    ]


def test_a_run_that_ends_well_is_completed(run):
    outcome = run("record(status='completed', reason=None, val_bpb=2.5, total_time_secs=1.0)")
    assert (outcome.status, outcome.reason, VAL_BPB.of(outcome.record)) == ("completed", None, 2.5)
    assert outcome.folder == RECORD.parent
    assert outcome.record == on_record()
    assert on_record() == {
        "status": "completed",
        "reason": None,
        "val_bpb": 2.5,
        "total_time_secs": 1.0,
        "run": str(RECORD.parent),
    }


@pytest.mark.parametrize("status", [2, 3, 4])
def test_a_rejected_run_leaves_only_the_reason(run, status):
    outcome = run(f"""
        print("bytelm: note: no last.ckpt yet", file=sys.stderr)
        print("bytelm: error: of another process", file=sys.stderr)
        print("bytelm: error: n_heads: 3 cannot be used", file=sys.stderr)
        sys.exit({status})
    """)
    assert outcome == Outcome("rejected", "n_heads: 3 cannot be used", exit_status=status)
    assert not FOLDER.exists()


def test_the_rejection_of_a_run_that_had_begun_is_its_error(run):
    outcome = run("""
        Path("runs/s/a/version_0").mkdir()
        print("bytelm: error: corpus.txt has changed", file=sys.stderr)
        sys.exit(3)
    """)
    assert (outcome.status, outcome.reason) == ("error", "corpus.txt has changed")
    assert (on_record()["status"], on_record()["reason"]) == ("error", "corpus.txt has changed")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit(1)", "ended with exit status 1"),
        ("raise ValueError('boom')", "ended with exit status 1"),
        ("print('bytelm: error: the disk is full'); sys.exit(5)", "the disk is full"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGUSR1)", "killed by SIGUSR1"),
    ],
)
def test_a_run_that_fails_without_a_record_is_given_one(run, script, reason):
    before = time.time()
    outcome = run(script)
    assert (outcome.status, outcome.reason, VAL_BPB.of(outcome.record)) == ("error", reason, None)
    assert outcome.folder == RECORD.parent
    assert outcome.record == on_record()
    began, ended = (datetime.fromisoformat(on_record()[key]).timestamp() for key in ("started_at", "ended_at"))
    assert before - 0.01 < began <= ended < time.time() + 0.01
    assert 0 < on_record()["total_time_secs"] < 20


@pytest.mark.parametrize(
    ("status", "reason", "exit_status"),
    [
        ("error", "out of memory; lower data.batch_size", 6),
        ("diverged", "the training loss of step 9 is NaN or infinite", 1),
        ("interrupted", "interrupted by SIGTERM after step 5", 143),
    ],
)
def test_a_run_that_has_left_a_record_is_taken_at_its_word(run, status, reason, exit_status):
    outcome = run(f"""
        record(status={status!r}, reason={reason!r}, val_bpb=1.0, total_time_secs=1.0)
        print("bytelm: error: something else")
        sys.exit({exit_status})
    """)
    assert (outcome.status, outcome.reason, VAL_BPB.of(outcome.record)) == (status, reason, None)
    assert (on_record()["status"], on_record()["reason"]) == (status, reason)


def test_child_processes_end_with_the_run(run, told, until, alive):
    assert run("tell('pid', sleeper()); record(status='completed')").status == "completed"
    (pid,) = told("pid")
    until(lambda: not alive(pid))


# Limits


def test_a_run_that_takes_too_long_is_asked_to_end(start, told):
    job = start("""
        def end():
            record(status="interrupted", reason="interrupted by SIGTERM after step 5", total_steps=5)
            sys.exit(143)

        on_sigterm(end)
        tell("ready")
        time.sleep(60)
    """)
    told("ready")
    assert job.poll() is None
    job.timeout = 0.1
    outcome = job.wait(0.02)
    assert (outcome.status, outcome.reason) == ("timeout", "not done after 0.1 s")
    assert (on_record()["status"], on_record()["total_steps"]) == ("timeout", 5)
    assert job.elapsed < 20


def test_a_run_that_does_not_end_when_asked_is_killed_with_all_its_processes(start, told, until, alive, monkeypatch):
    monkeypatch.setattr(Job, "ending_seconds", 0.5)
    job = start("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell("pids", os.getpid(), sleeper())
        time.sleep(60)
    """)
    pids = told("pids")
    job.timeout = 0.1
    asked = time.monotonic()
    outcome = job.wait(0.02)
    assert 0.5 <= time.monotonic() - asked < 20  # it was given time to end
    assert (outcome.status, outcome.reason) == ("timeout", "not done after 0.1 s")
    assert on_record()["status"] == "timeout"
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_run_that_ends_well_after_all_is_completed(start, told):
    job = start("""
        def end():
            record(status="completed", val_bpb=2.5)
            sys.exit(0)

        on_sigterm(end)
        tell("ready")
        time.sleep(60)
    """)
    told("ready")
    job.end()
    outcome = job.wait(0.02)
    assert (outcome.status, outcome.reason, VAL_BPB.of(outcome.record)) == ("completed", None, 2.5)


def test_a_run_that_is_ended_is_interrupted_whatever_else_comes(start, told):
    job = start("on_sigterm(lambda: sys.exit(143)); tell('ready'); time.sleep(60)")
    told("ready")
    job.end()
    job.end("timeout")
    job.timeout = 0.0
    assert job.wait(0.02).status == "interrupted"
    assert on_record()["status"] == "interrupted"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_run_that_takes_too_much_memory_is_killed_with_the_reason(run, told, until, alive):
    outcome = run(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell("pids", os.getpid(), sleeper())
        held = []
        while True:
            held.append(b"x" * 1_000_000)
            time.sleep(0.001)
        """,
        memory_limit=Size.parse("200MiB"),
    )
    reason = "it used more than 200MiB of memory, the limit of a run here"
    assert (outcome.status, outcome.reason) == ("error", reason)
    assert (on_record()["status"], on_record()["reason"]) == ("error", reason)
    until(lambda: not any(map(alive, told("pids"))))


# A resumed run


def test_a_record_of_an_earlier_attempt_is_not_taken_for_this_ones(run):
    earlier(status="interrupted", reason="interrupted by SIGTERM after step 5", val_bpb=2.0, total_time_secs=100.0)
    outcome = run("os.kill(os.getpid(), signal.SIGKILL)")
    assert (outcome.status, outcome.reason, VAL_BPB.of(outcome.record)) == ("error", "killed by SIGKILL", None)
    assert (on_record()["status"], on_record()["reason"]) == ("error", "killed by SIGKILL")


def test_output_of_an_earlier_attempt_is_not_used(run):
    run("print('bytelm: error: the disk is full'); sys.exit(5)")
    assert run("sys.exit(1)").reason == "ended with exit status 1"
    assert "the disk is full" in Path(FOLDER, "log.txt").read_text()


def test_the_rejection_of_a_resumed_run_is_its_error(run):
    earlier(status="interrupted", reason="interrupted by SIGTERM after step 5", total_steps=5)
    outcome = run("print('bytelm: error: corpus.txt has changed'); sys.exit(3)")
    assert (outcome.status, outcome.reason) == ("error", "corpus.txt has changed")
    assert (on_record()["status"], on_record()["total_steps"]) == ("error", 5)


def test_the_time_of_a_run_is_that_of_all_attempts(run):
    interrupted = "record(status='interrupted', reason='cut', total_time_secs=100.0); sys.exit(143)"
    assert wall_time(run(interrupted).record) == 100.0
    second = run(interrupted)
    assert 100.0 < wall_time(second.record) < 120.0
    third = run("record(status='completed', total_time_secs=100.0)")
    assert wall_time(second.record) < wall_time(third.record) < 140.0
    assert wall_time(on_record()) == wall_time(third.record)
    assert on_record()["total_time_secs"] == 100.0


def test_an_attempt_in_its_own_folder_is_counted_once(run):
    # It was cut before its first checkpoint: the next attempt started a new run.
    earlier(status="interrupted", reason="interrupted by SIGTERM", total_time_secs=100.0)
    outcome = run("record(1, status='completed', val_bpb=2.0, total_time_secs=1.0)")
    assert outcome.folder == FOLDER / "version_1"
    assert sum(wall_time(found.record) for found in read_runs(FOLDER)) < 120.0


def test_an_attempt_in_its_own_folder_that_leaves_no_record_is_given_one(run):
    earlier(status="interrupted", reason="interrupted by SIGTERM", total_time_secs=100.0)
    outcome = run("""
        Path("runs/s/a/version_1").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert (outcome.status, outcome.reason) == ("error", "killed by SIGKILL")
    assert outcome.folder == FOLDER / "version_1"
    assert on_record(outcome.folder / "record.json") == outcome.record
    assert on_record()["status"] == "interrupted"  # the earlier record is unchanged


def test_the_time_of_a_run_without_a_record_is_none():
    assert wall_time({}) == 0.0
    assert wall_time({"total_time_secs": None}) == 0.0
    assert wall_time({"total_time_secs": 2.0}) == 2.0
    assert wall_time({"total_time_secs": 2.0, "wall_time_secs": 5.0}) == 5.0


# Disks


def test_a_run_whose_folder_cannot_be_made_ends_in_one_error(start):
    Path("runs").touch()
    with pytest.raises(StorageError, match=r"^runs/s/a: the run cannot be started \(Not a directory\)"):
        start("")


def test_a_record_that_cannot_be_written_ends_in_one_error_and_the_earlier_one_stays(run):
    with small_disk("runs") as disk:
        earlier(status="interrupted", reason="cut", total_time_secs=100.0)
        disk.fill()
        with pytest.raises(StorageError, match=r"^runs/s/a: its record cannot be written \(No space left on device"):
            run("sys.exit(1)")
        assert on_record()["status"] == "interrupted"


def test_a_run_that_ended_by_a_full_disk_tells_so_itself(run):
    with small_disk("runs") as disk:
        disk.fill()
        # Its log may be written no longer.
        outcome = run("sys.exit(5)")
        assert (outcome.status, outcome.exit_status) == ("error", 5)


@pytest.mark.parametrize("damage", ["", "[]", '{"status": 3}', '{"total_time_secs": "x", "status": "error"}'])
def test_a_damaged_record_of_an_earlier_attempt_is_replaced(run, damage):
    RECORD.parent.mkdir(parents=True)
    RECORD.write_text(damage)
    assert run("sys.exit(1)").status == "error"
    assert (on_record()["status"], on_record()["reason"]) == ("error", "ended with exit status 1")


# One process at a time


def test_a_run_is_not_begun_by_another_before_this_is_done_with_it(start, told):
    with start("tell('ready'); time.sleep(0.2); record(status='completed')") as job:
        told("ready")
        for _ in ("under way", "ended"):
            with pytest.raises(RunIsTaken, match="runs/s/a: another process works on this run"):
                Job([], "s/a")
            assert job.wait(0.02).status == "completed"
    with start("record(status='completed', val_bpb=2.0)") as job:
        assert VAL_BPB.of(job.wait(0.02).record) == 2.0


def test_a_run_that_is_rejected_for_that_leaves_no_open_files(start, told):
    with start("tell('ready'); time.sleep(60)"):
        told("ready")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(StorageError):
            Job([], "s/a")
        assert len(os.listdir("/proc/self/fd")) <= before


HELD = """
    from bytelm.system.process import end_with_parent

    def end():
        tell("ended", "by SIGTERM")
        sys.exit(143)

    on_sigterm(end)
    end_with_parent()
    tell("pid", os.getpid())
    time.sleep(60)
"""


def test_a_run_that_is_let_go_of_ends(start, told, until, alive):
    with start(HELD):
        (pid,) = told("pid")
        assert alive(pid)
    assert told("ended") == ["by", "SIGTERM"]


def test_a_run_ends_when_the_process_that_started_it_is_killed(start, told, until, alive):
    def begin():
        start(HELD)
        time.sleep(60)

    parent = multiprocessing.get_context("fork").Process(target=begin)
    parent.start()
    (pid,) = told("pid")
    parent.kill()
    parent.join()
    assert told("ended") == ["by", "SIGTERM"]
    until(lambda: not alive(pid))
    assert start("record(status='completed')").wait(0.02).status == "completed"  # no process has it now


# The log


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"one\ntwo\n", "one\ntwo\n"),
        (b"step 1\rstep 2\rstep 3\ndone\n", "step 3\ndone\n"),
        (b"\rstep 1\rstep 2", "step 2"),
        (b"one\r\ntwo\r\n", "one\ntwo\n"),
        (b"\rstep 1\r\ndone", "step 1\ndone"),
        ("größer\n".encode(), "größer\n"),
        (b"\xff no UTF-8\n", "\ufffd no UTF-8\n"),
        (b"", ""),
    ],
)
def test_a_log_is_shown_as_on_a_terminal(written, shown, tmp_path):
    (tmp_path / "log.txt").write_bytes(written)
    assert tail(tmp_path / "log.txt") == shown


def test_of_a_long_log_the_end_is_shown(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("".join(f"line {n}\n" for n in range(10_000)))
    assert tail(log, size=30) == log.read_text()[-30:]
    assert tail(log, start=log.stat().st_size - 10) == "line 9999\n"
    assert tail(tmp_path / "nowhere") == ""


def test_a_job_shows_the_output_of_its_process(run, start):
    run("print('earlier'); sys.exit(1)")
    with start("print('step 1\\rstep 2\\rstep 3'); sys.exit(1)") as job:
        job.wait(0.02)
        assert job.tail() == "step 3\n"
    assert Path(FOLDER, "log.txt").read_bytes() == b"earlier\nstep 1\rstep 2\rstep 3\n"
