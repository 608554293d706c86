"""Programs that a starter forks equal those that `subprocess` starts."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import programs
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are subprocess's own")

TOLD = """
import __main__, json, os, signal, sys

signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
told = {
    "argv": sys.argv,
    "path": sys.path,
    "folder": os.getcwd(),
    "variables": dict(os.environ),
    "parent": os.getppid(),
    "leads": [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()],
    "ignored": [signum for signum in signals if signal.getsignal(signum) == signal.SIG_IGN],
    "main": __main__.__name__,
    "stdin": sys.stdin.read(),
    "passed": os.read(int(sys.argv[1]), 9).decode(),
    "files": sorted(map(int, os.listdir("/proc/self/fd"))),
}
print(json.dumps(told))
"""


@pytest.mark.parametrize("new_session", [False, True])
def test_a_program_is_started_as_by_subprocess(new_session, tmp_path):
    read, write = os.pipe()
    variables = {"PYTHONPATH": f"{tmp_path}:/nowhere", "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    options = {"cwd": tmp_path, "env": variables, "pass_fds": [read], "start_new_session": new_session}
    command = [sys.executable, "-c", TOLD, str(read), "two"]
    told = []
    for start in (subprocess.Popen, programs.Program):
        os.write(write, b"piped")
        with start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options) as process:
            out, _ = process.communicate("from a pipe", timeout=60)
        assert process.returncode == 0
        told.append(json.loads(out))
    os.close(read)
    os.close(write)
    expected, ours = told
    files = expected.pop("files")
    assert ours.pop("files") == [*files, files[-1] + 1]  # the socket of its own starter
    assert ours == expected
    assert ours["parent"] == os.getpid()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('a message')", 1),
        ("raise ValueError('what went wrong')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()", 0),
        ("import atexit, sys; atexit.register(print, 'at exit'); sys.stdout.write('no end of line')", 0),
    ],
)
def test_a_program_ends_as_one_of_subprocess_does(code, status):
    expected = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    ours = programs.run([sys.executable, "-c", code])
    assert ours.returncode == expected.returncode == status
    assert ours.stdout == expected.stdout
    assert ours.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


# A Python that is about to sleep when it gets SIGINT notices it only after the sleep, however it was started.
SLEEP = "import time\nwhile True: time.sleep(0.01)"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_a_program_at_any_moment(signum):
    for seconds in (0.0, 0.02, 0.2):
        process = programs.Program([sys.executable, "-c", SLEEP], stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signum)
        assert process.wait(10) == -signum


def test_the_module_is_run_as_the_main_one(folder):
    ended = programs.run([sys.executable, "-m", "bytelm", "fit", "--config", "tiny.yaml"], cwd=folder)
    assert (ended.returncode, "val_bpb: " in ended.stdout) == (0, True), ended.stderr
    assert Path("runs/tiny/version_0/record.json").exists()
    assert programs.run([sys.executable, "-m", "bytelm", "fit", "--config", "no.yaml"]).returncode == 2


INNER = """
import os, subprocess, sys
import multiprocessing as mp
inner = subprocess.Popen([sys.executable, "-m", "bytelm", "--version"], stdout=subprocess.PIPE, text=True)
print(os.getpid() == int(open(f"/proc/{inner.pid}/stat").read().rpartition(")")[2].split()[1]), inner.communicate()[0])
print(mp.get_context("spawn").Pool(1).map(abs, [-3]))
"""


def test_the_programs_of_a_program_are_its_children_and_known_by_its_mark():
    mark = uuid.uuid4().hex[:15]
    with programs.Program(
        [sys.executable, "-c", INNER + "sys.stdout.flush(); sys.stdin.read()"],
        env={**os.environ, programs.MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline().startswith("True bytelm ")
        assert [process.stdout.readline() for _ in range(2)] == ["\n", "[3]\n"]
        assert process.pid in programs.marked(mark)
        process.kill()
    end = time.monotonic() + 60
    while list(programs.marked(mark)):
        assert time.monotonic() < end
        time.sleep(0.01)
