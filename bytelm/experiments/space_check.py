"""Checks a space before the first run: its keys exist, and each value can be run with some values of the others.

A value that cannot be run with the config's own values may need another one of the space: `lr_schedule.decay` a
schedule that has a decay, `n_heads: 3` a width that it divides.
"""

import itertools
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

from bytelm.errors import ConfigError
from bytelm.experiments.task import Point, choices_of

Refused = Callable[[Point], str]
"""Returns why a point cannot be run; an empty text if it can."""

DRAWS = 10  # random points that a value is tried in, after those with one other key


def check_space(
    space: Mapping[str, Any], refused: Refused, accepted: Collection[tuple[str, str]] | None = None
) -> bool:
    """Raises an error for the first key or value that cannot be run.

    Args:
        space: For each key a list of values or a range, whose ends are checked.
        refused: Checks a point.
        accepted: Keys with values that are known to be accepted. Default: those of a few points that contain all
            values of the space are checked.

    Returns:
        Whether any point can be run; if not, the config itself cannot be.

    Raises:
        ConfigError: A key, or a value of it, is accepted in none of the points that were tried.
    """
    values = {key: _texts(choice) for key, choice in space.items()}
    known = set(accepted or ())
    if accepted is None:
        for place in range(max(map(len, values.values()), default=0)):
            point = tuple((key, texts[place % len(texts)]) for key, texts in values.items())
            if not refused(point):
                known.update(point)
    if all((key, text) in known for key, texts in values.items() for text in texts):
        return True
    if not known and refused(()):
        return False
    for key, texts in values.items():
        alone = {text: refused(((key, text),)) for text in texts if (key, text) not in known}
        failed = {text: reason for text, reason in alone.items() if reason}
        for text, reason in failed.items():
            if all(map(refused, _companions(key, text, values))):
                if len(failed) == len(texts):
                    raise ConfigError("space", key, reason)
                raise ConfigError(f"space.{key}", text, reason)
    return True


def _texts(choice: Any) -> list[str]:
    return choices_of(choice if isinstance(choice, list) else [choice["low"], choice["high"]])


def _companions(key: str, text: str, values: Mapping[str, list[str]]) -> "itertools.chain[Point]":
    """Points that contain a value: with each value of each other key, then with random values of all."""
    pairs = (
        tuple((each, {key: text, other: with_text}[each]) for each in values if each in (key, other))
        for other in values
        if other != key
        for with_text in values[other]
    )
    draw = random.Random(0)
    draws = (
        tuple((each, text if each == key else draw.choice(texts)) for each, texts in values.items())
        for _ in range(DRAWS if len(values) > 2 else 0)
    )
    return itertools.chain(pairs, draws)
