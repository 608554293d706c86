"""Divergence: ends a run whose loss has become NaN or infinite, or resumes it from its last good checkpoint.

On the CPU, the loss is checked after every step. On a device this would require a wait in every step; there the losses
are collected when the budget's clock is read, about once a second, and checked at the next reading, when the device has
long computed them. At the last step they are checked at once.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bytelm.callbacks.averages import restore_averages
from bytelm.callbacks.last_checkpoint import LastCheckpoint
from bytelm.callbacks.schedules import Schedules
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.config.messages import note
from bytelm.config.values import NonNegativeInt, UnitInterval
from bytelm.errors import ConfigError, Diverged
from bytelm.log_steps import ends_step
from bytelm.runs.checkpoints import Contents
from bytelm.system.behind import HostCopy, runs_behind

NEVER = 2**62


class Divergence(Callback):
    """Handles training that diverges.

    Args:
        on_divergence: `stop`: the run ends with status 1 and `diverged` in its record, and the last good checkpoint is
            kept. `rewind`: weights and optimizer are restored from the last good checkpoint, and training continues
            from there with a lower learning rate, on the next rows; the lost time is not returned.
        max_rewinds: After this many rewinds, a divergence ends the run as with `stop`.
        lr_factor: Factor applied to the learning rates at every rewind.
    """

    UNUSED_WITH: ClassVar = {"max_rewinds": ("on_divergence", ("stop",)), "lr_factor": ("on_divergence", ("stop",))}
    reads_budget = True  # must follow TimeBudget in a trainer's list of callbacks

    def __init__(
        self,
        on_divergence: Literal["stop", "rewind"] = "stop",
        max_rewinds: NonNegativeInt = 3,
        lr_factor: UnitInterval = 0.5,
    ) -> None:
        super().__init__()
        self.on_divergence = on_divergence
        self.max_rewinds = max_rewinds
        self.lr_factor = lr_factor
        self.rewinds = 0
        self._losses: list[tuple[int, Tensor]] = []  # of the steps since the last check
        self._asked: tuple[tuple[int, ...], HostCopy] | None = None  # steps, and their losses on the way from a device

    def state_dict(self) -> dict[str, Any]:
        return {"rewinds": self.rewinds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rewinds = state_dict["rewinds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.on_divergence == "stop":
            return
        schedules = Schedules.of(trainer)
        for target, schedule in schedules.schedules.items() if schedules is not None else ():
            if target.partition(".")[0] == "lr" and schedule.is_absolute:
                reason = f"it lowers learning rates, and schedules.{target} sets absolute ones; accepted: stop"
                raise ConfigError("divergence.on_divergence", "rewind", reason)
        if trainer.lr_scheduler_configs:
            name = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            reason = f"it lowers learning rates, and the model's own {name} sets them; accepted: stop"
            raise ConfigError("divergence.on_divergence", "rewind", reason)
        last = LastCheckpoint.of(trainer)
        if last is None or last.path is None:
            raise ConfigError(
                "divergence.on_divergence", "rewind", "accepted: stop, for a run that keeps no checkpoints"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = LastCheckpoint.of(trainer)
        if self.on_divergence == "rewind" and last is not None:
            last.save(trainer)  # there may be no other checkpoint to return to

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        budget = TimeBudget.of(trainer)
        step_of_batch = trainer.global_step + (0 if ends_step(trainer, batch_idx) else 1)
        if "loss" in outputs:  # a skipped step has no loss
            self._losses.append((step_of_batch, outputs["loss"]))
        if budget.clock_synced and (step := self._first_bad_step(trainer)) is not None:
            self._diverged(trainer, f"the training loss of step {step} is NaN or infinite")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = None if trainer.sanity_checking else trainer.callback_metrics.get("val/loss")
        if trainer.state.fn == "fit" and loss is not None and not bool(torch.isfinite(loss)):
            self._diverged(trainer, f"the validation loss after step {trainer.global_step} is {float(loss)}")

    def _first_bad_step(self, trainer: Trainer) -> int | None:
        """Returns the first step, on all ranks, whose loss is known not to be finite. Called on all ranks together."""
        known, self._asked = self._asked, None
        if self._losses:
            steps, losses = zip(*self._losses, strict=True)
            self._losses.clear()
            # Reading them one by one would read a device once per loss; on the CPU, a stack costs 0.1 ms.
            self._asked = steps, HostCopy(losses[0] if len(losses) == 1 else torch.stack(losses))
        first = _first_not_finite(known)
        if not runs_behind(trainer.strategy.root_device) or TimeBudget.of(trainer).is_used_up:
            first = min(first, _first_not_finite(self._asked))
            self._asked = None
        first = TimeBudget.of(trainer).ranks.smallest(first)
        return None if first == NEVER else first

    def _diverged(self, trainer: Trainer, what: str) -> None:
        last = LastCheckpoint.of(trainer)
        path = last.path if last is not None and last.path is not None and last.path.exists() else None
        if path is None or self.on_divergence == "stop" or self.rewinds == self.max_rewinds or trainer.should_stop:
            kept = f"; the last good checkpoint is {path}" if path else ""
            raise Diverged(f"{what}{f', after {self.rewinds} rewinds' if self.rewinds else ''}{kept}")
        self.rewinds += 1
        self._losses.clear()
        self._asked = None  # of steps that are undone
        checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
        trainer.strategy.load_model_state_dict(checkpoint, strict=True)
        restore_averages(trainer, checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        contents = Contents(checkpoint, path)
        lower = self.lr_factor ** (self.rewinds - contents.rewinds)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                for key in {"lr", "initial_lr"} & group.keys():  # the latter if a schedule multiplies it
                    group[key] *= lower
        back = f"back to the weights of step {contents.steps}, with learning rates times {lower:g}"
        note(f"{what}: {back}")


def _first_not_finite(asked: tuple[tuple[int, ...], HostCopy] | None) -> int:
    """Returns the first of some steps whose loss is not finite; NEVER if there is none."""
    if asked is None:
        return NEVER
    losses = asked[1].read().reshape(-1).tolist()
    return next((step for step, loss in zip(asked[0], losses, strict=True) if not math.isfinite(loss)), NEVER)
