"""The status line of `experiments` on a terminal, at most as wide as the terminal."""

import os
import sys

from bytelm.units import clock

SHORTEST = 8  # characters of a shortened name


def columns() -> int:
    """Width of the terminal that is standard error."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # it is not a terminal
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
    """One line: `1/2 runs | best 2.5000 a | b 0:05 | 0:05 left`. Names are shortened to fit.

    Args:
        ended: Runs that have ended.
        total: Number of all runs; None if it is not known.
        best: Score and name of the best run.
        current: Name of the running run.
        elapsed: Its time, in seconds.
        seconds_left: Remaining time of all runs, if it is known.
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
    """A name with … for its middle; the beginning (the config's name) and the end (values and seed) are kept."""
    if len(name) <= length:
        return name
    end = 2 * length // 3
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"
