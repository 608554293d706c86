"""Reads from a device that runs behind the program, without making it wait for work.

A GPU is busy with a step while the program already submits the next one. If the program reads a value of the step that
it has just submitted, the GPU has nothing to do until the program has gone on: some milliseconds. Here the program asks
for the value (or for the time at which the step has ended) first, and reads it a step later.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def runs_behind(device: torch.device) -> bool:
    """Returns whether a device works while the program goes on. Only CUDA's events were tried."""
    return device.type == "cuda"


def mark(device: torch.device) -> Callable[[], None]:
    """Returns a function that waits until a device has done all the work submitted so far, and no later work."""
    if not runs_behind(device):
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


class HostCopy:
    """A tensor's values, on their way to the host.

    Args:
        tensor: The tensor; one of the CPU is not copied.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor.detach().to("cpu", non_blocking=runs_behind(tensor.device))
        self._wait = mark(tensor.device)

    def read(self) -> Tensor:
        """Returns the values, as soon as the device has computed them."""
        self._wait()
        return self._values
