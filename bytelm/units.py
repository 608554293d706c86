"""Durations with units (`180s`, `3m`, `1h30m`, `500 steps`, `300 Mtok`, `5%`) and how far along a run is.

Three clocks measure a run: seconds, steps and tokens. A percentage is a share of the run, whichever clock limits it.
A `Progress` holds all of them at once, so that a schedule can ask for any duration without knowing what the limit is.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, Union

Unit = Literal["seconds", "steps", "tokens", "fraction"]

DECIMALS = 6  # of seconds and of percentages: microseconds, and parts per hundred million of a run
MOST = 10**15  # larger counts are not exact as floating-point numbers
ACCEPTED = "accepted: a time (180s, 3m, 1h30m, 250ms), steps (500 steps), tokens (300 Mtok) or a share of the run (5%)"

_NUMBER = r"\d+(?:_\d+)*(?:\.\d+)?|\.\d+"
_TIME = re.compile(
    rf"(?:(?P<d>{_NUMBER})\s*d)?\s*(?:(?P<h>{_NUMBER})\s*h)?\s*(?:(?P<m>{_NUMBER})\s*m(?:in)?)?\s*"
    rf"(?:(?P<s>{_NUMBER})\s*s)?\s*(?:(?P<ms>{_NUMBER})\s*ms)?"
)
_COUNT = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<scale>[kMGB]?)\s*(?P<noun>steps?|tok(?:ens?)?)")
_SHARE = re.compile(rf"(?P<number>{_NUMBER})\s*%")
_SECONDS = {"d": Decimal(86_400), "h": Decimal(3_600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
_SCALES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


class Duration:
    """An amount of time, of steps, of tokens, or of the run. Not to be changed.

    Args:
        value: The amount, in `unit`.
        unit: `seconds`, `steps`, `tokens`, or `fraction` (of the run, 0 to 1).
    """

    # No dataclass: jsonargparse would take one apart into the keys `limit.value` and `limit.unit`.
    __slots__ = ("unit", "value")

    def __init__(self, value: float, unit: Unit) -> None:
        self.value = value
        self.unit = unit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and (self.value, self.unit) == (other.value, other.unit)

    def __hash__(self) -> int:
        return hash((self.value, self.unit))

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"

    @classmethod
    def parse(cls, text: Union[str, "Duration"]) -> "Duration":
        """Reads `180s`, `3m`, `1h30m`, `500 steps`, `2k steps`, `300 Mtok`, `5%`.

        Raises:
            ValueError: The text is none of these; the message quotes it and says what is accepted.
        """
        if isinstance(text, Duration):
            return text
        stripped = text.strip() if isinstance(text, str) else ""
        if match := _SHARE.fullmatch(stripped):
            percent = Decimal(match["number"])
            if percent <= 100:
                return cls(round(float(percent / 100), DECIMALS + 2), "fraction")
        elif match := _COUNT.fullmatch(stripped):
            count = Decimal(match["number"]) * _SCALES[match["scale"]]
            if count == count.to_integral_value() and count <= MOST:
                return cls(float(count), "steps" if match["noun"].startswith("step") else "tokens")
        elif stripped and (match := _TIME.fullmatch(stripped)):
            seconds = sum(Decimal(number) * _SECONDS[unit] for unit, number in match.groupdict("0").items())
            if seconds <= MOST:
                return cls(round(float(seconds), DECIMALS), "seconds")
        raise ValueError(f"{text!r} is no duration; {ACCEPTED}")

    def __str__(self) -> str:
        """The shortest text that `parse` reads back as the same duration."""
        if self.unit == "fraction":
            return f"{_shortest(self.value * 100)}%"
        if self.unit == "seconds":
            return f"{_shortest(self.value)}s"
        if self.unit == "steps":
            return f"{_shortest(self.value)} steps"
        scale = next(scale for scale in ("G", "M", "k", "") if self.value % _SCALES[scale] == 0)
        return f"{_shortest(self.value / _SCALES[scale])} {scale}tok"


def _shortest(number: float) -> str:
    return f"{number:.{DECIMALS}f}".rstrip("0").rstrip(".")


def time_limit(limits: str | list[str]) -> float | None:
    """Seconds of the first limit in time to be reached, if there is one.

    Args:
        limits: As in `time_budget.limit`: one or several.
    """
    durations = [Duration.parse(limit) for limit in (limits if isinstance(limits, list) else [limits])]
    return min((duration.value for duration in durations if duration.unit == "seconds"), default=None)


def clock(seconds: float) -> str:
    """Seconds as `2:03` or `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@dataclass(frozen=True)
class Progress:
    """Where a run stands when a step begins.

    Attributes:
        fraction: Share of the budget that is used, 0 to 1: the largest over its limits.
        used: Seconds, steps and tokens used so far.
        per_step: The same for one step (an estimate, for seconds).
        limits: The limits that the run has, by unit.
    """

    fraction: float
    used: Mapping[Unit, float]
    per_step: Mapping[Unit, float] = field(default_factory=dict)
    limits: Mapping[Unit, float] = field(default_factory=dict)

    def share(self, duration: Duration) -> float:
        """What share of the whole run `duration` is.

        Exact for percentages and in the unit of a run's only limit; otherwise judged by the pace so far (how many
        steps a time-limited run will have had is not known before its end).
        """
        if duration.unit == "fraction" or duration.value == 0:
            return duration.value
        if len(self.limits) == 1 and duration.unit in self.limits:
            return duration.value / self.limits[duration.unit]
        if self.fraction > 0 and self.used[duration.unit] > 0:
            return duration.value * self.fraction / self.used[duration.unit]
        step = self.per_step.get(duration.unit, 0.0)  # nothing is used yet: as if all steps were like the coming one
        return duration.value / step * self._step_share() if step else math.inf

    def through(self, duration: Duration) -> float:
        """How far the step that now begins takes the run through a first phase of length `duration`: 0 to 1.

        With x of the phase's w used, and steps of d: (x + d) / (w + d). The first step thus already moves, and 1 is
        reached when the phase is over. In steps this is (it + 1) / (w + 1), as nanoGPT warms up.
        """
        if duration.value == 0:
            return 1.0
        if duration.unit == "fraction":
            used, step = self.fraction, self._step_share()
        else:
            used, step = self.used[duration.unit], self.per_step.get(duration.unit, 0.0)
        return min(1.0, (used + step) / (duration.value + step))

    def _step_share(self) -> float:
        """What share of the budget one step is."""
        return max((self.per_step.get(unit, 0.0) / limit for unit, limit in self.limits.items()), default=0.0)
