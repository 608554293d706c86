"""Compiles the kernels for Hopper in another process, while this one compiles the network that calls them.

CUTLASS compiles a kernel when it is first called, for 2 to 4 s, in one thread. The kernels that a network calls are
known seconds before: torch traces its backward pass, unless it finds the compiled graph in its cache. This process then
finds the kernels in the caches of their libraries, which lock what they compile, or waits for the other process.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from typing import Any

import torch

PATIENCE = 60.0  # seconds

_processes: dict[str, subprocess.Popen[bytes]] = {}


def start(kernels: str, device: torch.device, *arguments: Any) -> None:
    """Starts to compile kernels for a GPU, once, in the first process of a machine.

    Args:
        kernels: Name of a module of this package. Its function `compile_kernels` does it.
        device: Of the tensors.
        arguments: Of the function: strings and numbers.
    """
    what = json.dumps([kernels, *arguments])
    if device.type != "cuda" or what in _processes or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    _processes[what] = subprocess.Popen(
        [sys.executable, "-m", __name__, what],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # what fails there fails here too, and is reported here
    )


def wait() -> None:
    """Waits until everything that has been started is compiled."""
    for process in _processes.values():
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()  # this process compiles then


if __name__ == "__main__":
    name, *options = json.loads(sys.argv[1])
    import_module(f"bytelm.kernels.{name}").compile_kernels(*options)
