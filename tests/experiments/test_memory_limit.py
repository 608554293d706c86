"""Limits on the memory of checks and runs: sizes with units, the memory of processes, and enforced limits."""

import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bytelm.experiments import memory_limit
from bytelm.experiments.memory_limit import MemoryWatch, can_be_watched, machine_memory, memory_of
from bytelm.units import Size

MIB = 2**20
linux = pytest.mark.skipif(not can_be_watched(), reason="needs /proc")


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("512MiB", 512 * MIB, "512MiB"),
        ("4GiB", 4096 * MIB, "4GiB"),
        ("1.5 GiB", 1536 * MIB, "1.5GiB"),
        ("2 GB", 2 * 10**9, "1.86GiB"),
        ("1 MB", 10**6, "0.95MiB"),
    ],
)
def test_a_size_has_a_unit(text, size, shown):
    assert Size.parse(text).bytes == size
    assert str(Size.parse(text)) == shown
    assert Size.parse(Size(size)) == Size(size)


@pytest.mark.parametrize("text", ["", "4", "4G", "-1GiB", "0GiB", "4 gib", "many", "4GiB ram", None, 4])
def test_invalid_sizes_are_rejected(text):
    with pytest.raises(ValueError, match="is not an amount of memory; accepted: 512MiB, 4GiB, 4GB"):
        Size.parse(text)


def test_a_machine_has_memory():
    assert 100 * MIB < machine_memory().bytes < 2**50


HOLDER = """
import mmap, sys
held = b"x" * int(sys.argv[1])
reserved = mmap.mmap(-1, 2**34)  # torch, too, reserves more than it uses
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts processes that hold this many bytes, each in its own session."""
    started = []

    def holder(size, **options):
        command = [sys.executable, "-S", "-c", HOLDER, str(size)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, **pipes, **{"start_new_session": True, **options}))
        assert started[-1].stdout.readline() == b"ready\n"
        return started[-1]

    yield holder
    for process in started:
        process.kill()
        process.communicate()


@linux
def test_memory_in_use_counts_and_reserved_memory_does_not(holder):
    small, large = holder(10), holder(100 * MIB)
    assert memory_of([small.pid]) < 30 * MIB
    # A few pages that the processes share are divided among all that share them at this moment.
    assert 99 * MIB <= memory_of([large.pid]) - memory_of([small.pid]) < 110 * MIB
    assert memory_of([small.pid, large.pid]) >= memory_of([large.pid]) + memory_of([small.pid]) - MIB
    large.kill()
    large.wait()
    assert memory_of([large.pid]) == 0


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", sys.argv[1], sys.argv[2]], stdin=subprocess.PIPE)
sys.stdin.read()
child.kill()
"""


@linux
def test_the_processes_that_a_run_has_started_count(until):
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", PARENT, HOLDER, str(100 * MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    with parent:
        watch = MemoryWatch(parent.pid, Size(80 * MIB))
        assert not MemoryWatch(os.getpid(), Size(2**50)).is_exceeded()
        until(watch.is_exceeded)
        assert memory_of([parent.pid]) < 80 * MIB
        parent.communicate()


@linux
def test_a_watch_looks_only_so_often(holder, monkeypatch):
    watch = MemoryWatch(holder(100 * MIB).pid, Size(50 * MIB))
    now = 1000.0
    monkeypatch.setattr(memory_limit, "time", SimpleNamespace(monotonic=lambda: now))
    assert watch.is_exceeded()
    now += 0.09
    assert not watch.is_exceeded()
    now += 0.02
    assert watch.is_exceeded()


@linux
def test_a_check_that_takes_too_much_memory_is_ended_and_the_next_one_is_made(folder):
    from bytelm.experiments.check import Checker

    tiny = ["--config", "tiny.yaml"]
    with Checker(Size.parse("1500MiB")) as checker:
        config, reason = checker.check([*tiny, "--model.gpt.d_model=8192", "--model.gpt.d_ff=65536"], 60)  # 5 GB
        assert config is None
        assert reason == "it takes more than 1.46GiB of memory to build, the limit here; lower the sizes in model.gpt"
        assert multiprocessing.active_children() == []
        assert checker.check(tiny, 60)[0] is not None
        assert checker.check(tiny, 0.0) == (None, "it takes more than 0 s to build; lower the sizes in model.gpt")
