"""A device that runs behind the program: the times at which it has ended work, with a device of the test's making."""

import pytest
import torch

from bytelm.system import behind
from bytelm.system.behind import DeviceClock, HostCopy


class Device:
    """Ends the work that is submitted at the times that the test sets; its events replace CUDA's."""

    def __init__(self):
        self.now = 100.0
        self.busy_until = 100.0

    def submit(self, seconds):
        self.busy_until = max(self.busy_until, self.now) + seconds

    def event(self, enable_timing=False):
        return Event(self)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self, stream):
        self.end = max(self.device.now, self.device.busy_until)

    def query(self):
        return self.device.now >= self.end

    def synchronize(self):
        self.device.now = max(self.device.now, self.end)

    def elapsed_time(self, other):
        assert self.query(), "CUDA rejects this"
        assert other.query(), "CUDA rejects this"
        return 1000 * (other.end - self.end)


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return device


def test_the_end_of_work_that_the_program_waits_for_is_the_time_after_the_wait(device):
    clock = DeviceClock(torch.device("cuda"), lambda: device.now)
    assert clock.now() == 100
    device.submit(3)
    read = clock.mark()
    device.submit(5)  # the next step: it is not waited for
    device.now += 1
    assert read() == device.now == 103


def test_the_end_of_work_that_ended_before_the_program_asked_is_the_devices_time(device):
    clock = DeviceClock(torch.device("cuda"), lambda: device.now)
    clock.now()
    for _ in range(3):  # the program needs 4 seconds for each step, the device 1
        device.submit(1)
        began, read = device.now, clock.mark()
        device.now += 4
        assert read() == began + 1
    device.submit(6)  # now it is waited for: the device's clock has no say
    assert clock.mark()() == device.now == 118


def test_values_are_read_when_the_device_has_computed_them(device, monkeypatch):
    monkeypatch.setattr(behind, "runs_behind", lambda device: True)
    device.submit(3)
    copy = HostCopy(torch.tensor([1.0, 2.0]))
    device.submit(5)  # the next step: it is not waited for
    assert device.now == 100
    assert copy.read().tolist() == [1.0, 2.0]
    assert device.now == 103


def test_a_tensor_of_the_cpu_is_not_copied():
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert HostCopy(tensor).read().data_ptr() == tensor.data_ptr()
