"""TrainLog: the training loss and the size of the gradients, for loggers and for callbacks that monitor them.

| logged | value |
| --- | --- |
| train/loss | cross-entropy in nats per token, or the value of `model.loss`; mean over the step's batches and ranks |
| grad/norm | norm of the gradients before clipping |

Both are in `trainer.callback_metrics`, where EarlyStopping, ModelCheckpoint and others find the values that they
monitor: the values of the last logging step, or, with one rank, train/loss of the last step.

A run that is over, or is validated, before its first logging step (`trainer.log_every_n_steps`) has a curve too: the
training loss, the schedules and the progress of all its steps so far are then logged, and the norm of the last one's
gradients. That of each step would have to be computed in the step.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bytelm.callbacks.schedules import Schedules
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.log_steps import StepLoss, ends_step, is_log_step, log_metrics, log_waiting, logged_steps

TAGS = ("train/loss", "grad/norm")
PROGRESS = "time_budget/progress"


class TrainLog(Callback):
    """Logs the training loss and the gradients.

    This is a callback and not a part of the LanguageModel, whose hooks follow those of the callbacks: a checkpoint at
    the end of a step would be written before the step was logged, and the curve of a run that is killed would have a
    gap.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loss = StepLoss()
        self._early: list[tuple[int, Tensor, dict[str, float]]] = []  # steps before the first logging step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        log_waiting(trainer)  # of the step before
        self._loss.add(trainer, outputs, batch_idx)
        if not ends_step(trainer, batch_idx) or _is_dropped(trainer):
            return
        if is_log_step(trainer, batch_idx):
            self._early.clear()
            log_metrics(trainer, self._measure(trainer, pl_module))
            return
        self._keep_early(trainer)
        if TAGS[0] not in trainer.callback_metrics:
            self._measure(trainer, pl_module)  # first step, for callbacks that act before the first logging step
        elif trainer.world_size == 1:  # no collective, and nothing is read from the device
            trainer.callback_metrics[TAGS[0]] = self._loss.value  # type: ignore[assignment]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        log_waiting(trainer)
        is_early = bool(self._early)
        self._log_early(trainer)
        if self._loss.value is not None and not _is_dropped(trainer):
            metrics = self._measure(trainer, pl_module)  # last step, for callbacks that act at its end
            if is_early:
                log_metrics(trainer, {TAGS[1]: metrics[TAGS[1]]})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_waiting(trainer)
        if self._early:  # of a run without validation
            self.on_validation_start(trainer, pl_module)

    def _keep_early(self, trainer: Trainer) -> None:
        step, budget, schedules = logged_steps(trainer), TimeBudget.of(trainer), Schedules.of(trainer)
        if step < trainer.log_every_n_steps and self._loss.value is not None:  # type: ignore[attr-defined]
            values = {} if schedules is None else dict(schedules.values)
            self._early.append((step - 1, self._loss.value, {**values, PROGRESS: budget.progress.fraction}))

    def _log_early(self, trainer: Trainer) -> None:
        """Logs the steps before the first logging step. Called on all ranks together."""
        if not self._early:
            return
        losses = torch.stack([loss.detach().float() for _, loss, _ in self._early])  # one reading of the device
        if trainer.world_size > 1:
            losses = trainer.strategy.reduce(losses, reduce_op="mean")
        for (step, _, values), loss in zip(self._early, losses.tolist(), strict=True):
            log_metrics(trainer, {**values, TAGS[0]: loss}, step)
        self._early.clear()

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Computes the logged values of the last step, for callbacks as well. Called on all ranks together."""
        model: Any = pl_module
        metrics = dict(zip(TAGS, (self._loss.of_all_ranks(trainer), model.grad_norm()), strict=True))
        trainer.callback_metrics.update(metrics)
        return metrics


def _is_dropped(trainer: Trainer) -> bool:
    """Returns whether a budget has dropped the last step; a dropped step has no gradients."""
    steps = logged_steps(trainer)
    return any(isinstance(each, TimeBudget) and each.steps < steps for each in trainer.callbacks)  # type: ignore[attr-defined]
