"""TimeBudget: ends training when the time (or the steps, or the tokens) are used up, and says how far along it is.

The clock runs from batch to batch, as the clock of a plain training loop would, and stands still while Lightning
validates or writes a checkpoint. Before it starts, a warm-up pass gets compilation and first-call costs over with.
Other callbacks read `progress`, and `is_meeting`: whether this is a step at whose end all ranks have read the clock
together.

| logged | what |
| --- | --- |
| time_budget/progress | share of the budget used, 0 to 1 |
"""

import math
import time
from collections import deque
from typing import Any, Literal, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch.optim import Optimizer

from bytelm.callbacks.warm_up import data_position, next_batch, wait_for_device, warm_up
from bytelm.config.messages import note
from bytelm.errors import ConfigError
from bytelm.log_steps import is_log_step, log_metrics
from bytelm.system.process import process_age
from bytelm.units import Duration, Progress, Unit

ENDS_A_RUN = "time_budget.limit decides when a run ends (500 steps, 3m, …)"


class TimeBudget(Callback):
    """Stops training at a limit of time, steps or tokens, whichever is reached first.

    Args:
        limit: `180s`, `3m`, `1h30m`, `500 steps`, `300 Mtok`, or a list of these.
        scope: What time counts. `training`: training steps only, not start-up, compilation, validation or
            checkpoints. `run`: everything since the process started, for a cluster's job limit.
        reserve: With `scope: run`, the time kept for the final validation and checkpoint; a share is one of the limit.
        overshoot: `forbid`: a step that is predicted not to fit is not started. `allow`: training stops after the
            first step that reaches the limit.
    """

    def __init__(
        self,
        limit: Duration | list[Duration] = Duration(180, "seconds"),  # noqa: B008 (frozen)
        scope: Literal["training", "run"] = "training",
        reserve: Duration = Duration(0.05, "fraction"),  # noqa: B008
        overshoot: Literal["forbid", "allow"] = "forbid",
    ) -> None:
        super().__init__()
        self.limits: dict[Unit, float] = {}
        for duration in map(Duration.parse, limit if isinstance(limit, list) else [limit]):
            if duration.unit == "fraction" or duration.value == 0:
                raise ConfigError(
                    "time_budget.limit", str(duration), "accepted: more than 0 of seconds, steps or tokens"
                )
            self.limits[duration.unit] = min(duration.value, self.limits.get(duration.unit, float("inf")))
        if not self.limits:
            raise ConfigError("time_budget.limit", limit, "accepted: one duration, or a list of at least one")
        self.scope = scope
        self.overshoot = overshoot
        if scope == "run" and "seconds" in self.limits:
            self.limits["seconds"] -= self._reserve_seconds(Duration.parse(reserve))

        self.steps = 0
        self.tokens = 0
        self.startup_seconds: float | None = None  # from the start of the process to that of the clock
        self._stopwatch = Stopwatch()
        self._earlier_seconds = 0.0  # `scope: run`: used before this process, by the run that it resumes
        self._reading = Reading(step=0, seconds=0.0)
        self._next_reading = 0  # the step after which it is due
        self._first_step = 0  # of this process, which is no measure of the others
        self._step_seconds: deque[float] = deque(maxlen=16)  # one a reading: a dozen of them fall into the last second
        self._tokens_per_step = 0
        self._step_tokens = 0  # of the step under way
        self._trainer_step = 0  # Lightning's count, which goes on where a step is dropped
        self._update_began = self._update_seconds = 0.0  # the optimizer's share of a step
        self._exact = True
        self._over = False
        self._position: dict[str, Any] | None = None  # of the data, after the last step
        self.is_meeting = False
        self.progress = self._measure()

    @property
    def training_seconds(self) -> float:
        """Time spent in training steps so far."""
        return self._stopwatch.seconds

    def pause(self, trainer: Trainer) -> None:
        """Stops the clock until the next step begins: for work that is no training."""
        if self._stopwatch.running:
            if not self._exact:
                wait_for_device(trainer)
            self._stopwatch.pause()

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
        """Refuses the trainer's own limits, which would end a run without its final validation.

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
        self._exact = trainer.world_size == 1 and pl_module.device.type == "cpu"
        self._trainer_step = trainer.global_step
        self._reading = self._shared_reading(trainer)
        self.progress = self._measure()
        if self.steps and self._is_over():
            note(f"the run had used up its budget ({self.steps} steps): nothing is trained, it is scored")
            trainer.should_stop = True
            return
        batch = next_batch(trainer)
        self._position = data_position(trainer)
        step_seconds = warm_up(trainer, pl_module, batch) * trainer.accumulate_grad_batches
        self._step_seconds.append(trainer.strategy.broadcast(step_seconds))
        self._tokens_per_step = batch[0].numel() * trainer.world_size * trainer.accumulate_grad_batches
        self._first_step = self.steps + 1
        self._next_reading = self._first_step
        self.startup_seconds = process_age()
        self._start_clock(trainer)
        self.progress = self._measure()
        if self._is_over():
            if not self.steps:
                raise self._no_step_fits()
            trainer.should_stop = True  # what is left to the run that goes on is no whole step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._stopwatch.running:
            self._start_clock(trainer)
            self.progress = self._measure()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drops a last step that has taken longer than was predicted and would end beyond the limit.

        Without gradients an optimizer changes nothing. On devices this would have to wait for the backward pass.
        """
        if self._exact and self.overshoot == "forbid":
            self._update_began = self._shared_reading(trainer).seconds
            end = self._update_began + self._update_seconds
            if self.steps > 0 and end > self.limits.get("seconds", math.inf):
                pl_module.zero_grad()
                if self._position is not None:
                    trainer.train_dataloader.load_state_dict(self._position)  # type: ignore[union-attr]
                self._stopwatch = Stopwatch(self.training_seconds - (self._update_began - self._reading.seconds))
                self._over = trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.is_meeting = self._over
        if self._over:
            return  # this step was dropped
        self._step_tokens += batch[0].numel() * trainer.world_size
        if trainer.global_step == self._trainer_step:
            return  # one of several batches that are accumulated into a step
        self._trainer_step = trainer.global_step
        self.steps += 1
        self.tokens += self._step_tokens
        self._tokens_per_step, self._step_tokens = self._step_tokens, 0
        if self._exact or self.steps >= self._next_reading:
            self.is_meeting = True
            self._read_clock(trainer)
            self._update_seconds = self._reading.seconds - self._update_began
        self.progress = self._measure()
        if self._is_over():
            self._over = trainer.should_stop = self.is_meeting = True  # Lightning then validates
            self._stopwatch.pause()
        elif self._exact:
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
            "step_seconds": list(self._step_seconds),
            "steps": self.steps,
            "tokens": self.tokens,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stopwatch = Stopwatch(state_dict["training_seconds"])
        self._earlier_seconds = state_dict["run_seconds"]
        self._step_seconds.extend(state_dict["step_seconds"])
        self.steps = state_dict["steps"]
        self.tokens = state_dict["tokens"]
        self._tokens_per_step = self.tokens // max(self.steps, 1)

    # The clock
    #
    # A single process on the CPU reads it after every step, for nothing. Elsewhere a reading has a price: a device runs
    # behind the program and must be waited for, and ranks must agree on one clock, that of rank 0. So readings are a
    # second apart, and closer as the limit nears. In between, the last reading is carried on at the pace of the last
    # stretch, by the same arithmetic on all ranks, so that they agree on progress (and with it on the learning rate)
    # and on the last step without a collective in every step. The pace of the first step, in which an optimizer makes
    # its state and a memory is filled, is not carried on: on an H200 it was five times that of the others, so that a
    # warm-up of the rate jumped ahead and fell back.

    def _start_clock(self, trainer: Trainer) -> None:
        self._stopwatch.start()
        self._reading = self._shared_reading(trainer)

    def _read_clock(self, trainer: Trainer) -> None:
        if not self._exact:
            wait_for_device(trainer)
        last, self._reading = self._reading, self._shared_reading(trainer)
        if not self._exact and last.step == self._first_step:
            self._step_seconds.clear()
        self._step_seconds.append((self._reading.seconds - last.seconds) / (self._reading.step - last.step))
        if not self._exact and last.step >= self._first_step:
            left = self.limits.get("seconds", float("inf")) - self._reading.seconds
            self._next_reading = self.steps + max(1, int(min(left / 4, 1.0) / max(self._step_seconds[-1], 1e-9)))

    def _shared_reading(self, trainer: Trainer) -> "Reading":
        seconds = self._stopwatch.seconds if self.scope == "training" else self._earlier_seconds + process_age()
        return Reading(self.steps, seconds if self._exact else trainer.strategy.broadcast(seconds))

    def _measure(self) -> Progress:
        pace = self._step_seconds[-1] if self._step_seconds else 0.0
        used: dict[Unit, float] = {
            "seconds": self._reading.seconds + (self.steps - self._reading.step) * pace,
            "steps": float(self.steps),
            "tokens": float(self.tokens),
        }
        per_step: dict[Unit, float] = {"seconds": pace, "steps": 1.0, "tokens": float(self._tokens_per_step)}
        fraction = max(used[unit] / limit for unit, limit in self.limits.items())
        return Progress(min(fraction, 1.0), used, per_step, self.limits)

    def _is_over(self) -> bool:
        used = self.progress.used
        if self.overshoot == "allow":
            return any(used[unit] >= limit for unit, limit in self.limits.items())
        return any(used[unit] + self._next_step(unit) > limit for unit, limit in self.limits.items())

    def _next_step(self, unit: Unit) -> float:
        """What the next step is predicted to take of a limit.

        Of seconds, as long as the last ones did on average; the slowest of them, where a step that has begun cannot be
        dropped any more.
        """
        if unit != "seconds":
            return self.progress.per_step[unit]
        return sum(self._step_seconds) / len(self._step_seconds) if self._exact else max(self._step_seconds)

    def _reserve_seconds(self, reserve: Duration) -> float:
        limit = self.limits["seconds"]
        seconds = reserve.value * limit if reserve.unit == "fraction" else reserve.value
        if reserve.unit not in ("fraction", "seconds") or seconds >= limit:
            raise ConfigError("time_budget.reserve", str(reserve), f"accepted: a time or a share, below {limit:g}s")
        return seconds

    def _no_step_fits(self) -> ConfigError:
        unit = max(self.limits, key=lambda unit: (self.progress.used[unit] + self._next_step(unit)) / self.limits[unit])
        reason = f"it is shorter than one step, which takes about {self._next_step(unit):.3g} {unit}"
        return ConfigError("time_budget.limit", str(Duration(self.limits[unit], unit)), reason)


class Reading(NamedTuple):
    """What the clock, the same for all ranks, showed after a step."""

    step: int
    seconds: float


class Stopwatch:
    """Adds up the time between starts and pauses.

    Args:
        seconds: What it shows at first.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._started: float | None = None

    @property
    def running(self) -> bool:
        return self._started is not None

    @property
    def seconds(self) -> float:
        return self._seconds if self._started is None else self._seconds + time.perf_counter() - self._started

    def start(self) -> None:
        self._started = time.perf_counter()

    def pause(self) -> None:
        self._seconds, self._started = self.seconds, None
