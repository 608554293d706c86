"""Threads wait as the load and bytelm say, unless the environment says how."""

import os
import subprocess
import sys
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch  # noqa: F401 (loads the library)

from bytelm import fit, load
from bytelm.errors import RunError
from bytelm.system import threads
from bytelm.system.threads import SPIN_COUNT, WAITING, set_waiting, used_cores

LIBRARY = Path(find_spec("torch").submodule_search_locations[0]) / "lib" / "libgomp.so.1"
ROWS = ["cpu 90 0 0 90 0 0 0 0 0 0", "cpu0 10 20 30 400 5 6 7 8 9 9", "cpu1 1 0 0 400 0 0 0 0 0 0", "intr 1"]

# Prints the CPU time of an operator's waiting threads, without and with held teams. Then the load file shows cores that
# others use, and idle ones; prints what the thread that watches does.
PROGRAM = """
import os, sys, threading, time

cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)  # before the library counts them

import torch
from bytelm.system import threads

torch.set_num_threads(2)
values = torch.zeros(1 << 18)

def process_time():
    begin = time.process_time()
    for _ in range(30):
        values.fill_(1)
        time.sleep(0.01)  # time for the other thread of the operator to spin
    return time.process_time() - begin

process_time()
spins = process_time()
teams = threads.Teams()
teams.hold(cores=2, threads=2)
time.sleep(0.2)
print(spins, process_time())
teams.let_go()

path = sys.argv[1]
threads.LOAD_FILE, threads.WATCH_SECONDS = path, 0.02
ticks = 1

def write():
    with open(path + ".new", "w") as file:
        for core in cores:
            file.write(f"cpu{core} {ticks} 0 0 0 0 0 0 0\\n")
    os.replace(path + ".new", path)

def held():
    return any(thread.name == threads.HELD for thread in threading.enumerate())

while held():
    time.sleep(0.005)
write()
threads.set_waiting()
threads.set_waiting()
watches = [thread.name for thread in threading.enumerate()].count("load-watch")
while not held():
    ticks += 1000
    write()
    time.sleep(0.005)
print("held by", watches)
while held():
    time.sleep(0.005)
print("let go", os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The lines that the program prints."""
    if not LIBRARY.exists() or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this torch brings no GNU OpenMP, or its threads share one core")
    ended = run(PROGRAM, str(tmp_path_factory.mktemp("load") / "stat"))
    return ended.stdout.splitlines() or pytest.fail(ended.stderr)


@pytest.fixture
def load_file(tmp_path, monkeypatch):
    path = tmp_path / "stat"
    monkeypatch.setattr(threads, "LOAD_FILE", str(path))
    return path


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**inherited, **environment}, timeout=120)


@pytest.mark.parametrize("function", [fit, partial(load, "absent")], ids=["fit", "load"])
def test_functions_watch_the_load_as_commands_do(function, monkeypatch):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_watching_pid", None)
    if not hasattr(os, "sched_getaffinity") or used_cores(os.sched_getaffinity(0)) is None:
        pytest.skip("this system does not show its load")
    before = {*threading.enumerate()}
    with pytest.raises(RunError):
        function()
    assert [thread.name for thread in {*threading.enumerate()} - before] == ["load-watch"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, str(SPIN_COUNT)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=["neither", "a count", "a policy"],
)
def test_the_users_environment_wins(given, expected, monkeypatch, load_file):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    set_waiting()  # there is no file that shows the load
    set_to = os.environ.get("GOMP_SPINCOUNT")
    if "GOMP_SPINCOUNT" not in given:
        os.environ.pop("GOMP_SPINCOUNT", None)
    assert set_to == expected


def test_the_load_is_that_of_the_cores_that_the_process_may_use(load_file):
    load_file.write_text("\n".join(ROWS))
    second = os.sysconf("SC_CLK_TCK")
    assert used_cores({0}) == (10 + 20 + 30 + 6 + 7 + 8) / second  # neither idle nor waiting for disks
    assert used_cores({0, 1}) == 82 / second


def test_a_file_of_zeros_shows_no_load(load_file):
    load_file.write_text("cpu0 0 0 0 0 0 0 0 0\n")
    assert used_cores({0}) is None


def test_waiting_threads_sleep_while_others_use_the_cores(watched):
    assert watched[1:] == ["held by 1", "let go None"]


def test_held_teams_make_torchs_library_spin_briefly(watched):
    """The library does not document it: a version that does not is found here."""
    spins, sleeps = map(float, watched[0].split())
    assert sleeps < spins / 2


@pytest.mark.skipif(not LIBRARY.exists(), reason="this torch brings no GNU OpenMP")
def test_torchs_library_reads_the_variable_that_is_set_before_it_is_loaded():
    program = f"import ctypes, os; os.environ['GOMP_SPINCOUNT'] = '7'; ctypes.CDLL({str(LIBRARY)!r})"
    assert "GOMP_SPINCOUNT = '7'" in run(program, OMP_DISPLAY_ENV="verbose").stderr
    assert str(LIBRARY) in Path("/proc/self/maps").read_text(), "torch has loaded another one"
