"""How the threads of torch's operators on the CPU wait for each other: spinning, or asleep while others want the cores.

An operator's threads wait for each other many times in a step. GNU's OpenMP, which torch's wheels contain, lets a
waiting thread spin for milliseconds. On idle cores this is fastest. Beside other busy processes, a thread spins while
the one that it waits for has no core to run on, and a step takes many times as long (measured in docs/speedrun.md).

The library reads its environment variables once, when torch is imported, and offers no call to change them. But it
spins briefly while a process has more of its threads than cores. So a thread here watches the load, and while others
use the cores, further threads hold teams of their own, which sleep.
"""

import os
import sys
import threading
from time import monotonic

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # environment variables of GNU's OpenMP
SPIN_COUNT = 1_000  # turns of the loop in which a thread waits before it sleeps; the library's default is 300,000
WATCH_SECONDS = 0.5
OTHERS_CORES = 0.2  # cores that others use beside this process's threads before waiting threads sleep
MOST_TEAMS = 8  # held at most; with many more cores than threads, a thread seldom waits for a core
OPERATOR_GRAIN = 65_536  # elements, enough for a thread of an elementwise operator
LOAD_FILE = "/proc/stat"
HELD = "held-team"  # name of a thread that holds a team
_watching_pid: int | None = None  # of the process that the thread watches for: a fork has no such thread


def set_waiting(*, watch: bool = True) -> None:
    """Lets waiting threads spin only while the cores are idle, unless the environment says how they wait.

    Where the load cannot be watched, waiting threads always sleep soon, if it is called before torch is imported.

    Args:
        watch: Whether this process starts the thread that watches; False in a process that will be forked.
    """
    global _watching_pid
    if any(name in os.environ for name in WAITING):
        return
    if not hasattr(os, "sched_getaffinity") or used_cores(os.sched_getaffinity(0)) is None:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    elif watch and _watching_pid != os.getpid():
        _watching_pid = os.getpid()
        threading.Thread(target=_watch, daemon=True, name="load-watch").start()


def used_cores(cores: set[int]) -> float | None:
    """Returns the seconds for which all processes have used some cores since the system started.

    Args:
        cores: Numbers of the cores.

    Returns:
        Seconds, added up over the cores, with those that a hypervisor gave to other machines; None if unknown.
    """
    try:
        with open(LOAD_FILE) as file:
            rows = [line.split() for line in file if line.startswith("cpu")]
    except OSError:
        return None
    # cpu0 user nice system idle iowait irq softirq steal …
    ticks = [sum(map(int, row[1:4] + row[6:9])) for row in rows if row[0][3:].isdigit() and int(row[0][3:]) in cores]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if any(ticks) else None


class Teams:
    """Teams of threads that make GNU's OpenMP count more threads than cores, while they are held."""

    def __init__(self) -> None:
        self._release: threading.Event | None = None

    @property
    def held(self) -> bool:
        return self._release is not None

    def hold(self, cores: int, threads: int) -> None:
        """Makes as many teams as it takes.

        Args:
            cores: Number of cores that this process may use.
            threads: Threads of an operator.
        """
        needed = (cores - threads) // (threads - 1) + 1  # a team's first thread is not counted: it is the program's
        self._release = threading.Event()
        arguments = (threads * OPERATOR_GRAIN, self._release)
        for _ in range(needed if needed <= MOST_TEAMS else 0):
            threading.Thread(target=_hold, args=arguments, daemon=True, name=HELD).start()

    def let_go(self) -> None:
        """Ends the teams. The library counts the threads of a team until the thread that made it has ended."""
        if self._release is not None:
            self._release.set()
            self._release = None


def _hold(elements: int, release: threading.Event) -> None:
    import torch

    torch.empty(elements).fill_(0)  # a thread's first operator makes its team
    release.wait()


def _watch() -> None:
    teams = Teams()
    cores = os.sched_getaffinity(0)
    pause = threading.Event()  # never set
    while True:
        before = _now(cores)
        pause.wait(WATCH_SECONDS)
        threads = _operator_threads()
        if threads == 1:
            continue
        seconds, others = (new - old for new, old in zip(_now(cores), before, strict=True))
        is_busy = others / seconds > len(cores) - threads + OTHERS_CORES
        if is_busy and not teams.held:
            teams.hold(len(cores), threads)
        elif not is_busy:
            teams.let_go()


def _now(cores: set[int]) -> tuple[float, float]:
    own = os.times()
    return monotonic(), (used_cores(cores) or 0.0) - own.user - own.system


def _operator_threads() -> int:
    get_num_threads = getattr(sys.modules.get("torch"), "get_num_threads", None)  # None: not imported, or not yet
    return get_num_threads() if get_num_threads else 1
