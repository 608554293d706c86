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


class DeviceClock:
    """Times at which a device has ended its work, by a clock of the program.

    If the program has to wait for the end, the time is that after the wait. If the device has ended before the program
    asked, only the device knows when; its clock then says how long after another event, whose time is known.

    Args:
        device: The device. If it does not run behind the program, a time is that of the call.
        now: Returns the seconds of the program's clock.
    """

    def __init__(self, device: torch.device, now: Callable[[], float]) -> None:
        self._device = device
        self._now = now
        self._known: tuple[torch.cuda.Event, float] | None = None  # an event, and its time

    def now(self) -> float:
        """Returns the time; called while the device has no work."""
        event = self._event() if runs_behind(self._device) else None
        seconds = self._now()
        self._known = None if event is None else (event, seconds)
        return seconds

    def mark(self) -> Callable[[], float]:
        """Marks the end of the work submitted so far, after the first call of `now`.

        Returns:
            A function that returns the time of this end, as soon as it has come.
        """
        if not runs_behind(self._device):
            seconds = self._now()
            return lambda: seconds
        event = self._event()

        def read() -> float:
            if not event.query() or self._known is None:
                event.synchronize()
                self._known = event, self._now()
                return self._known[1]
            known, seconds = self._known
            known.synchronize()
            return seconds + known.elapsed_time(event) / 1000  # from milliseconds

        return read

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class HostCopy:
    """A tensor's values, on their way to the host.

    Args:
        tensor: The tensor; one of the CPU is not copied.
    """

    def __init__(self, tensor: Tensor) -> None:
        behind = runs_behind(tensor.device)
        self._values = tensor.detach().to("cpu", non_blocking=behind)
        self._event = torch.cuda.Event() if behind else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """Returns the values, as soon as the device has computed them."""
        if self._event is not None:
            self._event.synchronize()
        return self._values
