"""TimeBudget: ends training when the time (or the steps, or the tokens) are used up, and knows the run's progress.

The clock runs from batch to batch, as that of a plain training loop would, and stops while Lightning validates or
writes a checkpoint. Before it starts, a warm-up pass does all compilation and first-call work. Other callbacks read
`progress` and `clock_synced`: whether this is a step at whose end all ranks have read the clock together.

| logged | value |
| --- | --- |
| time_budget/progress | share of the budget used, 0 to 1 |
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch.optim import Optimizer

from bytelm.budget import Budget, Progress
from bytelm.callbacks.warm_up import data_position, next_batch, wait_for_device, warm_up
from bytelm.clock import Clock, LocalClock, Pace, SharedClock, Stopwatch
from bytelm.config.messages import note
from bytelm.errors import ConfigError
from bytelm.log_steps import is_log_step, log_metrics
from bytelm.system.process import process_age
from bytelm.units import Duration, Unit

ENDS_A_RUN = "time_budget.limit decides when a run ends (500 steps, 3m, …)"
RECENT_STEPS = 16  # readings that a step's time is predicted from: a dozen of them fall into the last second


class StepPlan(Protocol):
    """Decides the size of steps: callbacks/schedules.py, which registers itself as the budget's `plan`."""

    def prepare(self, trainer: Trainer, progress: Progress) -> int | None:
        """Sets what the step that begins at `progress` trains on.

        Returns:
            Its tokens, of all ranks together; None: as many as the last step's.
        """

    def later_steps(self, trainer: Trainer, progress: Progress) -> Iterable[None]:
        """Sets, one by one, all that steps after this one will differ in, for the warm-up; in the end as before."""


