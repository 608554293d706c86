"""How the threads of torch's operators on the CPU wait for each other."""

import os

# GNU's OpenMP, which torch's wheels contain, reads these when torch is imported.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPIN_COUNT = 1_000  # turns of the loop in which a thread waits before it sleeps; the library's default is 300,000


def wait_briefly() -> None:
    """Lets waiting threads sleep soon, unless the environment says how they wait. Call it before torch is imported.

    By default, a thread that waits for the others of an operator spins for milliseconds. If other processes use the
    cores, it spins while the thread that it waits for has no core to run on, and a step takes many times as long
    (docs/speedrun.md has measurements).
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
