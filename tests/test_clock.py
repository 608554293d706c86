"""Clocks: the times of readings, extrapolation in between, and predictions, also when the size of steps changes."""

from collections import deque
from itertools import pairwise

import pytest

from bytelm import clock as module
from bytelm.clock import LocalClock, Pace, SharedClock, Stopwatch


class Time:
    """Replaces the module `time`; the time changes only when a test sets it."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


class Run:
    """Steps on a clock."""

    def __init__(self, kind, time, **options):
        self.time = time
        self.stopwatch = Stopwatch()
        self.clock = kind(self.stopwatch, lambda: self.stopwatch.seconds, deque(maxlen=16), **options)
        self.steps = self.tokens = 0
        self.clock.start(0, 0)

    def step(self, seconds, tokens):
        self.time.now += seconds
        self.steps += 1
        self.tokens += tokens
        return self.clock.step_ended(self.steps, self.tokens)

    @property
    def used(self):
        return self.clock.used(self.tokens)


def test_a_stopwatch_adds_up_what_lies_between_starts_and_pauses(time):
    stopwatch = Stopwatch()
    stopwatch.set(5.0)
    stopwatch.start()
    time.now += 2
    assert (stopwatch.seconds, stopwatch.running) == (7.0, True)
    stopwatch.pause()
    time.now += 100
    stopwatch.start()
    time.now += 1
    assert stopwatch.seconds == 8.0
    stopwatch.set(3.0)
    time.now += 1
    assert (stopwatch.seconds, stopwatch.running) == (3.0, False)


def test_a_pace_scales_with_tokens():
    assert Pace(0.3, 128).of(128) == 0.3
    assert Pace(0.3, 128).of(256) == 0.6
    assert Pace(0.3, 0).of(256) == 0.3, "of a checkpoint that says nothing of tokens"


def test_a_local_clock_is_read_after_every_step_and_predicts_the_mean(time):
    run = Run(LocalClock, time)
    assert [run.step(seconds, 100) for seconds in (1, 3, 2)] == [True] * 3
    assert run.used == 6
    assert run.clock.expected(100) == 2
    assert run.clock.expected(300) == 6


def test_a_local_clock_predicts_from_steps_of_all_sizes(time):
    run = Run(LocalClock, time)
    run.step(1.0, 100)
    run.step(4.0, 200)
    assert run.clock.expected(200) == (2 + 4) / 2


def test_a_shared_clock_is_read_about_once_a_second_and_a_step_late(time):
    waits = []
    run = Run(SharedClock, time, wait=lambda: waits.append(1))
    read = [step for step in range(1, 101) if run.step(0.125, 100)]
    assert read == [1, 2, *range(11, 101, 8)]
    assert run.clock.reading == (98, 9800, 98 * 0.125)
    assert len(waits) == 2, "the device is waited for in the first two steps only"
    assert run.used == 100 * 0.125


def test_the_end_of_a_marked_step_is_read_after_the_next_one(time):
    """A device that takes a second for each step, and a program that has submitted each in a tenth of that."""
    waited = []

    def mark():
        waited.append("marked")
        submitted = run.steps

        def read():
            waited.append("read")
            time.now = start + 2.0 + (submitted - 2)  # the device's end of the step; two steps were read at once
            return run.stopwatch.seconds

        return read

    run = Run(SharedClock, time, mark=mark)
    start = time.now
    run.step(1.0, 100)
    run.step(1.0, 100)
    assert waited == []
    assert [run.step(0.1, 100) for _ in range(3)] == [False, True, True]
    assert waited == ["marked", "read", "marked", "read", "marked"]
    assert run.clock.reading == (4, 400, 4.0)
    assert run.used == 5.0, "the last step is extrapolated"


def test_near_the_limit_a_shared_clock_is_read_more_often_and_at_once(time):
    run = Run(SharedClock, time, limit=10.0)
    read = [step for step in range(1, 81) if run.step(0.125, 100)]
    assert read[:5] == [1, 2, 11, 19, 27]
    assert all(later - earlier <= max(1, (10 - earlier / 8) * 2 + 1) for earlier, later in pairwise(read))
    assert read[-4:] == [77, 78, 79, 80]
    assert run.clock.reading == (80, 8000, 10.0)


def test_a_step_that_seems_to_take_no_time_does_not_postpone_the_next_reading(time):
    run = Run(SharedClock, time, limit=10.0)
    for _ in range(11):
        run.step(0.125, 100)
    assert run.clock.reading.steps == 10
    run.clock.size_changes(run.steps, run.tokens)  # read after step 11, too
    run.clock.reading = run.clock.reading._replace(seconds=run.stopwatch.seconds)
    assert run.step(0.0, 100) is True
    assert run.clock.paces[-1].seconds == 0
    read = [step for step in range(13, 40) if run.step(0.125, 100)]
    assert read[0] <= 12 + 9


def test_a_pause_forgets_a_marked_step(time):
    run = Run(SharedClock, time)
    for _ in range(10):
        run.step(0.125, 100)
    run.clock.pause()  # after step 10, which is marked
    time.now += 100
    run.clock.start(run.steps, run.tokens)
    assert run.clock.reading == (10, 1000, 1.25)
    assert run.step(0.125, 100) is False
    assert run.step(0.125, 100) is True
    assert run.clock.reading == (11, 1100, 1.375)


def test_between_readings_a_shared_clock_continues_at_the_last_pace(time):
    run = Run(SharedClock, time)
    run.step(5.0, 100)  # the first step, which is no measure
    run.step(0.5, 100)
    assert run.used == 5.5
    assert run.step(0.75, 100) is False
    assert run.used == 6.0, "not read, so 0.5 is assumed"
    run.step(0.75, 100)
    assert run.used == 6.5, "marked"
    assert run.step(0.75, 100) is True
    assert run.used == 7.0 + 0.75
    assert run.clock.expected(100) == 0.75


def test_a_shared_clock_predicts_the_slowest_of_the_last_steps(time):
    run = Run(SharedClock, time)
    for seconds in (9.0, 1.0, 2.0, 1.0):
        run.step(seconds, 100)
    assert run.clock.expected(100) == 2.0
    assert run.clock.expected(50) == 1.0


def test_a_shared_clock_is_read_before_and_after_the_first_step_of_another_size(time):
    run = Run(SharedClock, time)
    for _ in range(12):
        run.step(0.125, 100)
    assert run.clock.reading.steps == 10
    run.clock.size_changes(run.steps, run.tokens)
    assert run.clock.reading.steps == 12
    assert run.used == 1.5
    assert run.step(1.0, 400) is True
    assert run.clock.paces[-1] == Pace(1.0, 400)
    assert run.used == 2.5
    run.clock.size_changes(run.steps, run.tokens)
    assert run.clock.reading == (13, 1600, 2.5), "it was read just now"


def test_steps_of_another_size_between_readings_count_by_their_tokens(time):
    run = Run(SharedClock, time)
    run.step(1.0, 100)
    run.step(0.1, 100)
    assert run.step(0.2, 200) is False
    assert run.used == pytest.approx(1.3)
