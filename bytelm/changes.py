"""Points of a run at which values change, such as batch sizes; and the combinations in which several values occur."""

import math
from collections.abc import Mapping
from itertools import product
from typing import TypeVar

from bytelm.budget import Progress
from bytelm.units import Duration

Target = TypeVar("Target")
Changes = list[tuple[Duration, float]]
"""Points of a run, and the value from each of them on; the first point is the beginning."""


def combinations(changes: Mapping[Target, Changes], progress: Progress) -> list[dict[Target, float]]:
    """Returns the combined values of several schedules, from `progress` to the end of the run, each combination once.

    If the order of all changes is known in advance, these are the combinations that occur in the run; otherwise, all
    that might occur.

    Args:
        changes: Changes of each schedule, by target.
        progress: Current progress. The first combination is that of the step which begins there.
    """
    now = {target: value_at(points, progress) for target, points in changes.items()}
    to_come = {
        target: [(point, value) for point, value in points if _is_to_come(point, progress)]
        for target, points in changes.items()
    }
    places = _places({point for points in to_come.values() for point, _ in points}, progress)
    found = [now]
    if places is None:
        values = [[now[target], *(value for _, value in points)] for target, points in to_come.items()]
        found += [dict(zip(changes, combination, strict=True)) for combination in product(*values)]
    else:
        for place in sorted(set(places.values())):
            found.append(
                {
                    target: ([now[target]] + [value for point, value in points if places[point] <= place])[-1]
                    for target, points in to_come.items()
                }
            )
    return list({tuple(combination.values()): combination for combination in found}.values())


def value_at(points: Changes, progress: Progress) -> float:
    """Returns the value of the last of several points that has been passed."""
    return [value for point, value in points if progress.amount(point.unit) >= point.value][-1]


def _is_to_come(point: Duration, progress: Progress) -> bool:
    """Returns whether a step will begin at or after a point, and none has yet."""
    end = 1.0 if point.unit == "fraction" else progress.limits.get(point.unit, math.inf)
    return progress.amount(point.unit) < point.value < end


def _places(points: set[Duration], progress: Progress) -> dict[Duration, float] | None:
    """Returns numbers in the order in which a run reaches some points; None if the order is unknown."""
    units = {point.unit for point in points}
    if len(units) > 1 and not (len(progress.limits) == 1 and units == {"fraction", *progress.limits}):
        return None
    return {point: progress.share(point) if len(units) > 1 else point.value for point in points}
