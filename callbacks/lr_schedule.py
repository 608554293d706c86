"""Learning-rate schedules: functions of how far along the run is, never of a step count that must be guessed.

A schedule multiplies the rate that each parameter group was given. Its lengths carry units; a decay ends when the
budget does, on any machine. To write one, subclass LRSchedule and define `multiplier(progress)`.

| logged | what |
| --- | --- |
| lr/<group> | learning rate of each parameter group |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.budget import Progress
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.config.untrusted_config import nameable
from bytelm.config.values import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitInterval
from bytelm.errors import ConfigError
from bytelm.log_steps import is_log_step, log_metrics
from bytelm.units import Duration

WHOLE_RUN = Duration(1.0, "fraction")
NOTHING = Duration(0.0, "steps")

WARMUP_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1 - math.cos(math.pi * x)),
}
# From 1 at x = 0 to 0 at x = 1, where x is how much of the decay is over.
DECAY_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "sqrt": lambda x: math.sqrt(1 - x),
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}
DecayShape = Literal["linear", "cosine", "sqrt", "1-sqrt"]


@nameable
class LRSchedule(Callback):
    """Base of the schedules: sets every group's learning rate before each step."""

    def multiplier(self, progress: Progress) -> float:
        """What the learning rates are multiplied with in the step that begins.

        Args:
            progress: How far along the run is: `progress.fraction` is the share of the budget used, 0 to 1;
                `progress.used`, `progress.share` and `progress.through` speak of other units.
        """
        raise NotImplementedError

    def lr(self, peak_lr: float, progress: Progress) -> float:
        """Learning rate of a group that was given `peak_lr`."""
        return peak_lr * self.multiplier(progress)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._budget = TimeBudget.of(trainer)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # torch's own name for it; it is in checkpoints

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        progress = self._budget.progress
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr(group["initial_lr"], progress)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_log_step(trainer, batch_idx):
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            log_metrics(trainer, {f"lr/{group.get('name', i)}": group["lr"] for i, group in enumerate(groups)})


class WithWarmup(LRSchedule, ABC):
    """Base of the schedules that begin with a warm-up.

    Args:
        warmup: Length of the warm-up. With `n steps`, step it has (it + 1) / (n + 1) of the rise behind it.
        warmup_shape: `linear` or `cosine`.
        warmup_from: Share of the peak rate that the warm-up rises from.
    """

    def __init__(
        self,
        warmup: Duration = NOTHING,
        warmup_shape: Literal["linear", "cosine"] = "linear",
        warmup_from: UnitInterval = 0.0,
    ) -> None:
        super().__init__()
        self.warmup = Duration.parse(warmup)
        self.warmup_shape = WARMUP_SHAPES[warmup_shape]
        self.warmup_from = warmup_from

    def multiplier(self, progress: Progress) -> float:
        risen = progress.through(self.warmup)
        if risen < 1:
            return self.warmup_from + (1 - self.warmup_from) * self.warmup_shape(risen)
        return self.after_warmup(progress)

    @abstractmethod
    def after_warmup(self, progress: Progress) -> float:
        """The multiplier once the warm-up is over."""


class Constant(WithWarmup):
    """The peak rate throughout, after the warm-up.

    Args:
        warmup: Length of the warm-up. With `n steps`, step it has (it + 1) / (n + 1) of the rise behind it.
        warmup_shape: `linear` or `cosine`.
        warmup_from: Share of the peak rate that the warm-up rises from.
    """

    def after_warmup(self, progress: Progress) -> float:
        return 1.0


