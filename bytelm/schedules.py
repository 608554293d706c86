"""Schedules: values as functions of a run's progress, not of a step count that must be guessed.

Most schedules multiply the value that was given for the run, such as the learning rate of a parameter group. Lengths
have units; a decay ends with the budget, on any machine. To write a schedule, subclass Schedule and define
`multiplier(progress)`, or `value(given, progress)`. Schedules keep no state. The callback that applies them is
callbacks/schedules.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from bytelm.budget import Progress
from bytelm.changes import Changes, value_at
from bytelm.config.untrusted_config import nameable
from bytelm.config.values import OFF, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from bytelm.errors import ConfigError
from bytelm.units import Duration, read_duration

WHOLE_RUN = Duration(1.0, "fraction")
NOTHING = Duration(0.0, "steps")


# Functions with names, and no lambdas, because Lightning's ddp_spawn pickles schedules.
def _linear(x: float) -> float:
    return x


def _cosine(x: float) -> float:
    return 0.5 * (1 - math.cos(math.pi * x))


def _falling_linear(x: float) -> float:
    return 1 - x


def _falling_cosine(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * x))


def _falling_sqrt(x: float) -> float:
    return math.sqrt(1 - x)


def _one_minus_sqrt(x: float) -> float:
    return 1 - math.sqrt(x)


def _falling_inverse_sqrt(x: float) -> float:
    return (1 / math.sqrt(1 + 9 * x) - 1 / math.sqrt(10)) / (1 - 1 / math.sqrt(10))


# From 0 at x = 0 to 1 at x = 1, where x is the completed share of the rise.
RISE_SHAPES: dict[str, Callable[[float], float]] = {"linear": _linear, "cosine": _cosine}
# From 1 at x = 0 to 0 at x = 1, where x is the completed share of the decay.
DECAY_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": _falling_linear,
    "cosine": _falling_cosine,
    "sqrt": _falling_sqrt,
    "1-sqrt": _one_minus_sqrt,
    "inverse-sqrt": _falling_inverse_sqrt,
}
DecayShape = Literal["linear", "cosine", "sqrt", "1-sqrt", "inverse-sqrt"]


@nameable
class Schedule:
    """Base of the schedules."""

    is_absolute = False
    """Whether values do not depend on the given one."""

    def multiplier(self, progress: Progress) -> float:
        """Returns the factor of the given value in the step that begins.

        Args:
            progress: Progress of the run: `progress.fraction` is the used share of the budget, 0 to 1; `progress.used`,
                `progress.share` and `progress.through` are for other units.
        """
        raise NotImplementedError

    def value(self, given: float, progress: Progress) -> float:
        """Returns the value for the step that begins.

        Args:
            given: The value that was given for the run.
            progress: Progress of the run.
        """
        return self.lr(given, progress)

    def lr(self, peak_lr: float, progress: Progress) -> float:
        """The same, under its name in schedules that were written for learning rates."""
        return peak_lr * self.multiplier(progress)

    def set_given(self, values: Sequence[float]) -> None:
        """Receives the given values of all groups that the schedule changes, before training; by default unused.

        Args:
            values: The values, such as the learning rates of all parameter groups.
        """

    def changes(self, given: float) -> Changes | None:
        """Returns the points where the value changes, if it is constant in between; needed for batch sizes and lengths.

        Returns:
            The value from the start, and from each change on; None: the values are not a finite list.
        """
        return None

    def reached(self, given: float) -> Sequence[float]:
        """Returns values that the schedule is known to reach; they are checked before training."""
        return [value for _, value in self.changes(given) or []]


LRSchedule = Schedule  # its name in schedules that were written for learning rates


class WithWarmup(Schedule, ABC):
    """Base of the schedules that start with a warm-up.

    Args:
        warmup: Length of the warm-up. With `n steps`, step `it` is at (it + 1) / (n + 1) of the rise.
        warmup_shape: `linear` or `cosine`.
        warmup_from: Share of the peak rate at which the warm-up starts.
    """

    UNUSED_WITH: ClassVar = {"warmup_shape": ("warmup", OFF), "warmup_from": ("warmup", OFF)}

    def __init__(
        self,
        warmup: Duration = NOTHING,
        warmup_shape: Literal["linear", "cosine"] = "linear",
        warmup_from: UnitInterval = 0.0,
    ) -> None:
        super().__init__()
        self.warmup = read_duration("warmup", warmup)
        self.warmup_shape = RISE_SHAPES[warmup_shape]
        self.warmup_from = warmup_from

    def multiplier(self, progress: Progress) -> float:
        risen = progress.through(self.warmup)
        if risen < 1:
            return self.warmup_from + (1 - self.warmup_from) * self.warmup_shape(risen)
        return self.after_warmup(progress)

    @abstractmethod
    def after_warmup(self, progress: Progress) -> float:
        """Returns the multiplier after the warm-up."""


class Constant(WithWarmup):
    """The peak rate from the end of the warm-up to the end of the run.

    Args:
        warmup: Length of the warm-up. With `n steps`, step `it` is at (it + 1) / (n + 1) of the rise.
        warmup_shape: `linear` or `cosine`.
        warmup_from: Share of the peak rate at which the warm-up starts.
    """

    def after_warmup(self, progress: Progress) -> float:
        return 1.0


class FullDecay(WithWarmup):
    """Base of the schedules that fall from the end of the warm-up on.

    Args:
        min_lr_factor: Share of the peak rate at the end.
        until: End of the fall; afterwards the rate stays constant.
        kwargs: The options of WithWarmup.
    """

    def __init__(self, min_lr_factor: UnitInterval = 0.0, until: Duration = WHOLE_RUN, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_lr_factor = min_lr_factor
        self.until = read_duration("until", until)

    def after_warmup(self, progress: Progress) -> float:
        begin, end = progress.share(self.warmup), progress.share(self.until)
        fallen = 1.0 if end <= begin else min(max((progress.fraction - begin) / (end - begin), 0.0), 1.0)
        return self.min_lr_factor + (1 - self.min_lr_factor) * self.shape(fallen)

    @abstractmethod
    def shape(self, fallen: float) -> float:
        """Falls from 1 to 0, as `fallen` rises from 0 to 1."""


class Linear(FullDecay):
    """Falls in a straight line from the end of the warm-up.

    Args:
        min_lr_factor: Share of the peak rate at the end.
        until: End of the fall; afterwards the rate stays constant.
        kwargs: The options of WithWarmup.
    """

    def shape(self, fallen: float) -> float:
        return DECAY_SHAPES["linear"](fallen)


class Cosine(FullDecay):
    """Falls along half a cosine from the end of the warm-up (Loshchilov and Hutter 2016, arXiv:1608.03983).

    With `until` as lr_decay_iters and `min_lr_factor` as min_lr / learning_rate, this is nanoGPT's schedule.

    Args:
        min_lr_factor: Share of the peak rate at the end.
        until: End of the fall; afterwards the rate stays constant.
        kwargs: The options of WithWarmup.
    """

    def shape(self, fallen: float) -> float:
        return DECAY_SHAPES["cosine"](fallen)


class WarmupStableDecay(WithWarmup):
    """Warm-up, the peak rate, and a decay that ends with the run (Hu et al. 2024, arXiv:2404.06395).

    With a linear decay it is also known as trapezoidal. Hägele et al. 2024 (arXiv:2405.18392) compare the shapes.

    Args:
        decay: Length of the decay.
        decay_shape: With x, the completed share of the decay: `linear` (1 - x), `cosine` ((1 + cos pi x) / 2), `sqrt`
            (sqrt(1 - x)), `1-sqrt` (1 - sqrt x) or `inverse-sqrt` (1 / sqrt(1 + 9 x), shifted and scaled to end at 0).
        min_lr_factor: Share of the peak rate at the end.
        kwargs: The options of WithWarmup.

    Raises:
        ConfigError: Warm-up and decay are shares of the run, and their sum is above the whole run.
    """

    UNUSED_WITH: ClassVar = {"decay_shape": ("decay", OFF), "min_lr_factor": ("decay", OFF)}

    def __init__(
        self,
        decay: Duration = Duration(0.2, "fraction"),  # noqa: B008 (frozen)
        decay_shape: DecayShape = "linear",
        min_lr_factor: UnitInterval = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.decay = read_duration("decay", decay)
        self.decay_shape = DECAY_SHAPES[decay_shape]
        self.min_lr_factor = min_lr_factor
        if self.warmup.unit == self.decay.unit == "fraction" and self.warmup.value + self.decay.value > 1:
            raise ConfigError("decay", str(self.decay), f"accepted: at most 100% less the warmup ({self.warmup})")

    def after_warmup(self, progress: Progress) -> float:
        length = progress.share(self.decay)
        left = 1 - progress.fraction
        if left >= length:
            return 1.0
        return self.min_lr_factor + (1 - self.min_lr_factor) * self.decay_shape(1 - left / length)


class FromFunction(Schedule):
    """Calls a user's function `get_lr(it, warmup_iters, lr_decay_iters, learning_rate, min_lr)`, as nanoGPT does.

    `it` is the step if the budget limits steps. Under any other limit, the function sees a run of `max_iters`
    iterations, and `it` follows the budget's progress.

    The function sees one learning rate. If groups of parameters have several, its result is scaled: a group of rate g
    gets get_lr(…, learning_rate, min_lr) g / learning_rate, so `min_lr` is the same share of each group's rate.

    Args:
        function: Import path of the function, such as `my_schedules.get_lr`; it returns a learning rate.
        warmup_iters: Passed to the function: a number, or a share of max_iters: `5%` is int(0.05 max_iters).
        lr_decay_iters: Passed to the function; default: max_iters.
        min_lr: Passed to the function.
        max_iters: Iterations of the whole run; default: the step limit, or 5,000 without one.
        learning_rate: Passed to the function; default: the groups' rate, or their highest.

    Raises:
        ConfigError: warmup_iters has another unit than steps.
    """

    def __init__(
        self,
        function: Callable[[int, int, int, float, float], float],
        warmup_iters: NonNegativeInt | Duration = 0,
        lr_decay_iters: PositiveInt | None = None,
        min_lr: NonNegativeFloat = 0.0,
        max_iters: PositiveInt | None = None,
        learning_rate: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        self.function = function
        self.learning_rate = learning_rate
        self._highest: float | None = None
        if isinstance(warmup_iters, Duration) and warmup_iters.unit not in ("steps", "fraction"):
            raise ConfigError("warmup_iters", str(warmup_iters), "accepted: 250, 250 steps, 5%")
        self.warmup_iters = warmup_iters
        self.lr_decay_iters = lr_decay_iters
        self.min_lr = min_lr
        self.max_iters = max_iters

    def set_given(self, values: Sequence[float]) -> None:
        self._highest = max(values, default=None)

    def lr(self, peak_lr: float, progress: Progress) -> float:
        max_iters = self.max_iters or int(progress.limits.get("steps", 5_000))
        if list(progress.limits) == ["steps"] and max_iters == progress.limits["steps"]:
            it = int(progress.used["steps"])
        else:
            it = int(progress.fraction * max_iters)
        rate = self.learning_rate or self._highest or peak_lr
        value = self.function(it, self._warmup_iters(max_iters), self.lr_decay_iters or max_iters, rate, self.min_lr)
        return value if rate == peak_lr else value * peak_lr / rate

    def _warmup_iters(self, max_iters: int) -> int:
        if not isinstance(self.warmup_iters, Duration):
            return self.warmup_iters
        is_share = self.warmup_iters.unit == "fraction"
        return int(max_iters * self.warmup_iters.value) if is_share else int(self.warmup_iters.value)


class Ramp(Schedule):
    """Moves from one value to another, and then stays constant.

    start + (end - start) s(x), where x goes from 0 to 1 over the ramp and s(x) is x (`linear`) or (1 - cos pi x) / 2
    (`cosine`). Before the ramp the value is `start`.

    Args:
        start: Value at the beginning of the ramp; default: the given value.
        end: Value at its end; default: the given value.
        over: Length of the ramp.
        begin: Beginning of the ramp.
        shape: `linear` or `cosine`.

    Raises:
        ConfigError: Neither start nor end is given.
    """

    UNUSED_WITH: ClassVar = {"shape": ("over", OFF)}
    is_absolute = True

    def __init__(
        self,
        start: float | None = None,
        end: float | None = None,
        over: Duration = WHOLE_RUN,
        begin: Duration = NOTHING,
        shape: Literal["linear", "cosine"] = "linear",
    ) -> None:
        if start is None and end is None:
            raise ConfigError("start", None, "accepted: a number for start, for end, or for both")
        self.start = start
        self.end = end
        self.over = read_duration("over", over)
        self.begin = read_duration("begin", begin)
        self.shape = RISE_SHAPES[shape]

    def value(self, given: float, progress: Progress) -> float:
        start = given if self.start is None else self.start
        end = given if self.end is None else self.end
        x = self._done(progress)
        return end if x == 1 else start + (end - start) * self.shape(x)

    def reached(self, given: float) -> Sequence[float]:
        return [given if value is None else value for value in (self.start, self.end)]

    def _done(self, progress: Progress) -> float:
        """Returns the completed share of the ramp, 0 to 1."""
        if self.begin.value == 0 or self.begin.unit == self.over.unit:
            used, begin, length = progress.amount(self.over.unit), self.begin.value, self.over.value
        else:
            used, begin, length = progress.fraction, progress.share(self.begin), progress.share(self.over)
        if used < begin:
            return 0.0
        return min((used - begin) / length, 1.0) if length else 1.0


class Piecewise(Schedule):
    """Changes the value at given points of the run; before the first point it is the given value.

    Args:
        points: The value from each point on: `{0%: 8, 50%: 16}`, `{100 Mtok: 512, 1 Gtok: 1024}`. The last point that
            has been passed counts.

    Raises:
        ConfigError: There is no point, one is not a duration, or two of one unit are not in ascending order.
    """

    is_absolute = True

    def __init__(self, points: dict[str, int | float]) -> None:
        try:
            self.points = [(Duration.parse(point), value) for point, value in points.items()]
        except ValueError as error:
            raise ConfigError("points", points, str(error)) from error
        if not self.points:
            raise ConfigError("points", points, "accepted: at least one, such as {0%: 8, 50%: 16}")
        for unit in {point.unit for point, _ in self.points}:
            of_unit = [point.value for point, _ in self.points if point.unit == unit]
            if of_unit != sorted(set(of_unit)):
                raise ConfigError("points", points, f"accepted: points of one unit ({unit}) in ascending order")

    def value(self, given: float, progress: Progress) -> float:
        return value_at(self.changes(given), progress)

    def changes(self, given: float) -> Changes:
        return [(NOTHING, given), *self.points] if self.points[0][0].value else self.points


def merged(lr_schedule: Schedule | None, schedules: Mapping[str, Schedule]) -> dict[str, Schedule]:
    """Returns `lr_schedule`, the usual spelling of `schedules.lr`, and `schedules` as one mapping.

    Args:
        lr_schedule: None leaves the learning rate to the optimizer, or to the model's own scheduler.
        schedules: Schedules by target.

    Raises:
        ConfigError: Both are given for the learning rate.
    """
    if lr_schedule is None:
        return dict(schedules)
    if "lr" not in schedules:
        return {"lr": lr_schedule, **schedules}
    if type(lr_schedule) is not Constant or vars(lr_schedule) != vars(Constant()):  # not the default
        name = type(schedules["lr"]).__name__
        raise ConfigError("schedules.lr", name, f"lr_schedule ({type(lr_schedule).__name__}) is given, too; keep one")
    return dict(schedules)


def durations_of(value: Any) -> Iterator[Duration]:
    """Yields the durations among the options of a schedule, or in one of its options."""
    if isinstance(value, Duration):
        yield value
    elif isinstance(value, Mapping):
        yield from durations_of([*value.items()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from durations_of(each)
    elif isinstance(value, Schedule):
        yield from durations_of(vars(value))


DEFAULT_SCHEDULE = f"bytelm.callbacks.{Constant.__name__}"  # of the learning rate, if a config names none
