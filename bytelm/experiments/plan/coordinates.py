"""The options of candidates as numbers from -1 to 1, in which the surface (surface.py) is a quadratic."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from bytelm.experiments.plan.candidates import value_of
from bytelm.experiments.task import Point

LOG_RATIO = 2.0  # positive numbers that differ by this factor count as logarithms
ROUNDING = 0.03  # most difference of the coordinates of two options that change together, such as a d_ff of 3 d_model
APART = 0.12  # least difference of an option of two candidates that are not nearly the same


class Coordinates:
    """Candidates as points. An option that changes with an earlier one, such as d_ff with d_model, is no coordinate.

    Args:
        candidates: All candidates.
        keys: The keys of the options; one without a value in some of the candidates does not count.
    """

    def __init__(self, candidates: Sequence[Point], keys: Collection[str]) -> None:
        self.candidates = list(candidates)
        values = [dict(candidate) for candidate in candidates]
        self._axes: dict[str, tuple[bool, float, float]] = {}
        self._choices: list[tuple[str, str]] = []
        for key in keys:
            if not all(key in each for each in values):
                continue
            texts = list(dict.fromkeys(each[key] for each in values))
            numbers = [_number(text) for text in texts]
            if len(texts) < 2:
                continue
            if any(number is None for number in numbers):
                self._choices += [(key, text) for text in texts[1:]]
            else:
                known = [number for number in numbers if number is not None]
                low, high = min(known), max(known)
                is_log = low > 0 and high / low >= LOG_RATIO
                self._axes[key] = (is_log, *((math.log(low), math.log(high)) if is_log else (low, high)))
        self._columns: list[int] = []
        every = self._all_of(candidates)
        for place, column in enumerate(every.T):
            earlier = every[:, self._columns].T
            if not any(np.abs(column - sign * other).max() < ROUNDING for other in earlier for sign in (1, -1)):
                self._columns.append(place)
        self.points = self.of(candidates)

    @property
    def names(self) -> list[str]:
        """The key of each coordinate."""
        every = [*self._axes, *(key for key, _ in self._choices)]
        return [every[place] for place in self._columns]

    @property
    def numbers(self) -> list[str]:
        """The keys whose values are numbers."""
        return [key for key in self.names if key in self._axes]

    @property
    def logs(self) -> list[str]:
        """The keys whose logarithms count."""
        return [key for key in self.numbers if self._axes[key][0]]

    def of(self, candidates: Sequence[Point]) -> np.ndarray:
        """The coordinates of candidates, (candidates, coordinates)."""
        return self._all_of(candidates)[:, self._columns]

    def along(self, key: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates from one end of an option's numbers to the other, and the numbers at these.

        Args:
            key: The option.
            number: How many.
        """
        is_log, low, high = self._axes[key]
        numbers = np.linspace(low, high, number)
        return np.linspace(-1, 1, number), np.exp(numbers) if is_log else numbers

    def near(self, candidate: Point) -> np.ndarray:
        """Which of the candidates are nearly the same as this one, (candidates,)."""
        nearly: np.ndarray = (np.abs(self.points - self.of([candidate])) < APART).all(1)
        return nearly

    def _all_of(self, candidates: Sequence[Point]) -> np.ndarray:
        rows = []
        for candidate in candidates:
            values, row = dict(candidate), []
            for key, (is_log, low, high) in self._axes.items():
                number = float(values[key])
                row.append(2 * ((math.log(number) if is_log else number) - low) / (high - low) - 1)
            row += [1.0 if values[key] == text else -1.0 for key, text in self._choices]
            rows.append(row)
        return np.array(rows, float).reshape(len(rows), len(self._axes) + len(self._choices))


def _number(text: str) -> float | None:
    """A number in the text of an option; None for anything else, such as a truth value."""
    value = value_of(text)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