class FullDecay(WithWarmup):
    """Base of the schedules that fall from the end of the warm-up on.

    Args:
        min_lr_factor: Share of the peak rate that is left at the end.
        until: When the fall is over; the rate stays there for the rest of the run.
        kwargs: The options of WithWarmup.
    """

    def __init__(self, min_lr_factor: UnitInterval = 0.0, until: Duration = WHOLE_RUN, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_lr_factor = min_lr_factor
        self.until = Duration.parse(until)

    def after_warmup(self, progress: Progress) -> float:
        begin, end = progress.share(self.warmup), progress.share(self.until)
        fallen = 1.0 if end <= begin else min(max((progress.fraction - begin) / (end - begin), 0.0), 1.0)
        return self.min_lr_factor + (1 - self.min_lr_factor) * self.shape(fallen)

    @abstractmethod
    def shape(self, fallen: float) -> float:
        """From 1 to 0, as `fallen` goes from 0 to 1."""


class Linear(FullDecay):
    """Falls in a straight line from the end of the warm-up.

    Args:
        min_lr_factor: Share of the peak rate that is left at the end.
        until: When the fall is over; the rate stays there for the rest of the run.
        kwargs: The options of WithWarmup.
    """

    def shape(self, fallen: float) -> float:
        return DECAY_SHAPES["linear"](fallen)


class Cosine(FullDecay):
    """Falls along half a cosine from the end of the warm-up (Loshchilov and Hutter 2016, arXiv:1608.03983).

    With `until` as lr_decay_iters and `min_lr_factor` as min_lr / learning_rate, this is nanoGPT's schedule.

    Args:
        min_lr_factor: Share of the peak rate that is left at the end.
        until: When the fall is over; the rate stays there for the rest of the run.
        kwargs: The options of WithWarmup.
    """

    def shape(self, fallen: float) -> float:
        return DECAY_SHAPES["cosine"](fallen)


class WarmupStableDecay(WithWarmup):
    """Warm-up, the peak rate, and a decay that ends with the run (Hu et al. 2024, arXiv:2404.06395).

    With a linear decay it is also known as trapezoidal; the shapes are compared by Hägele et al. 2024
    (arXiv:2405.18392).

    Args:
        decay: Length of the decay.
        decay_shape: With x of the decay over: `linear` (1 - x), `cosine` ((1 + cos pi x) / 2), `sqrt` (sqrt(1 - x)) or
            `1-sqrt` (1 - sqrt x).
        min_lr_factor: Share of the peak rate that is left at the end.
        kwargs: The options of WithWarmup.

    Raises:
        ConfigError: Warm-up and decay are shares of the run that make more than the whole.
    """

    def __init__(
        self,
        decay: Duration = Duration(0.2, "fraction"),  # noqa: B008 (frozen)
        decay_shape: DecayShape = "linear",
        min_lr_factor: UnitInterval = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.decay = Duration.parse(decay)
        self.decay_shape = DECAY_SHAPES[decay_shape]
        self.min_lr_factor = min_lr_factor
        if self.warmup.unit == self.decay.unit == "fraction" and self.warmup.value + self.decay.value > 1:
            raise ConfigError("decay", str(self.decay), f"accepted: up to what warmup ({self.warmup}) leaves of 100%")

    def after_warmup(self, progress: Progress) -> float:
        length = progress.share(self.decay)
        left = 1 - progress.fraction
        if left >= length:
            return 1.0
        return self.min_lr_factor + (1 - self.min_lr_factor) * self.decay_shape(1 - left / length)


class FromFunction(LRSchedule):
    """Calls a function of yours, `get_lr(it, warmup_iters, lr_decay_iters, learning_rate, min_lr)`, as nanoGPT does.

    `it` is the step where the budget limits steps. Under any other limit the run is presented to the function as one
    of `max_iters` iterations, and `it` follows the budget's progress.

    Args:
        function: Import path of the function, such as `my_schedules.get_lr`; returns a learning rate.
        warmup_iters: Passed on to the function.
        lr_decay_iters: Passed on to the function; default max_iters.
        min_lr: Passed on to the function.
        max_iters: Iterations of the whole run; default the step limit, or 5,000 where there is none.
    """

    def __init__(
        self,
        function: Callable[[int, int, int, float, float], float],
        warmup_iters: NonNegativeInt = 0,
        lr_decay_iters: PositiveInt | None = None,
        min_lr: NonNegativeFloat = 0.0,
        max_iters: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.function = function
        self.warmup_iters = warmup_iters
        self.lr_decay_iters = lr_decay_iters
        self.min_lr = min_lr
        self.max_iters = max_iters

    def lr(self, peak_lr: float, progress: Progress) -> float:
        max_iters = self.max_iters or int(progress.limits.get("steps", 5_000))
        if list(progress.limits) == ["steps"] and max_iters == progress.limits["steps"]:
            it = int(progress.used["steps"])
        else:
            it = int(progress.fraction * max_iters)
        return self.function(it, self.warmup_iters, self.lr_decay_iters or max_iters, peak_lr, self.min_lr)
