"""Clocks: the time that a run has used, and the time that its next step will take.

Two clocks have one interface. `LocalClock` is that of a single process on the CPU. It is read after every step, at no
cost. `SharedClock` is that of a device, which runs behind the program and has to be waited for, and of several ranks,
which have to agree on one time. A reading has a price there, so readings are a second apart, and closer near the limit.
In between, the last reading is continued at the pace of the last stretch. All ranks do the same arithmetic, so they
agree on progress (and with it on every schedule) and on the last step without a collective in every step.
"""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

READING_SECONDS = 1.0  # between readings of a shared clock, at most
LEAST_SECONDS = 1e-9  # of a step, to divide by


class Stopwatch:
    """Adds up the time between starts and pauses.

    Args:
        seconds: What it shows at first.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
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
        """Pauses, and shows `seconds` from now on."""
        self._seconds, self._started = seconds, None


class Reading(NamedTuple):
    """What a clock, the same for all ranks, showed after a step: steps and tokens so far, and the seconds used."""

    steps: int
    tokens: int
    seconds: float


class Pace(NamedTuple):
    """The seconds that a step took, and its tokens."""

    seconds: float
    tokens: float

    def of(self, tokens: float) -> float:
        """Seconds of a step of so many tokens at this pace."""
        return self.seconds * (tokens / self.tokens) if self.tokens else self.seconds


class Clock(ABC):
    """Tells how many seconds of a budget are used, and what the next step will add.

    Args:
        stopwatch: Runs while the run trains.
        now: Returns the seconds used; the same on all ranks.
        paces: Of the last steps, the last one at the end.
        steps: Steps that the run has taken so far.
    """

    is_exact: bool
    """Whether it is read after every step."""

    def __init__(self, stopwatch: Stopwatch, now: Callable[[], float], paces: deque[Pace], steps: int = 0) -> None:
        self.stopwatch = stopwatch
        self.now = now
        self.paces = paces
        self.reading = Reading(steps, 0, 0.0)

    def start(self, steps: int, tokens: int) -> None:
        """Starts the stopwatch, before a step."""
        self.stopwatch.start()
        self.look(steps, tokens)

    def pause(self) -> None:
        """Stops the stopwatch until the next start."""
        self.stopwatch.pause()

    def look(self, steps: int, tokens: int) -> None:
        """Takes the time without a step to measure."""
        self.reading = Reading(steps, tokens, self.now())

    def read(self, steps: int, tokens: int) -> None:
        """Takes the time after a step, and the pace of the steps since the last reading."""
        last = self.reading
        self.look(steps, tokens)
        taken = steps - last.steps
        self.paces.append(Pace((self.reading.seconds - last.seconds) / taken, (tokens - last.tokens) / taken))

    def used(self, tokens: int) -> float:
        """Seconds used by a run that has trained on so many tokens: the last reading, continued at the last pace."""
        if tokens == self.reading.tokens or not self.paces:
            return self.reading.seconds
        return self.reading.seconds + self.paces[-1].of(tokens - self.reading.tokens)

    @abstractmethod
    def step_ended(self, steps: int, tokens: int) -> bool:
        """Told after each step; returns whether the clock was read."""

    @abstractmethod
    def size_changes(self, steps: int, tokens: int) -> None:
        """Told when the next step has another number of tokens than the last one."""

    @abstractmethod
    def expected(self, tokens: float) -> float:
        """Seconds that a step of so many tokens is predicted to take; 0 before one was measured."""


class LocalClock(Clock):
    """The clock of a single process on the CPU: read after every step.

    The next step is predicted to take as long as the last ones did on average, as one that takes longer can be dropped.
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

    The next step is predicted to take as long as the slowest of the last ones, as a step that has begun cannot be
    dropped. The pace of the first step, in which an optimizer makes its state and a memory is filled, is not continued:
    on an H200 it was five times that of the others, and a warm-up of the rate jumped ahead and fell back.

    Args:
        stopwatch: Runs while the run trains.
        now: Returns rank 0's seconds, on all ranks.
        paces: Of the last steps, the last one at the end.
        steps: Steps that the run has taken so far.
        limit: Seconds that the run may use.
        wait: Returns when the device has done all that it was given.
    """

    is_exact = False

    def __init__(
        self,
        stopwatch: Stopwatch,
        now: Callable[[], float],
        paces: deque[Pace],
        steps: int = 0,
        limit: float = math.inf,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(stopwatch, now, paces, steps)
        self._limit = limit
        self._wait = wait
        self._first_step = steps + 1  # of this process, which is no measure of the others
        self._next_reading = self._first_step  # the step after which it is due

    def step_ended(self, steps: int, tokens: int) -> bool:
        if steps < self._next_reading:
            return False
        self.read(steps, tokens)
        return True

    def pause(self) -> None:
        self._wait()
        super().pause()

    def read(self, steps: int, tokens: int) -> None:
        self._wait()
        last = self.reading.steps
        if last == self._first_step:
            self.paces.clear()
        super().read(steps, tokens)
        if last >= self._first_step:
            left = self._limit - self.reading.seconds
            step = max(self.paces[-1].seconds, LEAST_SECONDS)
            self._next_reading = steps + max(1, int(min(left / 4, READING_SECONDS) / step))

    def size_changes(self, steps: int, tokens: int) -> None:
        if self.reading.steps != steps:
            self.read(steps, tokens)
        self._next_reading = steps + 1  # the first step of the new size tells its pace

    def expected(self, tokens: float) -> float:
        return max((pace.of(tokens) for pace in self.paces), default=0.0)
