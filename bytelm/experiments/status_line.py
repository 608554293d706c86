"""The line that `experiments` keeps up to date on a terminal, as wide as the terminal at most."""

import os
import sys

from bytelm.units import clock

SHORTEST = 8  # characters that are left of a name


def columns() -> int:
    """Width of the terminal that is standard error."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # it is none
        return 80


def status_line(
    ended: int,
    total: int | None,
    best: tuple[str, str] | None,
    current: str,
    elapsed: float,
    seconds_left: float | None,
    width: int,
) -> str:
    """One line: `1/2 runs | best 2.5000 a | b 0:05 | 0:05 left`. Names are shortened where it does not fit.

    Args:
        ended: Runs that have ended.
        total: How many there will be; None if that is not known.
        best: Score and name of the best run.
        current: Name of the run that is under way.
        elapsed: Its seconds.
        seconds_left: Of all runs, as far as known.
        width: Columns of the terminal.
    """
    score, name = best or ("", "")

    def line(name: str, current: str) -> str:
        parts = [f"{ended}/{'?' if total is None else total} runs"]
        parts += [f"best {score} {name}"] if best else []
        parts += [f"{current} {clock(elapsed)}"]
        parts += [] if seconds_left is None else [f"{clock(max(seconds_left, 0.0))} left"]
        return " | ".join(parts)

    room = width - len(line("", ""))
    half = max(room // 2, SHORTEST)
    name = shortened(name, max(half, room - len(current)))
    current = shortened(current, max(half, room - len(name)))
    return line(name, current)[:width]


def shortened(name: str, length: int) -> str:
    """A name with … in place of a part: of the config's name the beginning is kept, of values and seeds the end."""
    if len(name) <= length:
        return name
    end = 2 * length // 3
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"
