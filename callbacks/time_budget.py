"""TimeBudget: ends training when its time (or steps, tokens or FLOPs) are used up, and measures the run's progress.

It works with any LightningModule (docs/time-budget.md). The clock runs from batch to batch, as in a plain training
loop, and stops while Lightning validates or writes a checkpoint. If a module's step can be undone, a warm-up pass does
all compilation and first-call work before the clock starts. Other callbacks read `progress` and `clock_synced`, which
says whether all ranks read the clock together at the end of this step.

| logged | value |
| --- | --- |
| time_budget/progress | used share of the budget, 0 to 1 |
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.optim import Optimizer

from bytelm.budget import Budget, Progress
from bytelm.callbacks.batch_counts import BatchCounts, of_all_ranks
from bytelm.callbacks.own_schedulers import check_lengths
from bytelm.callbacks.run_limits import TRAINERS_LIMITS, check_trainers_limits, read_limits, read_reserve
from bytelm.callbacks.snapshot import cloned
from bytelm.callbacks.warm_up import data_position, is_repeatable, next_batch, wait_for_device, warm_up, why_not
from bytelm.clock import Clock, LocalClock, Pace, SharedClock, Stopwatch
from bytelm.config.messages import note
from bytelm.errors import ConfigError
from bytelm.log_steps import is_log_step, log_metrics
from bytelm.ranks import Ranks
from bytelm.system.behind import DeviceClock
from bytelm.system.process import process_age
from bytelm.units import LIMITS, Duration, Unit, read_duration

RESERVE = Duration(0.05, "fraction")
RECENT_STEPS = 16  # readings that a step's time is predicted from: about a dozen of them are in the last second


class StepPlan(Protocol):
    """Decides the size of steps. callbacks/schedules.py registers itself as the budget's `plan`."""

    def prepare(self, trainer: Trainer, progress: Progress) -> int | None:
        """Sets the sizes and options for the step that begins at `progress`.

        Returns:
            Its tokens, on all ranks together; None: as many as in the last step.
        """

    def later_steps(self, trainer: Trainer, progress: Progress) -> Iterable[None]:
        """Sets each variant of the later steps, one by one, for the warm-up; finally restores the first."""


