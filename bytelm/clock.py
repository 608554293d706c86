"""Clocks: the time that a run has used, and the predicted time of its next step.

Two clocks have one interface. `LocalClock` is for a single process on the CPU. It is read after every step, at no cost.
`SharedClock` is for a device, which runs behind the program and requires a wait, and for several ranks, which must
agree on one time. Reading it has a cost; therefore it is read once a second, and more often near the limit. Between
readings, the last one is extrapolated at the pace of the last interval. All ranks do the same arithmetic: without a
collective in every step, they agree on progress (and therefore on every schedule) and on the last step.

A device that the program waits for has no work afterwards. Far from the limit, the time at which a step has ended is
therefore read after the next one has been submitted.
"""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

READING_SECONDS = 1.0  # between readings of a shared clock, at most
LEAST_SECONDS = 1e-9  # of a step; avoids a division by zero
FIRST_STEP = 1  # of a process; it is not representative
LATE_STEPS = 4  # that must be left if a step's end is read after the next one


class Stopwatch:
    """Adds up the time between starts and pauses."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._started: float | None = None

    @property
    def running(self) -> bool:
        return self._started is not None

    @property
    def seconds(self) -> float:
        return self._seconds if self._started is None else self._seconds + time.perf_counter() - self._started

    def start(self) -> None:
        self._started = time.perf_counter()

    def pause(self) -> None:
        self._seconds, self._started = self.seconds, None

    def set(self, seconds: float) -> None:
        """Pauses, and sets the value to `seconds`."""
        self._seconds, self._started = seconds, None


class Reading(NamedTuple):
    """A reading of a clock, the same on all ranks, after a step: steps and tokens so far, and the seconds used."""

    steps: int
    tokens: int
    seconds: float


class Pace(NamedTuple):
    """The seconds and the tokens of a step."""

    seconds: float
    tokens: float

    def of(self, tokens: float) -> float:
        """Returns the seconds of a step of this many tokens at this pace."""
        return self.seconds * (tokens / self.tokens) if self.tokens else self.seconds


class Clock(ABC):
    """Measures the used seconds of a budget, and predicts those of the next step.

    Args:
        stopwatch: Runs while the run trains.
        now: Returns the seconds used; the same on all ranks.
        paces: Paces of the last steps, the most recent one at the end.
    """

    is_exact: bool
    """Whether it is read after every step."""

    def __init__(self, stopwatch: Stopwatch, now: Callable[[], float], paces: deque[Pace]) -> None:
        self.stopwatch = stopwatch
        self.now = now
        self.paces = paces
        self.reading = Reading(0, 0, 0.0)

    def start(self, steps: int, tokens: int) -> None:
        """Starts the stopwatch, before a step."""
        self.stopwatch.start()
        self.look(steps, tokens)

    def pause(self) -> None:
        """Stops the stopwatch until the next start."""
        self.stopwatch.pause()

    def look(self, steps: int, tokens: int) -> None:
        """Reads the time, without measuring a step."""
        self.reading = Reading(steps, tokens, self.now())

    def read(self, steps: int, tokens: int) -> None:
        """Reads the time after a step, and computes the pace of the steps since the last reading."""
        self._take(Reading(steps, tokens, self.now()))

    def _take(self, reading: Reading) -> None:
        last, self.reading = self.reading, reading
        taken = reading.steps - last.steps
        self.paces.append(Pace((reading.seconds - last.seconds) / taken, (reading.tokens - last.tokens) / taken))

    def used(self, tokens: int) -> float:
        """Returns the seconds used after this many tokens: the last reading, extrapolated at the last pace."""
        if tokens == self.reading.tokens or not self.paces:
            return self.reading.seconds
        return self.reading.seconds + self.paces[-1].of(tokens - self.reading.tokens)

    @abstractmethod
    def step_ended(self, steps: int, tokens: int) -> bool:
        """Called after each step; returns whether the clock was read."""

    @abstractmethod
    def size_changes(self, steps: int, tokens: int) -> None:
        """Called when the next step has a different number of tokens from the last one."""

    @abstractmethod
    def expected(self, tokens: float) -> float:
        """Returns the predicted seconds of a step of this many tokens; 0 before a step was measured."""


class LocalClock(Clock):
    """The clock of a single process on the CPU: read after every step.

    The next step is predicted to take the mean time of the last ones, because a longer one can be dropped.
    """

    is_exact = True

    def step_ended(self, steps: int, tokens: int) -> bool:
        self.read(steps, tokens)
        return True

    def size_changes(self, steps: int, tokens: int) -> None:
        pass  # it was read after the step

    def expected(self, tokens: float) -> float:
        return sum(pace.of(tokens) for pace in self.paces) / max(len(self.paces), 1)


class SharedClock(Clock):
    """The clock of a device, or of several ranks: read about once a second.

    The next step is predicted to take as long as the slowest of the last ones, because a step that has begun cannot be
    dropped. The pace of the first step, in which an optimizer creates its state and a memory is filled, is not
    extrapolated: on an H200 it was five times that of the others, and a warm-up of the rate jumped ahead and fell back.

    Args:
        stopwatch: Runs while the run trains.
        now: Returns rank 0's seconds, on all ranks.
        paces: Paces of the last steps, the most recent one at the end.
        limit: Seconds that the run may use.
        wait: Returns when the device has finished all its work.
        mark: Marks the end of the work so far. Returns a function that waits until the device has come there, and no
            longer, and returns rank 0's seconds at that time.
    """

    is_exact = False

    def __init__(
        self,
        stopwatch: Stopwatch,
        now: Callable[[], float],
        paces: deque[Pace],
        limit: float = math.inf,
        wait: Callable[[], None] = lambda: None,
        mark: Callable[[], Callable[[], float]] | None = None,
    ) -> None:
        super().__init__(stopwatch, now, paces)
        self._limit = limit
        self._wait = wait
        self._mark = mark or self._time_of_now
        self._marked: tuple[int, int, Callable[[], float]] | None = None  # steps, tokens and time of a step's end
        self._reads_late = False
        self._next_reading = FIRST_STEP  # the step whose end is read next

    def _time_of_now(self) -> Callable[[], float]:
        seconds = self.now()
        return lambda: seconds

    def step_ended(self, steps: int, tokens: int) -> bool:
        marked, self._marked = self._marked, None
        if marked is not None:
            self._take(Reading(marked[0], marked[1], marked[2]()))
        if steps < self._next_reading:
            return marked is not None
        if self._reads_late:
            self._marked = (steps, tokens, self._mark())
            return marked is not None
        self.read(steps, tokens)
        return True

    def pause(self) -> None:
        self._wait()
        super().pause()

    def look(self, steps: int, tokens: int) -> None:
        self._marked = None  # time may have passed that does not count
        super().look(steps, tokens)

    def read(self, steps: int, tokens: int) -> None:
        self._wait()
        super().read(steps, tokens)

    def _take(self, reading: Reading) -> None:
        last = self.reading.steps
        if last == FIRST_STEP:
            self.paces.clear()
        super()._take(reading)
        if last >= FIRST_STEP:
            left = self._limit - reading.seconds
            pace = self.paces[-1]
            # One step that seems to be short must not postpone the next reading.
            usual = median(each.of(pace.tokens) for each in self.paces)
            step = max(pace.seconds, usual, LEAST_SECONDS)
            self._next_reading = reading.steps + max(1, int(min(left / 4, READING_SECONDS) / step))
            self._reads_late = left > LATE_STEPS * step

    def size_changes(self, steps: int, tokens: int) -> None:
        self._marked = None
        if self.reading.steps != steps:
            self.read(steps, tokens)
        self._next_reading = steps + 1  # the first step of the new size shows its pace
        self._reads_late = False

    def expected(self, tokens: float) -> float:
        return max((pace.of(tokens) for pace in self.paces), default=0.0)
