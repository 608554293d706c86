"""Durations and sizes with units: `180s`, `3m`, `1h30m`, `500 steps`, `300 Mtok`, `2 PFLOP`, `5%`.

A run is measured in seconds, steps, tokens and FLOPs (floating-point operations). A percentage is a share of the
run, whichever unit limits it. Amounts of memory have units too: `4GiB`.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal, Union

from bytelm.errors import ConfigError

Unit = Literal["seconds", "steps", "tokens", "flops", "fraction"]

DECIMALS = 6  # of seconds and of percentages: microseconds, and parts per hundred million of a run
MOST = 10**15  # larger counts are not exact as floating-point numbers
MOST_FLOPS = 10**27
FORMS: dict[Unit, str] = {
    "seconds": "a time (180s, 3m, 1h30m, 250ms)",
    "steps": "steps (500 steps)",
    "tokens": "tokens (300 Mtok)",
    "flops": "FLOPs (2 PFLOP)",
    "fraction": "a share of the run (5%; up to 100%)",
}
LIMITS: tuple[Unit, ...] = ("seconds", "steps", "tokens", "flops")  # units of the budget of a run


def accepted_forms(*units: Unit) -> str:
    """Returns the accepted forms of a duration for the end of a message.

    Args:
        units: The accepted units; default all.
    """
    *most, last = [FORMS[unit] for unit in units or FORMS]
    return f"accepted: {', '.join(most)} or {last}" if most else f"accepted: {last}"


_NUMBER = r"\d+(?:_\d+)*(?:\.\d+)?|\.\d+"
_TIME = re.compile(
    rf"(?:(?P<d>{_NUMBER})\s*d)?\s*(?:(?P<h>{_NUMBER})\s*h)?\s*(?:(?P<m>{_NUMBER})\s*m(?:in)?)?\s*"
    rf"(?:(?P<s>{_NUMBER})\s*s)?\s*(?:(?P<ms>{_NUMBER})\s*ms)?"
)
_COUNT = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<scale>[kMGB]?)\s*(?P<noun>steps?|tok(?:ens?)?)")
_FLOPS = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<scale>[kMGTPEZ]?)FLOPs?")  # FLOPS are FLOPs per second
_SHARE = re.compile(rf"(?P<number>{_NUMBER})\s*%")
_SECONDS = {"d": Decimal(86_400), "h": Decimal(3_600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
_SCALES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_FLOP_SCALES = {scale: 10 ** (3 * place) for place, scale in enumerate(("", "k", "M", "G", "T", "P", "E", "Z"))}

MEMORY_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(MEMORY_UNITS)})")


class Duration:
    """An amount of time, steps, tokens or FLOPs, or a share of the run. Immutable.

    Args:
        value: The amount, in `unit`.
        unit: `seconds`, `steps`, `tokens`, `flops`, or `fraction` (of the run, 0 to 1).
    """

    # Not a dataclass: jsonargparse would split it into the keys `limit.value` and `limit.unit`.
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
        """Reads `180s`, `3m`, `1h30m`, `500 steps`, `2k steps`, `300 Mtok`, `2 PFLOP`, `5%`.

        Raises:
            ValueError: The text is not a duration; the message quotes it and lists the accepted forms.
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
        elif match := _FLOPS.fullmatch(stripped):
            flops = Decimal(match["number"]) * _FLOP_SCALES[match["scale"]]
            if flops <= MOST_FLOPS:
                return cls(float(flops), "flops")
        elif stripped and (match := _TIME.fullmatch(stripped)):
            seconds = sum(Decimal(number) * _SECONDS[unit] for unit, number in match.groupdict("0").items())
            if seconds <= MOST:
                return cls(round(float(seconds), DECIMALS), "seconds")
        raise ValueError(f"{text!r} is not a duration; {accepted_forms()}")

    def __str__(self) -> str:
        """The shortest text from which `parse` makes the same duration."""
        if self.unit == "fraction":
            return f"{_shortest(self.value * 100)}%"
        if self.unit == "seconds":
            return min(f"{_shortest(self.value)}s", f"{_shortest(self.value * 1000)}ms", key=len)
        if self.unit == "steps":
            return f"{_shortest(self.value)} steps"
        if self.unit == "flops":
            return _flops_text(self.value)
        scale = next(scale for scale in ("G", "M", "k", "") if self.value % _SCALES[scale] == 0)
        return f"{_shortest(self.value / _SCALES[scale])} {scale}tok"


def read_duration(key: str, text: Any, *units: Unit) -> Duration:
    """Reads the value of an option.

    Args:
        key: The option, for the message.
        text: The value: a text, or a Duration as it is.
        units: The accepted units, for the message; default all.

    Raises:
        ConfigError: It is not a duration.
    """
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise ConfigError(key, text, accepted_forms(*units)) from error


def check_time(key: str, duration: Duration | None) -> None:
    """Checks the limit of a time.

    Args:
        key: The option, for the message.
        duration: Its value; None for no limit.

    Raises:
        ConfigError: It is no time above 0.
    """
    if duration is not None and (duration.unit != "seconds" or not duration.value):
        raise ConfigError(key, str(duration), accepted_forms("seconds"))


def _shortest(number: float) -> str:
    return f"{number:.{DECIMALS}f}".rstrip("0").rstrip(".")


def _flops_text(flops: float) -> str:
    exact = Decimal(repr(flops))  # in decimal digits, so that reading the text gives the same number
    scale = next((scale for scale in reversed(_FLOP_SCALES) if exact >= _FLOP_SCALES[scale]), "")
    number = f"{exact / _FLOP_SCALES[scale]:f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {scale}FLOP"


def limits_of(limits: str | Sequence[str | Duration]) -> dict[Unit, float]:
    """Returns the limits of a budget by unit, the smallest of each.

    Args:
        limits: One or several, as in `time_budget.limit`.
    """
    smallest: dict[Unit, float] = {}
    for duration in map(Duration.parse, [limits] if isinstance(limits, str) else limits):
        smallest[duration.unit] = min(duration.value, smallest.get(duration.unit, duration.value))
    return smallest


def time_limit(limits: str | list[str]) -> float | None:
    """Seconds of the shortest time limit, if there is one.

    Args:
        limits: One or several, as in `time_budget.limit`.
    """
    return limits_of(limits).get("seconds")


def clock(seconds: float) -> str:
    """Seconds as `2:03` or `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Size:
    """An amount of memory, such as `4GiB`.

    Args:
        bytes: The amount.
    """

    __slots__ = ("bytes",)

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.bytes == other.bytes

    def __hash__(self) -> int:
        return hash(self.bytes)

    def __repr__(self) -> str:
        return f"Size({str(self)!r})"

    def __str__(self) -> str:
        unit = "GiB" if self.bytes >= MEMORY_UNITS["GiB"] else "MiB"
        return f"{round(self.bytes / MEMORY_UNITS[unit], 2):g}{unit}"

    @classmethod
    def parse(cls, text: Union[str, "Size"]) -> "Size":
        """Reads `512MiB`, `4GiB`, `1.5 GB`.

        Raises:
            ValueError: The text is not a size above 0.
        """
        if isinstance(text, Size):
            return text
        match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
        size = int(float(match[1]) * MEMORY_UNITS[match[2]]) if match else 0
        if not size:
            raise ValueError(f"{text!r} is not an amount of memory; accepted: 512MiB, 4GiB, 4GB")
        return cls(size)
