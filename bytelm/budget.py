"""Budget: converts a run's use of its limits into progress, and decides whether another step fits.

This module is arithmetic on plain numbers. Clocks are in clock.py; the callback that joins the two is
callbacks/time_budget.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bytelm.units import Duration, Unit


@dataclass(frozen=True)
class Progress:
    """State of a run when a step begins.

    Attributes:
        fraction: Used share of the budget, 0 to 1: the largest over its limits.
        used: Seconds, steps, tokens and FLOPs used so far.
        per_step: The same for the step that begins (an estimate, for seconds).
        limits: The limits that the run has, by unit.
    """

    fraction: float
    used: Mapping[Unit, float]
    per_step: Mapping[Unit, float] = field(default_factory=dict)
    limits: Mapping[Unit, float] = field(default_factory=dict)

    def amount(self, unit: Unit) -> float:
        """Returns the used amount of a unit; as a fraction, of the whole run."""
        return self.fraction if unit == "fraction" else self.used[unit]

    def share(self, duration: Duration) -> float:
        """Returns the share of the whole run that `duration` is.

        Exact for percentages and in the unit of a run's only limit; otherwise estimated from the pace so far (the
        number of steps of a time-limited run is unknown before its end).
        """
        if duration.unit == "fraction" or duration.value == 0:
            return duration.value
        if len(self.limits) == 1 and duration.unit in self.limits:
            return duration.value / self.limits[duration.unit]
        if self.fraction > 0 and self.used[duration.unit] > 0:
            return duration.value * self.fraction / self.used[duration.unit]
        step = self.per_step.get(duration.unit, 0.0)  # nothing is used yet: assumes all steps are like the next one
        return duration.value / step * self._step_share() if step else math.inf

    def through(self, duration: Duration) -> float:
        """Returns how far the step that now begins takes the run through a first phase of length `duration`: 0 to 1.

        With x of the phase's w used, and steps of d: (x + d) / (w + d). The first step thus already has an effect, and
        1 is reached when the phase is over. In steps this is (it + 1) / (w + 1), as nanoGPT warms up.
        """
        if duration.value == 0:
            return 1.0
        step = self._step_share() if duration.unit == "fraction" else self.per_step.get(duration.unit, 0.0)
        return min(1.0, (self.amount(duration.unit) + step) / (duration.value + step))

    def _step_share(self) -> float:
        """Returns the share of the budget that one step is."""
        return max((self.per_step.get(unit, 0.0) / limit for unit, limit in self.limits.items()), default=0.0)


class Budget:
    """The limits of a run; the first one that is reached ends it.

    Args:
        limits: Seconds, steps, tokens or FLOPs, each above 0; at least one of them.
    """

    def __init__(self, limits: Mapping[Unit, float]) -> None:
        self.limits = dict(limits)

    def progress(self, used: Mapping[Unit, float], per_step: Mapping[Unit, float]) -> Progress:
        """Returns the state of a run.

        Args:
            used: Seconds, steps, tokens and FLOPs used so far.
            per_step: The same for the step that begins.
        """
        fraction = max(used[unit] / limit for unit, limit in self.limits.items())
        return Progress(min(fraction, 1.0), used, per_step, self.limits)

    def is_reached(self, used: Mapping[Unit, float]) -> bool:
        """Returns whether one of the limits is used up."""
        return any(used[unit] >= limit for unit, limit in self.limits.items())

    def fits(self, used: Mapping[Unit, float], step: Mapping[Unit, float]) -> bool:
        """Returns whether a step that takes `step` ends within all limits."""
        return all(used[unit] + step[unit] <= limit for unit, limit in self.limits.items())

    def tightest(self, used: Mapping[Unit, float], step: Mapping[Unit, float]) -> Unit:
        """Returns the unit of the limit with the largest used share after a step that takes `step`."""
        return max(self.limits, key=lambda unit: (used[unit] + step[unit]) / self.limits[unit])
