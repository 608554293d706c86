"""Real processes of `python -m bytelm` that start within milliseconds.

The program takes seconds to import torch and Lightning before it does any work. A starter is a process that has
imported them and waits; it forks the programs that tests request. A program is a child of its caller, with the
arguments, streams, files, environment, working folder, session and signals that `subprocess` would give it, and runs
the module as `__main__`. It receives a starter too: the runs of a study, the second rank of a run and the process that
checks a config are forks of that starter, and children of the program.

pytest-xdist's processes, which run the tests, are forks of a starter as well: that of the process which distributes
tests. They import torch and Lightning once, not once each.

Differences from `python -m bytelm`: the modules of `PRELOADED` are already imported, /proc shows the command line and
the environment of the first starter, and options of the interpreter have no effect. Tests of the start itself use
`subprocess`.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import inspect
import multiprocessing.util
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

PROJECT = Path(__file__).resolve().parents[1]
PRELOADED = ("bytelm.cli", "bytelm.experiments.runner", "bytelm.experiments.service.api")
OF_TESTS = ("pytest", "hypothesis.strategies", "fastapi.testclient")  # which takes seconds, and many tests need
MARK = "BYTELM_TEST_RUN"  # an environment variable with which `marked` finds processes
STARTER_NAME = "starter"  # name of a starter's process
SET_NAME, SET_CHILD_SUBREAPER = 15, 36  # of prctl
LARGEST_REQUEST = 2**17
GROUP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)  # a terminal or a test sends them to whole groups

# Code that multiprocessing's processes run, except for its resource tracker, which imports very little.
_MULTIPROCESSING = ("from multiprocessing.spawn import", "from multiprocessing.forkserver import")


class Program(subprocess.Popen):
    """A program that a starter forks.

    Takes the arguments of subprocess.Popen. `args` is `[sys.executable, "-m", "bytelm", …]` or
    `[sys.executable, "-c", code, …]`; `preexec_fn` and the options for a shell or another user are not supported.
    """

    def _execute_child(self, *args: Any) -> None:
        if sys.platform == "linux":
            _execute(self, *args)
        else:
            super()._execute_child(*args)


def run(args: Sequence[str], timeout: float = 120, **options: Any) -> subprocess.CompletedProcess:
    """Equivalent to subprocess.run(…, capture_output=True, text=True) for a Program."""
    with Program(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def marked(mark: str) -> Iterator[int]:
    """Returns the ids of the processes that have `MARK`, with this value, in their environment.

    Args:
        mark: Up to 15 characters; also the name of the programs.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            variables = (folder / "environ").read_bytes().split(b"\0")
            if f"{MARK}={mark}".encode() in variables or (any(variables) and _name(folder) == mark):
                yield int(folder.name)


def is_starter(pid: int) -> bool:
    """Returns whether a process is a starter, which is a child of a program but not started by it."""
    try:
        return _name(Path(f"/proc/{pid}")) == STARTER_NAME
    except OSError:
        return False


def _name(folder: Path) -> str:
    return (folder / "comm").read_text().rstrip("\n")


# The caller's side


