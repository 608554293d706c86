"""A clock that tests advance."""

import pytest

from bytelm import clock as clock_module
from bytelm.callbacks import time_budget, warm_up


class Clock:
    """Replaces the module `time`; the time changes only when a test sets it."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(clock_module, "time", clock)
    monkeypatch.setattr(warm_up, "time", clock)
    monkeypatch.setattr(time_budget, "process_age", lambda: clock.now - 1000.0)
    return clock
