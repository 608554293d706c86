"""The limits of a run: how those of `time_budget` are read; those of Lightning's Trainer are rejected beside them."""

from collections.abc import Iterable, Mapping
from typing import Any

from bytelm.errors import ConfigError
from bytelm.units import LIMITS, Duration, Unit, accepted_forms, limits_of, read_duration

ENDS_A_RUN = "time_budget.limit decides when a run ends (500 steps, 3m, …)"
NO_MINIMUM = "time_budget.limit decides when a run ends, also before a minimum; leave it out"
# Options of the Trainer, each with the values that are no limit, and the reason why others are rejected.
TRAINERS_LIMITS: dict[str, tuple[tuple[int | None, ...], str]] = {
    **dict.fromkeys(("max_steps", "max_epochs"), ((-1, 0, None), ENDS_A_RUN)),
    **dict.fromkeys(("min_steps", "min_epochs"), ((0, None), NO_MINIMUM)),
}


def check_trainers_limits(options: Mapping[str, Any]) -> None:
    """Rejects options of the Trainer that would end a run, or let it exceed its budget.

    Args:
        options: The options, or some of them.

    Raises:
        ConfigError: One is set.
    """
    for key, (accepted, reason) in TRAINERS_LIMITS.items():
        if options.get(key) not in accepted:
            raise ConfigError(f"trainer.{key}", options[key], reason)


def read_limits(durations: Iterable[Duration]) -> dict[Unit, float]:
    """Returns the limits by unit, the smallest of each.

    Raises:
        ConfigError: There is no limit, or one that is not above 0 seconds, steps, tokens or FLOPs.
    """
    read = [read_duration("time_budget.limit", each, *LIMITS) for each in durations]
    for duration in read:
        if duration.unit == "fraction" or duration.value == 0:
            raise ConfigError("time_budget.limit", str(duration), f"{accepted_forms(*LIMITS)}, above 0")
    if not read:
        raise ConfigError("time_budget.limit", durations, "accepted: one duration, or a list of at least one")
    return limits_of(read)


def read_reserve(reserve: Duration, limit: float) -> float:
    """Returns the seconds of a reserve, which is a time or a share of `limit` seconds.

    Raises:
        ConfigError: It is neither, or is not shorter than the limit.
    """
    seconds = reserve.value * limit if reserve.unit == "fraction" else reserve.value
    if reserve.unit not in ("fraction", "seconds") or seconds >= limit:
        raise ConfigError("time_budget.reserve", str(reserve), f"accepted: a time or a share, below {limit:g}s")
    return seconds
