"""Parameters of a test of which only some run in the README's test command; scripts/long_tests.sh runs all."""

from collections.abc import Iterable

import pytest


def thinned(values: Iterable, keep: int, several: bool = False) -> list:
    """Marks parameters as slow, except for some that are evenly spread.

    Args:
        values: The parameters, each a value or a pytest.param.
        keep: How many are not slow; the first is one of them.
        several: Whether each value is a tuple of the values of several arguments.
    """
    values = list(values)
    kept = {i * len(values) // keep for i in range(keep)}
    return [value if i in kept else slow(value, several) for i, value in enumerate(values)]


def slow(value, several):
    """A parameter that is slow."""
    if isinstance(value, type(pytest.param())):
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, pytest.mark.slow])
    return pytest.param(*(value if several else (value,)), marks=pytest.mark.slow)