class TimeBudget(Callback):
    """Stops training at a limit of time, steps or tokens, whichever is reached first.

    Args:
        limit: `180s`, `3m`, `1h30m`, `500 steps`, `300 Mtok`, or a list of these.
        scope: What time counts. `training`: training steps only, not start-up, compilation, validation or
            checkpoints. `run`: everything since the process started, for a cluster's job limit.
        reserve: With `scope: run`, the time kept for the final validation and checkpoint; a share is one of the limit.
        overshoot: `forbid`: a step that is predicted not to fit is not started. `allow`: training stops after the
            first step that reaches the limit.

    Attributes:
        progress: Where the run stands, before the step that begins.
        clock_synced: Whether all ranks have read the clock together after the step that has just ended.
        steps: Steps taken.
        tokens: Tokens trained on, by all ranks.
        startup_seconds: From the start of the process to that of the clock.
        plan: Decides the size of steps; None: the data alone do.
    """

    def __init__(
        self,
        limit: Duration | list[Duration] = Duration(180, "seconds"),  # noqa: B008 (frozen)
        scope: Literal["training", "run"] = "training",
        reserve: Duration = Duration(0.05, "fraction"),  # noqa: B008
        overshoot: Literal["forbid", "allow"] = "forbid",
    ) -> None:
        super().__init__()
        limits = read_limits(limit if isinstance(limit, list) else [limit])
        if scope == "run" and "seconds" in limits:
            limits["seconds"] -= read_reserve(Duration.parse(reserve), limits["seconds"])
        self.budget = Budget(limits)
        self.scope = scope
        self.overshoot = overshoot
        self.plan: StepPlan | None = None

        self.steps = 0
        self.tokens = 0
        self.startup_seconds: float | None = None
        self._earlier_seconds = 0.0  # `scope: run`: used before this process, by the run that it resumes
        self._stopwatch = Stopwatch()
        self._paces: deque[Pace] = deque(maxlen=RECENT_STEPS)
        self._clock: Clock = LocalClock(self._stopwatch, self._now, self._paces)
        self._next_tokens = 0  # of the step that begins
        self._step_tokens = 0  # of the step under way, so far
        self._trainer_step = 0  # Lightning's count, which goes on where a step is dropped
        self._update_began = self._update_seconds = 0.0  # the optimizer's share of a step
        self._over = False
        self._position: dict[str, Any] | None = None  # of the data, after the last step
        self.clock_synced = False
        self.progress = self._measure()

    @property
    def training_seconds(self) -> float:
        """Time spent in training steps so far."""
        return self._stopwatch.seconds

    def pause(self, trainer: Trainer) -> None:
        """Stops the clock until the next step begins: for work that is not training."""
        if self._stopwatch.running:
            self._clock.pause()

    @staticmethod
    def of(trainer: Trainer) -> "TimeBudget":
        """The budget that a trainer runs under.

        Raises:
            ConfigError: There is none among its callbacks.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TimeBudget):
                return callback
        raise ConfigError("trainer.callbacks", "no TimeBudget", "schedules need one to know how far along the run is")

    # Hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Rejects the trainer's own limits, which would end a run without its final validation.

        Raises:
            ConfigError: One of them is set.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for key, value, unset in (
            ("max_steps", trainer.max_steps, -1),
            ("max_epochs", trainer.max_epochs, -1),
            ("min_steps", trainer.min_steps, None),
            ("min_epochs", trainer.min_epochs, None),
        ):
            if value not in (unset, 0, None):
                raise ConfigError(f"trainer.{key}", value, ENDS_A_RUN)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer):
                raise ConfigError("trainer.max_time", "Timer", ENDS_A_RUN)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer_step = trainer.global_step
        self._clock = self._make_clock(trainer, pl_module)
        self._clock.look(self.steps, self.tokens)
        self.progress = self._measure()
        if self.steps and self._is_over():
            note(f"the run had used up its budget ({self.steps} steps): nothing is trained, it is scored")
            trainer.should_stop = True
            return
        self._warm_up(trainer, pl_module)
        self.startup_seconds = process_age()
        self._clock.start(self.steps, self.tokens)
        self.progress = self._measure()
        if self._is_over():
            if not self.steps:
                raise self._no_step_fits()
            trainer.should_stop = True  # what is left to the resumed run is shorter than a step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._stopwatch.running:
            self._clock.start(self.steps, self.tokens)
            self.progress = self._measure()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drops a last step that has taken longer than was predicted and would end beyond the limit.

        Without gradients an optimizer changes nothing. On devices this would have to wait for the backward pass.
        """
        if self._clock.is_exact and self.overshoot == "forbid":
            self._update_began = self._now()
            end = self._update_began + self._update_seconds
            if self.steps > 0 and end > self.budget.limits.get("seconds", math.inf):
                self._drop_step(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.clock_synced = self._over
        if self._over:
            return  # this step was dropped
        self._step_tokens += batch[0].numel() * trainer.world_size
        if trainer.global_step == self._trainer_step:
            return  # one of several batches that are accumulated into a step
        self._trainer_step = trainer.global_step
        self.steps += 1
        self.tokens += self._step_tokens
        self._next_tokens, self._step_tokens = self._step_tokens, 0
        self.clock_synced = self._clock.step_ended(self.steps, self.tokens)
        if self.clock_synced:
            self._update_seconds = self._clock.reading.seconds - self._update_began
        self._plan_next_step(trainer)
        if self._is_over():
            self._over = trainer.should_stop = self.clock_synced = True  # Lightning then validates
            self._stopwatch.pause()
        elif self._clock.is_exact:
            self._position = data_position(trainer)
        if is_log_step(trainer, batch_idx):
            log_metrics(trainer, {"time_budget/progress": self.progress.fraction})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.pause(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "training_seconds": self.training_seconds,
            "run_seconds": self._earlier_seconds + process_age(),
            "step_seconds": [tuple(pace) for pace in self._paces],
            "steps": self.steps,
            "tokens": self.tokens,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stopwatch.set(state_dict["training_seconds"])
        self._earlier_seconds = state_dict["run_seconds"]
        self.steps = state_dict["steps"]
        self.tokens = state_dict["tokens"]
        self._next_tokens = self.tokens // max(self.steps, 1)
        for pace in state_dict["step_seconds"]:  # older checkpoints have no tokens there: all steps had as many
            self._paces.append(Pace(*pace) if isinstance(pace, tuple) else Pace(pace, self._next_tokens))

    # Before and between steps

    def _make_clock(self, trainer: Trainer, pl_module: LightningModule) -> Clock:
        if runs_in_step_with_the_program(trainer, pl_module):
            return LocalClock(self._stopwatch, self._now, self._paces, self.steps)
        return SharedClock(
            self._stopwatch,
            lambda: trainer.strategy.broadcast(self._now()),
            self._paces,
            self.steps,
            limit=self.budget.limits.get("seconds", math.inf),
            wait=lambda: wait_for_device(trainer),
        )

    def _now(self) -> float:
        """Seconds of the budget used so far, by this process's clock."""
        return self._stopwatch.seconds if self.scope == "training" else self._earlier_seconds + process_age()

    def _warm_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        later: Iterable[None] = ()
        if self.plan is not None:
            self.plan.prepare(trainer, self.progress)
            later = self.plan.later_steps(trainer, self.progress)
        batch = next_batch(trainer)
        self._position = data_position(trainer)
        batches = trainer.accumulate_grad_batches
        seconds = trainer.strategy.broadcast(warm_up(trainer, pl_module, batch, later) * batches)
        self._next_tokens = batch[0].numel() * trainer.world_size * batches
        self._paces.append(Pace(seconds, self._next_tokens))

    def _plan_next_step(self, trainer: Trainer) -> None:
        """Measures progress, and lets the plan set the next step's size by it."""
        self.progress = self._measure()
        if self.plan is None or self.plan.prepare(trainer, self.progress) in (None, self._next_tokens):
            return
        self._clock.size_changes(self.steps, self.tokens)
        self.clock_synced = True
        self.progress = self._measure()  # on a device, or several ranks, the clock was read only now
        self._next_tokens = self.plan.prepare(trainer, self.progress) or self._next_tokens
        self.progress = self._measure()

    def _drop_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.zero_grad()
        if self._position is not None:
            trainer.train_dataloader.load_state_dict(self._position)  # type: ignore[union-attr]
        self._stopwatch.set(self.training_seconds - (self._update_began - self._clock.reading.seconds))
        self._over = trainer.should_stop = True

    # Arithmetic

    def _measure(self) -> Progress:
        used: dict[Unit, float] = {
            "seconds": self._clock.used(self.tokens),
            "steps": float(self.steps),
            "tokens": float(self.tokens),
        }
        pace = self._paces[-1].of(self._next_tokens) if self._paces else 0.0
        return self.budget.progress(used, {"seconds": pace, "steps": 1.0, "tokens": float(self._next_tokens)})

    def _is_over(self) -> bool:
        if self.overshoot == "allow":
            return self.budget.is_reached(self.progress.used)
        return not self.budget.fits(self.progress.used, self._next_step())

    def _next_step(self) -> dict[Unit, float]:
        """What the next step is predicted to take of each limit."""
        step = dict(self.progress.per_step)
        if "seconds" in self.budget.limits:
            step["seconds"] = self._clock.expected(self._next_tokens)
        return step

    def _no_step_fits(self) -> ConfigError:
        step = self._next_step()
        unit = self.budget.tightest(self.progress.used, step)
        reason = f"it is shorter than one step, which takes about {step[unit]:.3g} {unit}"
        return ConfigError("time_budget.limit", str(Duration(self.budget.limits[unit], unit)), reason)


def runs_in_step_with_the_program(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether reading the clock waits for nothing: neither for a device nor for other ranks."""
    return trainer.world_size == 1 and pl_module.device.type == "cpu"


def read_limits(durations: Iterable[Duration]) -> dict[Unit, float]:
    """Limits by unit, the smallest of each.

    Raises:
        ConfigError: There is none, or one that is not more than 0 of seconds, steps or tokens.
    """
    limits: dict[Unit, float] = {}
    for duration in map(Duration.parse, durations):
        if duration.unit == "fraction" or duration.value == 0:
            raise ConfigError("time_budget.limit", str(duration), "accepted: more than 0 of seconds, steps or tokens")
        limits[duration.unit] = min(duration.value, limits.get(duration.unit, math.inf))
    if not limits:
        raise ConfigError("time_budget.limit", durations, "accepted: one duration, or a list of at least one")
    return limits


def read_reserve(reserve: Duration, limit: float) -> float:
    """Seconds of a reserve, which is a time or a share of `limit` seconds.

    Raises:
        ConfigError: It is neither, or as long as the limit.
    """
    seconds = reserve.value * limit if reserve.unit == "fraction" else reserve.value
    if reserve.unit not in ("fraction", "seconds") or seconds >= limit:
        raise ConfigError("time_budget.reserve", str(reserve), f"accepted: a time or a share, below {limit:g}s")
    return seconds
