"""Processes that end when the one that started them ends, and which of them prints."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bytelm.system.process import (
    LIFELINE,
    Lifeline,
    end_with_parent,
    end_worker_with_parent,
    is_rank_zero,
    process_age,
)

pytest.importorskip("fcntl", reason="pipes and signals of POSIX systems")

# Starts a process that has a lifeline, or a worker, prints its id, and then waits to be killed.
WITH_LIFELINE = """
import subprocess, sys, time
from bytelm.system.process import Lifeline
line = Lifeline()
child = "import time; from bytelm.system.process import end_with_parent; end_with_parent(); print('up', flush=True)"
process = subprocess.Popen([sys.executable, "-c", child + "; time.sleep(60)"], stdout=subprocess.PIPE,
                           pass_fds=[line.descriptor], env=line.environment, start_new_session=True)
line.started()
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(60)
"""
WITH_WORKER = """
import multiprocessing, sys, time
sys.path.insert(0, {tests!r})
from system.test_process import worker
if __name__ == "__main__":
    ready = multiprocessing.get_context("spawn").Event()
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(ready,), daemon=True)
    process.start()
    ready.wait()
    print(process.pid, flush=True)
    time.sleep(60)
"""


def worker(ready):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_worker_with_parent()
    ready.set()
    time.sleep(60)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("program", [WITH_LIFELINE, WITH_WORKER], ids=["lifeline", "worker"])
def test_a_process_ends_when_its_parent_is_killed(program, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(program.replace("{tests!r}", repr(str(Path(__file__).parents[1]))))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    assert is_alive(child)
    parent.kill()
    parent.wait()
    give_up = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_lifeline_is_not_handed_on(monkeypatch):
    line = Lifeline()
    monkeypatch.setenv(LIFELINE, str(os.dup(line.descriptor)))
    monkeypatch.setattr("bytelm.system.process._when_closed", lambda descriptor, end: os.close(descriptor))
    end_with_parent()
    assert LIFELINE not in os.environ
    end_with_parent()  # without one there is nothing to watch
    line.started()
    line.cut()


def test_a_worker_has_a_parent():
    assert multiprocessing.parent_process() is None
    with pytest.raises(AssertionError, match="multiprocessing"):
        end_worker_with_parent()


def test_only_rank_zero_speaks(monkeypatch):
    assert is_rank_zero()
    from lightning_utilities.core.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    assert not is_rank_zero()
    monkeypatch.delitem(sys.modules, "lightning_utilities.core.rank_zero")
    assert is_rank_zero()  # nothing has said that there are others


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX systems")
def test_the_age_of_a_program_leaves_out_the_shell_that_it_was_before():
    program = "import time; from bytelm.system.process import process_age; print(process_age(), time.time())"
    command = f"sleep 1; date +%s.%N; exec '{sys.executable}' -c '{program}'"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    began, age, now = map(float, ended.stdout.split())
    assert 0 < age < now - began + 0.5  # the shell is a second older


def test_the_age_of_a_program_grows_with_the_clock_and_has_the_start_of_python_in_it():
    began, before = time.monotonic(), process_age()
    time.sleep(0.2)
    assert 0.15 < process_age() - before < time.monotonic() - began + 0.05
    program = "import sys; sum(range(10**7)); from bytelm.system.process import process_age; print(process_age())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(ended.stdout) > 0.05  # the sum takes longer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX systems")
def test_the_age_of_a_fork_is_its_own():
    before = process_age()
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(process_age()).encode())
        os._exit(0)
    os.wait()
    with os.fdopen(read) as told:
        os.close(write)
        assert 0 <= float(told.read()) < min(before, 1)
