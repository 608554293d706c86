"""The setup of the tests, and a tiny experiment for tests of whole runs, whose steps take milliseconds.

Two cores have three processes that run tests (pytest-xdist), unless files are named on the command line. They are forks
of one that has imported torch and Lightning (programs.py). Each process has one thread, because the threads of two
processes would wait for each other. Temporary folders are in memory if there is room, because a run flushes a dozen
files to the disk. This file imports nothing from bytelm: the process that distributes tests does not need torch.
"""

import functools
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import programs
import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch
for library in ("HUB", "DATASETS"):
    os.environ[f"HF_{library}_OFFLINE"] = "1"  # tests download nothing, and do not wait for a network
os.environ.setdefault("PYTHONHASHSEED", str(random.randrange(2**32)))  # names of tests contain sets
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more would be processes, which take seconds to start

# No deadline: times of cases mean nothing beside other tests. scripts/long_tests.sh takes the profile "long".
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("long", max_examples=500, deadline=None)
hypothesis.settings.load_profile("quick")

HEADER = ("model   ", "data    ", "budget  ", "run     ")
MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 2 * 2**30  # bytes

CONFIG = """
model:
  gpt: {d_model: 16, n_heads: 2, n_layers: 1, d_ff: 32, max_seq_len: 32}
  optimizer: {class_path: AdamW, init_args: {lr: 3e-3}}
data:
  class_path: Bytes
  init_args: {path: corpus.txt, batch_size: 4, seq_len: 32, eval_bytes: 1024}
trainer: {accelerator: cpu, devices: 1, gradient_clip_val: 1.0, log_every_n_steps: 1}
time_budget: {limit: 4 steps}
samples: {max_new_tokens: 0}
"""


def pytest_configure(config):
    # `nohup` and `&` ignore these, and programs that tests start would inherit that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # TensorBoard reads a run's files in the order of their names, which end in a count of the process's files. Runs of
    # one process, a second or less apart, would be out of order when the count gets one more digit.
    from tensorboard.summary.writer import event_file_writer

    event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ENOUGH_MEMORY:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionstart(session):
    if hasattr(session.config, "workerinput"):
        programs.become_worker()
        return (yield)
    with programs.serve_workers(session.config.getoption("numprocesses", None)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    gc.disable()  # what imports of modules make is no garbage
    result = yield
    gc.freeze()  # collections during the tests need not look at it again
    gc.set_threshold(50_000, 10, 10)  # of a run's time, the default takes 5%
    gc.enable()
    return result


def pytest_unconfigure():
    gc.unfreeze()


def pytest_xdist_auto_num_workers(config):
    """Returns the number of processes for `-n auto`: no others if only files are named, otherwise more than cores.

    The additional ones use the time in which tests wait for other processes.
    """
    if all(Path(arg.partition("::")[0]).is_file() for arg in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + cores // 2


@pytest.fixture(autouse=True, scope="session")
def _installed_packages_are_searched_once():
    """Makes Lightning remember which packages add callbacks: each Trainer reads the entry points of all packages."""
    with pytest.MonkeyPatch.context() as patch:
        if registry := sys.modules.get("lightning.fabric.utilities.registry"):
            patch.setattr(registry, "entry_points", functools.cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True, scope="session")
def _spawned_processes_start_fast():
    programs.serve_multiprocessing()


def write_inputs(folder):
    """Writes corpus.txt and tiny.yaml."""
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler\n"]
    rng = random.Random(0)
    (folder / "corpus.txt").write_text(" ".join(rng.choice(words) for _ in range(4000)))
    (folder / "tiny.yaml").write_text(CONFIG)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with corpus.txt and tiny.yaml."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.argv", ["bytelm"])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]  # in another test, a user's file of the same name is another module


@pytest.fixture
def run(folder):
    """Runs a subcommand on tiny.yaml with further options, in this process; returns the finished CLI."""
    from bytelm.cli import build

    def run(*options, subcommand="fit", config="tiny.yaml"):
        return build([subcommand, "--config", config, *options])

    return run


@pytest.fixture(scope="session")
def train_once(tmp_path_factory):
    """Trains tiny.yaml with each of several lists of options, for many tests; returns the folder of the runs."""
    from bytelm.cli import build

    def train_once(*runs):
        folder = tmp_path_factory.mktemp("trained")
        write_inputs(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("sys.argv", ["bytelm"])
            for options in runs:
                build(["fit", "--config", "tiny.yaml", *options])
        return folder / "runs"

    return train_once


@pytest.fixture(scope="session")
def _trained(train_once):
    return train_once([])


@pytest.fixture
def trained(folder, _trained):
    """The files of `run()`: a copy of a run that is made once."""
    shutil.copytree(_trained, folder / "runs")


@pytest.fixture(scope="session")
def parser(tmp_path_factory):
    """The parser of the command line, made once for many configs."""
    from bytelm.cli import build

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("parser")
        write_inputs(folder)
        patch.chdir(folder)
        patch.setattr("sys.argv", ["bytelm"])
        return build(["--config", "tiny.yaml"], run=False).parser


@pytest.fixture
def rejected(folder, capsys):
    """Runs main() on options that must be rejected with an exit status; returns the line of the error message."""
    from bytelm.errors import ConfigError
    from bytelm.program import main

    def rejected(*options, status=ConfigError.exit_status):
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", "tiny.yaml", *options])
        assert ended.value.code == status
        captured = capsys.readouterr()
        assert captured.out == ""
        # A run that is rejected in its first hooks, or at its end, has printed the lines of callbacks/header.py.
        (line,) = [line for line in captured.err.splitlines() if not line.startswith(HEADER)]
        return line

    return rejected


@pytest.fixture
def at_work():
    """Locks a file as an active process does; returns the process."""
    from bytelm.system.locks import lock

    processes = []

    def at_work(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            assert lock(file.fileno())
            processes.append(subprocess.Popen(["sleep", "600"], stdout=file))
        return processes[-1]

    yield at_work
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def until():
    """Waits until a condition is true, and returns its value."""

    def until(condition, seconds=60.0):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"not so after {seconds:g} s"
            time.sleep(0.01)
        return found

    return until


@pytest.fixture
def alive():
    """Returns whether a process is alive; a process that only waits to be reaped is not."""

    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return alive