class _Starter:
    """The caller's end of a starter's socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._owner = os.getpid()
        self._lock = threading.Lock()

    @property
    def is_mine(self) -> bool:
        """False in a fork of the starter's owner: the two processes would read each other's answers."""
        return self._owner == os.getpid()

    def start(self, request: dict[str, Any], files: Sequence[int]) -> int:
        """Starts a program; returns its id."""
        with self._lock:
            _prctl(SET_CHILD_SUBREAPER, 1)  # an orphan becomes the child of its nearest ancestor that requests orphans
            try:
                socket.send_fds(self._connection, [pickle.dumps(request)], files)
                answer = self._connection.recv(1000).decode()
            finally:
                _prctl(SET_CHILD_SUBREAPER, 0)
        return int(answer)


_starter: _Starter | None = None


def _get_starter(*others: str) -> _Starter:
    """Returns this process's starter; the first call creates it, and takes as long as a start of the program.

    Args:
        others: Further modules that the starter imports.
    """
    global _starter
    if _starter is None or not _starter.is_mine:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Without the project: an editable install adds it to sys.path, but not twice. Here it is the working folder.
        path = str(PROJECT / "tests")
        subprocess.Popen(
            [sys.executable, "-c", f"import programs; programs.main({theirs.fileno()}, *{others})"],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=PROJECT,
        )
        theirs.close()
        _starter = _Starter(ours)
    return _starter


_popen_execute = subprocess.Popen._execute_child
_popen_parameters = inspect.signature(_popen_execute)
_spawnv_passfds = multiprocessing.util.spawnv_passfds


def _execute(process: subprocess.Popen, *args: Any) -> None:
    """Replaces Popen._execute_child, which receives the ends of the pipes, or -1 for an inherited stream."""
    given = _popen_parameters.bind(process, *args).arguments
    rejected = ("executable", "preexec_fn", "shell", "gid", "gids", "uid")
    assert not any(given.get(name) for name in rejected), f"not for a Program: {', '.join(rejected)}"
    streams = (given["p2cread"], given["c2pwrite"], given["errwrite"])
    process.pid = _start(
        given["args"],
        [number if stream == -1 else stream for number, stream in enumerate(streams)],
        sorted(given["pass_fds"]),
        folder=given["cwd"],
        environment=given["env"],
        new_session=given["start_new_session"],
    )
    process._child_created = True
    process._close_pipe_fds(
        *(given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
    )


def _execute_in_program(process: subprocess.Popen, *args: Any) -> None:
    command = _popen_parameters.bind(process, *args).arguments["args"]
    is_bytelm = isinstance(command, list) and command[:2] == [sys.executable, "-m"] and "bytelm" in command[2]
    (_execute if is_bytelm else _popen_execute)(process, *args)


def _execute_worker(process: subprocess.Popen, *args: Any) -> None:
    command = _popen_parameters.bind(process, *args).arguments["args"]
    is_worker = isinstance(command, list) and command[:2] == [sys.executable, "-u"]
    (_execute if is_worker else _popen_execute)(process, *args)


def _spawn(path: Any, args: Sequence[Any], passed: Sequence[int]) -> int:
    """Replaces multiprocessing.util.spawnv_passfds."""
    args = [os.fsdecode(arg) for arg in args]
    if not any(arg.startswith(_MULTIPROCESSING) for arg in args):
        return _spawnv_passfds(path, args, passed)
    return _start(args, [0, 1, 2], sorted(passed))


def _start(
    args: Sequence[Any],
    streams: Sequence[int],
    passed: Sequence[int],
    folder: Any = None,
    environment: Any = None,
    new_session: bool = False,
) -> int:
    environment = os.environ if environment is None else environment
    request = {
        "args": [os.fspath(arg) for arg in args],
        "files": [0, 1, 2, *passed],  # their numbers in the program
        "folder": os.path.abspath(folder or os.getcwd()),
        "environment": {os.fspath(name): os.fspath(value) for name, value in environment.items()},
        "group": None if new_session else os.getpgrp(),
        "ignored": [signum for signum in GROUP_SIGNALS if signal.getsignal(signum) is signal.SIG_IGN],
    }
    return _get_starter().start(request, [*streams, *passed])


def serve_multiprocessing() -> None:
    """Makes multiprocessing's `spawn` and `forkserver` take this process's new processes from its starter."""
    if sys.platform == "linux":
        multiprocessing.util.spawnv_passfds = _spawn


@contextlib.contextmanager
def serve_workers(number: int | None) -> Iterator[None]:
    """Context in which the processes that pytest-xdist starts are forks of this process's starter.

    Args:
        number: How many it starts.
    """
    if number and sys.platform == "linux":
        _get_starter(*OF_TESTS)
        subprocess.Popen._execute_child = _execute_worker
    try:
        yield
    finally:
        subprocess.Popen._execute_child = _popen_execute


def become_worker() -> None:
    """Makes a fork that runs tests start programs as other processes do: without Program, by the interpreter."""
    subprocess.Popen._execute_child = _popen_execute


# The starter's side


def main(number: int, *others: str) -> None:
    """Imports the modules, and forks programs.

    Args:
        number: File descriptor of the starter's socket.
        others: Modules beside those of `PRELOADED`; those that are not installed are left out.
    """
    entries = os.environ["PYTHONPATH"].split(os.pathsep)
    first = sys.path.index(entries[0])
    around = sys.path[1:first], sys.path[first + len(entries) :]  # entries of packages before PYTHONPATH, and the rest
    gc.disable()
    for name in PRELOADED:
        import_module(name)
    for name in others:
        with contextlib.suppress(ImportError):
            import_module(name)
    gc.enable()
    gc.collect()
    gc.freeze()  # pages that no collection writes to stay shared
    assert threading.active_count() == 1, threading.enumerate()
    _run(_wait(socket.socket(fileno=number)), *around)


def _wait(connection: socket.socket) -> list[str]:
    """Forks programs while the caller is alive; in a program, returns its arguments."""
    while True:
        _prctl(SET_NAME, STARTER_NAME.encode())
        for signum in GROUP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        message, files, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 64)
        if not message:
            os._exit(0)
        if between := os.fork():
            os.waitpid(between, 0)
            for file in files:
                os.close(file)
            continue
        between = os.getpid()
        if os.fork():
            os._exit(0)  # makes the program an orphan
        while os.getppid() == between:
            time.sleep(1e-4)
        request = pickle.loads(message)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if request["group"] is None:
                os.setsid()
            elif request["group"] != os.getpgrp():
                os.setpgid(0, request["group"])
            if os.fork():
                _become_program(request, files, ours.detach(), connection.detach())
                theirs.detach()
                return request["args"]
        except BaseException as error:
            os.write(2, f"the start of a program failed: {error!r}\n".encode())
            os._exit(1)
        # The program's starter: it has none of the program's files, because these may be pipes and locks.
        ours.detach()
        connection.detach()
        null = os.open(os.devnull, os.O_RDWR)
        _place([null, null, null, theirs.detach()], [0, 1, 2, 3])
        connection = socket.socket(fileno=3)


def _become_program(request: dict[str, Any], files: list[int], starter: int, caller: int) -> None:
    global _starter
    numbers = request["files"]
    free = max(numbers) + 1
    _place([*files, starter, caller], [*numbers, free, free + 1], inherited=len(numbers))
    _starter = _Starter(socket.socket(fileno=free))
    for signum in GROUP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN if signum in request["ignored"] else signal.SIG_DFL)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _prctl(SET_NAME, os.environ.get(MARK, "python").encode())
    subprocess.Popen._execute_child = _execute_in_program
    serve_multiprocessing()
    with socket.socket(fileno=free + 1) as connection:
        connection.send(str(os.getpid()).encode())


def _place(files: list[int], numbers: list[int], inherited: int = 0) -> None:
    """Renumbers open files, and closes all others.

    Args:
        files: Their current numbers.
        numbers: Their new numbers.
        inherited: Number of files, from the first, that a started process also receives.
    """
    highest = max(*files, *numbers) + 1
    copies = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, highest) for file in files]
    for i, (copy, number) in enumerate(zip(copies, numbers, strict=True)):
        os.dup2(copy, number, inheritable=i < inherited or number < 3)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in numbers:
            with contextlib.suppress(OSError):  # the file of the listing itself
                os.close(int(name))


def _run(args: list[str], before: list[str], after: list[str]) -> NoReturn:
    """Processes arguments as the interpreter does, and its end, without unloading all modules."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 0
    try:
        _run_main(args, before, after)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def _run_main(args: list[str], before: list[str], after: list[str]) -> None:
    at = next(i for i, arg in enumerate(args) if arg in ("-m", "-c"))
    option, program, *rest = args[at:]
    given = os.environ.get("PYTHONPATH")
    own = os.getcwd() if option == "-m" else ""
    sys.path[:] = [own, *before, *(given.split(os.pathsep) if given else []), *after]
    sys.argv[:] = [option, *rest]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(sys.modules["__main__"]))


def _prctl(option: int, value: Any) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