class TimeBudget(Callback):
    """Stops training at a limit of time, steps, tokens or FLOPs, whichever is reached first.

    Args:
        limit: `180s`, `3m`, `1h30m`, `500 steps`, `300 Mtok`, `2 PFLOP`, or a list of these.
        scope: The time that counts. `training`: training steps only, without start-up, compilation, validation or
            checkpoints. `run`: everything since the process started, for a cluster's job limit.
        reserve: With `scope: run` and a limit of time: time kept for the final validation and checkpoint; a share is a
            share of the limit.
        overshoot: `forbid`: a step that is predicted to exceed the limit is not started. `allow`: training stops after
            the first step that reaches the limit.
        warm_up: Whether a forward and backward pass is run and undone before the clock starts. `auto`: only if the
            module declares that the pass leaves no trace, as bytelm's module does. Without it, the first step counts,
            including its compilation.

    Attributes:
        limits: The limits as text.
        progress: The state of the run, before the step that begins.
        clock_synced: Whether all ranks have read the clock together after the step that has just ended.
        steps: Steps taken, as Lightning counts them in `trainer.global_step`.
        tokens: Tokens trained on, by all ranks; 0 if they are unknown.
        flops: FLOPs of training so far, of all ranks, without those of validation; 0 if they are unknown.
        counts: Counts batches in tokens and FLOPs, if these are known.
        startup_seconds: Time from the start of the process to the start of the clock.
        plan: Decides the size of steps; None: only the data decide.
        UNITS: Units of the durations that do not take all of them, by option.
    """

    UNITS: ClassVar[dict[str, tuple[Unit, ...]]] = {"limit": LIMITS, "reserve": ("seconds", "fraction")}

    def __init__(
        self,
        limit: Duration | list[Duration] = Duration(180, "seconds"),  # noqa: B008 (frozen)
        scope: Literal["training", "run"] = "training",
        reserve: Duration = RESERVE,
        overshoot: Literal["forbid", "allow"] = "forbid",
        warm_up: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        _check_choice("scope", scope, ("training", "run"))
        _check_choice("overshoot", overshoot, ("forbid", "allow"))
        _check_choice("warm_up", warm_up, ("auto", True, False))
        limits = read_limits(limit if isinstance(limit, list) else [limit])
        self.limits = [str(Duration(value, unit)) for unit, value in limits.items()]
        reserve = read_duration("time_budget.reserve", reserve, *self.UNITS["reserve"])
        if scope == "run" and "seconds" in limits:
            limits["seconds"] -= read_reserve(reserve, limits["seconds"])
        elif reserve != RESERVE:
            accepted = "accepted: with scope: run and a limit of time; otherwise leave it out"
            raise ConfigError("time_budget.reserve", str(reserve), accepted)
        self.budget = Budget(limits)
        self.scope = scope
        self.overshoot = overshoot
        self.warm_up = warm_up
        self.plan: StepPlan | None = None
        self._trainer: Trainer | None = None
        self._begin()

    def _begin(self) -> None:
        """Resets all that is known of a run to its state before the start."""
        self.steps = 0
        self.tokens = 0
        self.flops = 0
        self.counts = BatchCounts()
        self.startup_seconds: float | None = None
        self._earlier_seconds = 0.0  # `scope: run`: time used before this process, by the run that it resumes
        self._ranks: Ranks | None = None
        self._stopwatch = Stopwatch()
        self._paces: deque[Pace] = deque(maxlen=RECENT_STEPS)
        self._clock: Clock = LocalClock(self._stopwatch, self._now, self._paces)
        self._updates = 0  # batches of this process with a step, as reported to the clock
        self._next_steps = 1  # of the next batch: more than 1 if it has several optimizers
        self._next_tokens = 0  # of the step that begins
        self._next_flops = 0
        self._knows_flops = True  # older checkpoints have none
        self._step_tokens = self._step_flops = 0  # of the current step, so far, on this rank
        self._trainer_step = 0  # Lightning's count, which increases even if a step is dropped
        self._update_began = self._update_seconds = 0.0  # the optimizer's part of a step
        self._repeatable = False
        self._warms_up_first_batch = False
        self._over = False
        self._position: dict[str, Any] | None = None  # position of the data after the last step
        self.clock_synced = False
        self.progress = self._measure()

    @property
    def ranks(self) -> Ranks:
        """The ranks of the run that trains, for agreements between them."""
        assert self._ranks is not None, "training has begun"
        return self._ranks

    @property
    def training_seconds(self) -> float:
        """Time spent in training steps so far."""
        return self._stopwatch.seconds

    @property
    def is_used_up(self) -> bool:
        """Whether the budget has no room for another step."""
        return self._over or self._is_over()

    def pause(self) -> None:
        """Stops the clock until the next step begins, for work that is not training."""
        if self._stopwatch.running:
            self._clock.pause()

    @staticmethod
    def of(trainer: Trainer) -> "TimeBudget":
        """Returns the budget of a trainer.

        Raises:
            ConfigError: The trainer has no TimeBudget.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TimeBudget):
                return callback
        raise ConfigError("trainer.callbacks", "no TimeBudget", "its progress is needed; accepted: with a TimeBudget")

    # Hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        _check_limits(trainer, "min_steps", "min_epochs")  # with these, Lightning would train beyond the budget
        self._check_order(trainer)
        if self._trainer is not None and self._trainer is not trainer:
            self._begin()  # another trainer's run is over; the same trainer continues its own
        self._trainer = trainer

    def check(self, trainer: Trainer) -> None:
        """Rejects the trainer's own limits, because only the budget may end the run.

        Raises:
            ConfigError: One of them is set.
        """
        _check_limits(trainer, *TRAINERS_LIMITS)

    def _check_order(self, trainer: Trainer) -> None:
        """Rejects bytelm callbacks before this one: they would read the budget before it has read the clock.

        Raises:
            ConfigError: There is such a callback.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks[: callbacks.index(self)]:
            if getattr(callback, "reads_budget", False):
                name = type(callback).__name__
                raise ConfigError("callbacks", f"{name}, TimeBudget", f"accepted: TimeBudget before {name}")

    def check_resume(self, state: Mapping[str, Any]) -> None:
        """Rejects a run that has trained longer than this budget: its score would be listed beside those of this limit.

        Args:
            state: The state of the run's budget, from its checkpoint.

        Raises:
            ConfigError: It has trained for more than the limit, by at least a step.
        """
        seconds = state["training_seconds" if self.scope == "training" else "run_seconds"]
        used = {"seconds": seconds, "flops": 0, **state}  # older checkpoints have no FLOPs
        for unit, limit in self.budget.limits.items():
            if used[unit] >= limit + used[unit] / max(state["steps"], 1):
                trained = f"the checkpoint's run has trained for {Duration(used[unit], unit)}"
                accepted = "accepted: more than that, or a new run (without ckpt_path)"
                raise ConfigError("time_budget.limit", ", ".join(self.limits), f"{trained}; {accepted}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_lengths(trainer)
        if trainer.max_epochs == -1 and any(isinstance(c, StochasticWeightAveraging) for c in trainer.callbacks):  # type: ignore[attr-defined]
            reason = "it would never average: it counts back from max_epochs, which is -1"
            accepted = "accepted: EMAWeightAveraging, WeightAveraging, or as many max_epochs as the budget has time for"
            raise ConfigError("callbacks", "StochasticWeightAveraging", f"{reason}; {accepted}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over = False
        self._updates = 0
        self._trainer_step = trainer.global_step
        if self._ranks is None:
            self._ranks = Ranks(trainer)
        self._repeatable = is_repeatable(pl_module)
        self._clock = self._make_clock(trainer, pl_module)
        self.counts.find(trainer)
        self._clock.look(self._updates, self._work)
        self.progress = self._measure()
        if self.steps and self._is_over():
            note(f"the run had used up its budget ({self.steps} steps); nothing is trained, and it is scored")
            trainer.should_stop = True
            return
        self._check_age()
        if self.plan is not None:
            self.plan.prepare(trainer, self.progress)
        if self._warms_up(trainer, pl_module):
            if data_position(trainer) is None:
                self._warms_up_first_batch = True  # no batch can be inspected before training takes it
                return
            self._run_warm_up(trainer, pl_module, lambda: next_batch(trainer))
        if self.steps:
            self._prepare(pl_module)  # again after a restart: the previous process has counted it
        self._start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if None in (self.counts.knows("tokens"), self.counts.knows("flops")):
            self.counts.find(trainer, batch)
            self._check_units()
        if not self._knows_flops:  # as if all batches so far had been like this one
            self._knows_flops = True
            self.flops = self.tokens * self.counts.of(batch, "flops") // max(self.counts.of(batch, "tokens"), 1)
            self.progress = self._measure()
        if self._warms_up_first_batch:
            self._warms_up_first_batch = False
            self._run_warm_up(trainer, pl_module, lambda: cloned(batch))
            self._start(trainer)
        if not self._stopwatch.running:
            self._clock.start(self._updates, self._work)
            self.progress = self._measure()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drops a last step that has taken longer than predicted and would end beyond the limit.

        Without gradients, an optimizer changes nothing. On devices this would require a wait for the backward pass.
        Hooks of modules other than bytelm's may need gradients: there, a step that has begun is finished.
        """
        if self._repeatable and self._clock.is_exact and self.overshoot == "forbid":
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
        if batch is not None:  # Lightning continues without one
            self._step_tokens += self.counts.of(batch, "tokens")
            self._step_flops += self.counts.of(batch, "flops")
        steps = trainer.global_step - self._trainer_step
        if not steps and pl_module.automatic_optimization:
            return  # one of several batches that are accumulated into a step
        self._trainer_step = trainer.global_step
        self._updates += 1
        self.steps += steps
        self._next_steps = steps or self._next_steps
        if self.counts.knows("tokens") or self.counts.knows("flops"):
            self._next_tokens, self._next_flops = of_all_ranks(trainer, self._step_tokens, self._step_flops)
            self._step_tokens = self._step_flops = 0
            self.tokens += self._next_tokens
            self.flops += self._next_flops
        self.clock_synced = self._clock.step_ended(self._updates, self._work)
        if self.clock_synced:
            self._update_seconds = self._clock.reading.seconds - self._update_began
        self._plan_next_step(trainer)
        if self._updates == 1 and self.overshoot == "forbid":
            self._note_long_first_step()
        if self._is_over():
            self._over = trainer.should_stop = self.clock_synced = True  # Lightning then validates
            self._clock.pause()
        elif self._repeatable and self._clock.is_exact:
            self._position = data_position(trainer)
        if is_log_step(trainer, batch_idx):
            log_metrics(trainer, {"time_budget/progress": self.progress.fraction})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause()
        if self._over or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for key, limit, reached in (
            ("max_epochs", trainer.max_epochs, trainer.current_epoch),
            ("max_steps", trainer.max_steps, trainer.global_step),
        ):
            if limit is not None and 0 <= limit <= reached:
                used = f"with {self.progress.fraction:.0%} of the time budget used"
                note(f"trainer.{key}={limit} has ended training {used}; {key}=-1 leaves that to the budget")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stopwatch.pause()  # does not wait for a device, which may be the part that failed

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.pause()

    def state_dict(self) -> dict[str, Any]:
        # Callbacks before this one may save a checkpoint of a step that has ended, and is not yet counted here.
        ended = 0
        if self._trainer is not None and self._trainer.training and not self._over:
            ended = max(self._trainer.global_step - self._trainer_step, 0)
        return {
            "training_seconds": self.training_seconds,
            "run_seconds": self._earlier_seconds + process_age(),
            "step_seconds": [tuple(pace) for pace in self._paces],
            "steps": self.steps + ended,
            "tokens": self.tokens + (self._next_tokens if ended else 0),
            "flops": self.flops + (self._next_flops if ended else 0),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._begin()
        self._stopwatch.set(state_dict["training_seconds"])
        self._earlier_seconds = state_dict["run_seconds"]
        self.steps = state_dict["steps"]
        self.tokens = state_dict["tokens"]
        self._knows_flops = "flops" in state_dict
        self.flops = state_dict.get("flops", 0)
        self._next_flops = self.flops // max(self.steps, 1)
        self._next_tokens = self.tokens // max(self.steps, 1) or 1  # 1: if tokens are not counted, steps are
        for pace in state_dict["step_seconds"]:  # older checkpoints have no tokens there: all steps had the same number
            self._paces.append(Pace(*pace) if isinstance(pace, tuple) else Pace(pace, self._next_tokens))
        self._clock.look(self._updates, self._work)  # it would count the tokens so far as time that was not read
        self.progress = self._measure()

    # Before and between steps

    def _make_clock(self, trainer: Trainer, pl_module: LightningModule) -> Clock:
        if runs_in_step_with_the_program(trainer, pl_module):
            return LocalClock(self._stopwatch, self._now, self._paces)
        ends = DeviceClock(trainer.strategy.root_device, self._now)

        def mark() -> Callable[[], float]:
            end = ends.mark()
            return lambda: self.ranks.first(end())

        return SharedClock(
            self._stopwatch,
            lambda: self.ranks.first(ends.now()),
            self._paces,
            limit=self.budget.limits.get("seconds", math.inf),
            wait=lambda: wait_for_device(trainer),
            mark=mark,
        )

    def _now(self) -> float:
        """Seconds of the budget used so far, on this process's clock."""
        return self._stopwatch.seconds if self.scope == "training" else self._earlier_seconds + process_age()

    @property
    def _work(self) -> int:
        """Work so far, for measuring the pace: tokens; if these are unknown, steps of this process."""
        return self._updates if self.counts.knows("tokens") is False else self.tokens

    @property
    def _next_work(self) -> int:
        """Work of the step that begins, in the same unit."""
        return 1 if self.counts.knows("tokens") is False else self._next_tokens

    def _check_units(self) -> None:
        """Rejects limits in units that this run does not count, after its first batch."""
        for unit, limit in self.budget.limits.items():
            if (reason := self.counts.why_not_in(unit)) is not None:
                raise ConfigError("time_budget.limit", str(Duration(limit, unit)), reason)

    def _check_age(self) -> None:
        """Rejects a limit of `scope: run` that has passed before training begins, as in a notebook."""
        limit, used = self.budget.limits.get("seconds", math.inf), self._clock.reading.seconds
        if self.scope == "run" and not self.steps and used >= limit:
            reason = f"scope: run counts from the start of this process, {used:.0f}s ago; accepted: more, or"
            raise ConfigError("time_budget.limit", str(Duration(limit, "seconds")), f"{reason} scope: training")

    def _warms_up(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Returns whether a warm-up pass is run, according to `warm_up`.

        Raises:
            ConfigError: The pass is required, but cannot be undone.
        """
        if self.warm_up is False:
            return False
        reason = why_not(trainer, pl_module)
        if self.warm_up is True:
            if reason is not None:
                raise ConfigError("time_budget.warm_up", True, f"{reason}; accepted: auto, false")
            return True
        if reason is None and not self._repeatable:
            name = type(pl_module).__name__
            reason = f"{name}.training_step may change more than can be put back (warm_up=True puts back most)"
        if reason is not None:
            note(f"no warm-up pass: {reason}; the first step counts, including its compilation")
        return reason is None

    def _run_warm_up(self, trainer: Trainer, pl_module: LightningModule, first_batch: Callable[[], Any]) -> None:
        later: Iterable[None] = () if self.plan is None else self.plan.later_steps(trainer, self.progress)
        self._position = data_position(trainer)
        batches = trainer.accumulate_grad_batches
        batch = first_batch()
        counts = (self.counts.of(batch, "tokens") * batches, self.counts.of(batch, "flops") * batches)
        tokens, flops = of_all_ranks(trainer, *counts)
        seconds = warm_up(trainer, pl_module, first_batch, later, not self._repeatable)
        self._next_tokens, self._next_flops = tokens, flops
        self._paces.append(Pace(trainer.strategy.broadcast(seconds * batches), self._next_work))

    def _start(self, trainer: Trainer, unprepared: LightningModule | None = None) -> None:
        """Starts the clock for the first step of this process.

        Args:
            trainer: The trainer.
            unprepared: The module, if it may have to be prepared for the first step.
        """
        self.startup_seconds = process_age()
        self._clock.start(self._updates, self._work)
        if not self.steps and unprepared is not None:
            self._prepare(unprepared, self.budget.limits.get("seconds", math.inf))
            self._clock.look(self._updates, self._work)
        self.progress = self._measure()
        if self._is_over():
            if not self.steps:
                raise self._no_step_fits()
            trainer.should_stop = True  # the resumed run has less time left than a step takes

    def _prepare(self, pl_module: LightningModule, limit: float = math.inf) -> None:
        """Runs the module's work before the first step: its `prepare_in_pieces`, an iterator of pieces of work.

        Args:
            pl_module: The module, with or without such a method.
            limit: Seconds of the budget after which the work is ended.

        Raises:
            ConfigError: The limit is reached before the work is done.
        """
        for _ in getattr(pl_module, "prepare_in_pieces", tuple)():
            if limit < math.inf and self._clock.now() >= limit:
                reason = "it was used up before the first step, while the model was prepared (a memory is filled then)"
                error = ConfigError("time_budget.limit", str(Duration(limit, "seconds")), reason)
                error.on_all_ranks = True  # they read one clock
                raise error

    def _plan_next_step(self, trainer: Trainer) -> None:
        """Measures progress, and lets the plan set the next step's size from it."""
        self.progress = self._measure()
        if self.plan is None or self.plan.prepare(trainer, self.progress) in (None, self._next_tokens):
            return
        self._clock.size_changes(self._updates, self._work)
        self.clock_synced = True
        self.progress = self._measure()  # on a device, or with several ranks, the clock was read only now
        self._next_tokens = self.plan.prepare(trainer, self.progress) or self._next_tokens
        self._next_flops = self._planned_flops(trainer)
        self.progress = self._measure()

    def _note_long_first_step(self) -> None:
        """Says that the first step has passed a limit: how long it would take was not known, or not well."""
        for unit, limit in self.budget.limits.items():
            if (used := self.progress.used[unit]) > limit:
                amount, whole = (Duration(float(f"{each:.4g}"), unit) for each in (used, limit))
                note(f"the first step has passed time_budget.limit: {amount} of {whole} are used; training ends")

    def _planned_flops(self, trainer: Trainer) -> int:
        """Returns the FLOPs of a step of the sizes that the plan has set in the loader, on all ranks together."""
        loader: Any = trainer.train_dataloader
        shape = torch.empty(loader.batch_size, loader.seq_len, device="meta")  # a batch without memory
        return self.counts.of((shape, shape), "flops") * trainer.world_size * trainer.accumulate_grad_batches

    def _drop_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.zero_grad()
        if self._position is not None:
            trainer.train_dataloader.load_state_dict(self._position)  # type: ignore[union-attr]
        self._stopwatch.set(self.training_seconds - (self._update_began - self._clock.reading.seconds))
        self._over = trainer.should_stop = True

    # Arithmetic

    def _measure(self) -> Progress:
        used: dict[Unit, float] = {
            "seconds": self._clock.used(self._work),
            "steps": float(self.steps),
            "tokens": float(self.tokens),
            "flops": float(self.flops),
        }
        pace = self._paces[-1].of(self._next_work) if self._paces else 0.0
        tokens = float(self._next_tokens) if self.counts.knows("tokens") else 0.0
        per_step: dict[Unit, float] = {"seconds": pace, "steps": float(self._next_steps), "tokens": tokens}
        return self.budget.progress(used, {**per_step, "flops": float(self._next_flops)})

    def _is_over(self) -> bool:
        if self.overshoot == "allow":
            return self.budget.is_reached(self.progress.used)
        return not self.budget.fits(self.progress.used, self._next_step())

    def _next_step(self) -> dict[Unit, float]:
        """Returns the predicted use of each limit by the next step."""
        step = dict(self.progress.per_step)
        if "seconds" in self.budget.limits:
            step["seconds"] = self._clock.expected(self._next_work)
        return step

    def _no_step_fits(self) -> ConfigError:
        step = self._next_step()
        unit = self.budget.tightest(self.progress.used, step)
        used = self.progress.used[unit]
        before = ""
        if used >= 0.001:  # only time has been used; not that between two readings of the clock
            what = "since the start of the program" if self.scope == "run" else "of preparing the model"
            before = f", after {_about(used, unit)} {what}"
        reason = f"it is shorter than one step, which takes {_about(step[unit], unit)}{before}"
        accepted = f"accepted: from {_about(used + step[unit], unit)}"
        return ConfigError("time_budget.limit", str(Duration(self.budget.limits[unit], unit)), f"{reason}; {accepted}")


def _about(amount: float, unit: Unit) -> str:
    """Returns an amount as text: an estimated time with three digits, or an exact count."""
    return f"about {Duration(float(f'{amount:.3g}'), unit)}" if unit == "seconds" else str(Duration(amount, unit))


def _check_choice(option: str, value: object, accepted: tuple[object, ...]) -> None:
    """Rejects a value that is not one of the accepted ones, as a config's types do."""
    if value not in accepted:
        raise ConfigError(f"time_budget.{option}", value, f"accepted: {', '.join(map(str, accepted))}")


def _check_limits(trainer: Trainer, *options: str) -> None:
    """Rejects the Trainer's own limits in a run that is no `fast_dev_run`, which sets them itself."""
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        check_trainers_limits({option: getattr(trainer, option) for option in options})


def runs_in_step_with_the_program(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Returns whether reading the clock requires no wait, neither for a device nor for other ranks."""
    return trainer.world_size == 1 and pl_module.device.type == "cpu"
