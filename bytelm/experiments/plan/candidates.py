"""The candidates of a plan: a given list of them, or combinations of the values of a space.

Without a space, they are around the config: half to twice its width and layers, a quarter to four times its rate.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import qmc

from bytelm.errors import ConfigError
from bytelm.experiments.task import Plan, Point, as_text

WIDTH, D_FF, RATE = "model.gpt.d_model", "model.gpt.d_ff", "model.optimizer.lr"
WIDTHS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the config's width
MOST_CANDIDATES = 1024  # of a space with ranges

Space = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""For each key a list of values or a range; or a list of candidates."""


def searched_keys(space: Any) -> dict[str, Any]:
    """The keys of a space, each with its values, or with that of the last candidate.

    Raises:
        ConfigError: It is neither lists of values and ranges nor a list of candidates.
    """
    lists = {"": space} if isinstance(space, Mapping) else dict(enumerate(space)) if isinstance(space, list) else None
    if space is not None and (lists is None or not all(isinstance(each, Mapping) for each in lists.values())):
        raise ConfigError("space", space, "accepted: {key: [values]}, {key: {low: …, high: …}}, or [{key: value}, …]")
    if isinstance(space, Mapping):
        Plan([""], (), (None,), space, sampler="random")  # checks it
    return {key: value for each in (lists or {}).values() for key, value in each.items()}


def space_around(known: Mapping[str, Any]) -> dict[str, Any]:
    """The space of a config without one.

    Args:
        known: All values of the config.

    Raises:
        ConfigError: Its network has no width and heads.
    """
    width, heads, layers = (known.get(f"model.gpt.{key}") for key in ("d_model", "n_heads", "n_layers"))
    if not isinstance(width, int) or not isinstance(heads, int):
        raise ConfigError("space", None, "the config's network has no d_model and n_heads; accepted: lists or ranges")
    even = 2 * heads  # the heads' width stays even
    space: dict[str, Any] = {WIDTH: list(dict.fromkeys(max(round(width * f / even), 1) * even for f in WIDTHS))}
    if isinstance(layers, int):
        space["model.gpt.n_layers"] = list(range(max(layers // 2, 1), 2 * layers + 1))
    if isinstance(rate := known.get(RATE), float):
        space[RATE] = {"low": rate / 4, "high": 4 * rate, "log": True}
    return space


def candidates_of(space: Space, known: Mapping[str, Any], seed: int) -> list[Point]:
    """The options of each candidate.

    Lists of values give all their combinations, unless there are too many. Ranges and many combinations are drawn from.

    Args:
        space: The space.
        known: All values of the config.
        seed: Seed of the draws.

    Raises:
        ConfigError: There are fewer than two.
    """
    if isinstance(space, Mapping):
        draws = _combinations(space, seed)
        width, d_ff = known.get(WIDTH), known.get(D_FF)
        if WIDTH in space and D_FF not in space and isinstance(width, int) and isinstance(d_ff, int):
            draws = [{**draw, D_FF: max(round(d_ff * draw[WIDTH] / width), 1)} for draw in draws]
    else:
        draws = list(space)
    points = list(dict.fromkeys(map(point_of, draws)))
    if len(points) < 2:
        raise ConfigError("space", space, "accepted: values that make at least two candidates")
    return points


def _combinations(space: Mapping[str, Any], seed: int) -> list[Mapping[str, Any]]:
    lists = [values for values in space.values() if isinstance(values, list)]
    if len(lists) == len(space) and math.prod(map(len, lists)) <= MOST_CANDIDATES:
        return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]
    shares = qmc.Sobol(len(space), seed=seed).random(MOST_CANDIDATES)
    return [{key: _drawn(space[key], at) for key, at in zip(space, row, strict=True)} for row in shares]


def _drawn(values: Any, at: float) -> Any:
    """A value of a list or a range, at a share of it from 0 to 1."""
    if isinstance(values, list):
        return values[min(int(at * len(values)), len(values) - 1)]
    low, high, step = values["low"], values["high"], values.get("step")
    if values.get("log"):
        drawn = low * (high / low) ** at
    elif step is not None:
        drawn = low + step * min(int(at * (int((high - low) / step) + 1)), int((high - low) / step))
    else:
        drawn = low + (high - low) * at
    if all(isinstance(number, int) for number in (low, high, step or 0)):
        return round(drawn)
    return min(max(float(f"{drawn:.3g}"), low), high)


def point_of(candidate: Mapping[str, Any]) -> Point:
    """A candidate's options as on the command line."""
    return tuple((key, as_text(value)) for key, value in candidate.items())


def value_of(text: str) -> Any:
    """The value of an option that a candidate has as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def shown(point: Point) -> str:
    """A candidate for messages and tables."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point)
