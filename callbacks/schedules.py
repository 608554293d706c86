"""Schedules: sets all scheduled values before each step, as functions of the budget's progress.

| target | sets | logged as |
| --- | --- | --- |
| lr, momentum, weight_decay, … | an option of all parameter groups that have it | `lr/<group>`, … |
| `lr.<group>`, … | the option of one group; overrides the target without a group | `lr/<group>`, … |
| data.batch_size, data.seq_len | the size of training batches | data/batch_size, data/seq_len |
| `<part>.<option>` | an option that parts declare in their class attribute `schedulable` | `<part>/<option>` |

`momentum` is the first of the betas if a group has betas. Schedules of absolute values (Ramp, Piecewise) leave out
groups whose own value is 0, such as the weight decay of vectors, unless the target names the group. Batches and parts
have scheduled values only in training steps; validation, and the trained model, use the values of the config. If parts
have different values, the last part's value is logged.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.optim import Optimizer

from bytelm.budget import Progress
from bytelm.callbacks.schedule_targets import (
    BatchSize,
    Group,
    GroupOption,
    PartOption,
    Place,
    apply,
    assign,
    given_value,
    groups_of,
    keep_given_values,
    read_plain,
)
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.changes import Changes, combinations
from bytelm.config.messages import note
from bytelm.errors import ConfigError
from bytelm.log_steps import is_log_step, log_metrics
from bytelm.schedules import Schedule, durations_of
from bytelm.units import Duration, Unit


class Schedules(Callback):
    """Applies schedules.

    Args:
        schedules: Schedules by target: `{"lr": Cosine(), "momentum.hidden": Ramp(0.85, 0.95, "300 steps")}`.

    Attributes:
        values: The scheduled values of the current step, by tag.

    Raises:
        ConfigError: `schedules` is not a mapping, or a value is not a schedule.
    """

    reads_budget = True  # must follow TimeBudget in a trainer's list of callbacks

    def __init__(self, schedules: Mapping[str, Schedule]) -> None:
        super().__init__()
        if not isinstance(schedules, Mapping):
            accepted = 'accepted: a mapping of targets to schedules, such as {"lr": Cosine()}'
            raise ConfigError("schedules", type(schedules).__name__, accepted)
        self.schedules = dict(schedules)
        for target, schedule in self.schedules.items():
            if not isinstance(schedule, Schedule):
                raise ConfigError(f"schedules.{target}", schedule, "accepted: a schedule, such as Cosine()")
        self._assigned: dict[Place, Schedule] = {}
        self._changes: dict[BatchSize | PartOption, Changes] = {}  # changes that the warm-up has to run
        self.values: dict[str, float] = {}
        self._units_checked = False
        # Options as the last step's schedules have set them, and their groups, which loading a checkpoint replaces.
        self._left: dict[GroupOption, tuple[Group, float | None]] = {}
        self._others_noted = False
        self._earlier_rates: list[int] = []  # groups whose learning rate the checkpoint's run has scheduled
        self._too_long: list[tuple[str, Duration]] = []  # lengths that are known not to be reached

    @staticmethod
    def of(trainer: Trainer) -> Optional["Schedules"]:
        """Returns the Schedules of a trainer, if there are any."""
        return next((c for c in trainer.callbacks if isinstance(c, Schedules)), None)  # type: ignore[attr-defined]

    def check(self, pl_module: LightningModule, data: Any, *optimizers: Optimizer) -> None:
        """Rejects targets that a run does not have, and schedules that cannot be applied to their targets.

        Raises:
            ConfigError: One of these.
        """
        assign(self.schedules, pl_module, data, groups_of(optimizers))

    def check_sizes(self, data: Any) -> None:
        """Rejects batch sizes and lengths that the text does not allow, after the data are set up.

        Raises:
            ConfigError: Training batches cannot have one of them.
        """
        for target, schedule in self.schedules.items():
            where, _, option = target.rpartition(".")
            if where == "data":
                sizes = [int(size) for _, size in schedule.changes(getattr(data, option)) or []]
                data.check_sizes(f"schedules.{target}", option, sizes)

    # Hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        if stage == "fit" and any(isinstance(callback, LearningRateMonitor) for callback in before):
            reason = "it would log the rates of the previous step; accepted: Schedules before LearningRateMonitor"
            raise ConfigError("callbacks", "LearningRateMonitor, Schedules", reason)

    def state_dict(self) -> dict[str, Any]:
        scheduled = (place for place in self._assigned if isinstance(place, GroupOption) and place.option == "lr")
        rates = sorted(place.index for place in scheduled)
        return {"rates": rates} if rates else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_rates = state_dict["rates"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if sum(isinstance(callback, Schedules) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ConfigError("trainer.callbacks", "Schedules", "accepted: one for all schedules (the key `schedules`)")
        self._budget = TimeBudget.of(trainer)
        self._budget.plan = self
        self._check_schedulers(trainer)
        data = getattr(trainer, "datamodule", None)
        self._assigned = assign(self.schedules, pl_module, data, groups_of(trainer.optimizers))
        self.check_sizes(data)
        self._keep_given_values(trainer)
        shaping = {place: s for place, s in self._assigned.items() if isinstance(place, BatchSize | PartOption)}
        changes = {place: schedule.changes(place.given) for place, schedule in shaping.items()}
        self._changes = {place: points for place, points in changes.items() if points is not None}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep_given_values(trainer)  # a checkpoint has been loaded since
        limits = self._budget.budget.limits
        self._too_long = [each for each in self._lengths() if _is_too_long(*each, limits)]
        for key, length in self._too_long:
            limit = "100%" if length.unit == "fraction" else Duration(limits[length.unit], length.unit)
            note(f"{key}: {str(length)!r} is not reached, because the run ends at {limit}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer)  # for callbacks that read the rates of an epoch's first step, such as LearningRateMonitor

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._units_checked:
            self._units_checked = True
            self._check_units()
        self._set(trainer)

    def _set(self, trainer: Trainer) -> None:
        """Sets the options of optimizers and parts for the step that begins."""
        progress, groups = self._budget.progress, groups_of(trainer.optimizers)
        for place, schedule in self._assigned.items():
            if isinstance(place, BatchSize):
                self.values[place.tag] = getattr(trainer.train_dataloader, place.option)
                continue
            if isinstance(place, GroupOption):
                self._note_others(place, groups[place.index])
            self.values[place.tag] = apply(place, schedule, groups, progress)
            if isinstance(place, GroupOption):
                self._left[place] = (groups[place.index], read_plain(groups[place.index], place.option))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_log_step(trainer, batch_idx):
            log_metrics(trainer, self.values)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back_parts()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back_parts()
        if not self._budget.is_used_up:  # another callback has ended the run early, or it is one of a few steps
            return
        used = self._budget.progress.used
        for key, length in self._lengths():
            if length.unit != "fraction" and used[length.unit] < length.value and (key, length) not in self._too_long:
                reached = Duration(float(f"{used[length.unit]:.4g}"), length.unit)
                note(f"{key}: {str(length)!r} was not reached, because the run ended after {reached}")

    def _note_others(self, place: GroupOption, group: Group) -> None:
        """Notes, once, that another callback or the module has set an option since the last step."""
        former, left = self._left.get(place, (None, None))
        if former is group and left != (now := read_plain(group, place.option)) and not self._others_noted:
            self._others_noted = True
            what = f"{place.option} of the group {place.group} was set to {now:g} by another callback or the module"
            note(f"{what}: no effect, because a schedule sets it in each step (lr_schedule, schedules)")

    def _lengths(self) -> Iterator[tuple[str, Duration]]:
        """Yields the lengths and points of schedules, and their keys."""
        for target, schedule in self.schedules.items():
            key = "lr_schedule" if target == "lr" else f"schedules.{target}"
            for option, value in vars(schedule).items():
                yield from ((f"{key}.{option}", duration) for duration in durations_of(value))

    def _keep_given_values(self, trainer: Trainer) -> None:
        groups = groups_of(trainer.optimizers)
        keep_given_values(self._assigned, groups, () if trainer.lr_scheduler_configs else self._earlier_rates)
        for schedule in set(self._assigned.values()):
            places = [place for place, each in self._assigned.items() if each is schedule]
            schedule.set_given([given_value(place, groups) for place in places if isinstance(place, GroupOption)])

    def _check_schedulers(self, trainer: Trainer) -> None:
        """Rejects learning-rate schedules if the module has its own scheduler, whose rates they would replace."""
        targets = [target for target in self.schedules if target.partition(".")[0] == "lr"]
        if targets and trainer.lr_scheduler_configs:
            name = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            reason = f"the model's own {name} sets learning rates, too; accepted: one of the two"
            key = "lr_schedule" if targets[0] == "lr" else f"schedules.{targets[0]}"
            how = " (lr_schedule: null leaves them to it)" if targets[0] == "lr" else ""
            raise ConfigError(key, type(self.schedules[targets[0]]).__name__, reason + how)

    def _check_units(self) -> None:
        """Rejects durations in tokens or FLOPs if this run does not count them."""
        for target, schedule in self.schedules.items():
            for duration in durations_of(schedule):
                if duration.value and (reason := self._budget.counts.why_not_in(duration.unit)) is not None:
                    name = "FLOPs" if duration.unit == "flops" else duration.unit
                    raise ConfigError(
                        f"schedules.{target}", type(schedule).__name__, f"a length is in {name}; {reason}"
                    )

    # Called by the budget (time_budget.StepPlan)

    def prepare(self, trainer: Trainer, progress: Progress) -> int | None:
        """Sets the batch size of the step that begins at `progress`; returns its tokens, on all ranks together."""
        loader: Any = trainer.train_dataloader
        sizes = [(place, schedule) for place, schedule in self._assigned.items() if isinstance(place, BatchSize)]
        for place, schedule in sizes:
            setattr(loader, place.option, schedule.value(place.given, progress))
        if not sizes:
            return None
        return int(loader.batch_size * loader.seq_len * trainer.world_size * trainer.accumulate_grad_batches)

    def later_steps(self, trainer: Trainer, progress: Progress) -> Iterator[None]:
        """Sets each combination of sizes and options that later steps have, one by one, and finally the first again."""
        for values in combinations(self._changes, progress)[1:]:
            for shape, value in values.items():
                if isinstance(shape, BatchSize):
                    setattr(trainer.train_dataloader, shape.option, value)
                else:
                    shape.set(value)
            yield
        self.prepare(trainer, progress)
        groups = groups_of(trainer.optimizers)
        for place, schedule in self._assigned.items():
            if isinstance(place, PartOption):
                apply(place, schedule, groups, progress)

    def _give_back_parts(self) -> None:
        for place in self._assigned:
            if isinstance(place, PartOption):
                place.set(place.given)


def _is_too_long(key: str, length: Duration, limits: Mapping[Unit, float]) -> bool:
    """Returns whether a length is known not to be reached in a run. A warm-up that ends with the run is not."""
    limit = 1.0 if length.unit == "fraction" else limits.get(length.unit, math.inf)
    return length.value >= limit if key.endswith(".warmup") else length.value > limit
