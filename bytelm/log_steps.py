"""Logging of training: at every `trainer.log_every_n_steps`-th step, straight to the loggers.

Lightning's own `log()` puts every value through its machinery for reductions over batches and ranks, at about half a
millisecond of CPU time a call: at 7 values every 10 steps that was 0.9 ms of each step. A training value needs none of
that. Validation scores do go through `log()`, so that checkpoints and other callbacks can monitor them.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch is the last of those that are accumulated into a step.

    Lightning also takes a step at an epoch's last batch. Epochs of bytelm's data are whole steps; those of other data
    need not be.
    """
    n_batches = batch_idx + 1
    return n_batches % trainer.accumulate_grad_batches == 0 or n_batches == trainer.num_training_batches


def is_log_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a step has just ended that is one to log."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and ends_step(trainer, batch_idx) and logged_steps(trainer) % every == 0  # 0: never


def logged_steps(trainer: Trainer) -> int:
    """How many steps loggers are told of, at the end of one.

    With several optimizers, `trainer.global_step` counts each of their steps, and Lightning logs under a count of the
    batches that took some.
    """
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # increased only after the batch's hooks


class StepLoss:
    """The training loss of the last step: the mean over the batches that were accumulated into it.

    Attributes:
        value: The mean over this rank's batches, (); None before the first step. It is not read from the device.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._sum: Tensor | None = None
        self._batches = 0

    def add(self, trainer: Trainer, outputs: Any, batch_idx: int) -> None:
        """Takes the loss of a batch, out of what Lightning hands to `on_train_batch_end`.

        Args:
            trainer: The trainer.
            outputs: Lightning has divided its loss by `accumulate_grad_batches`. A batch may have none.
            batch_idx: Number of the batch.
        """
        if "loss" in outputs:
            self._sum = outputs["loss"] if self._sum is None else self._sum + outputs["loss"]
            self._batches += 1
        if ends_step(trainer, batch_idx) and self._sum is not None:
            # Not times 1: that would start a kernel on a device, in every step.
            share = trainer.accumulate_grad_batches / self._batches
            self.value = self._sum if share == 1 else self._sum * share
            self._sum, self._batches = None, 0

    def of_all_ranks(self, trainer: Trainer) -> Tensor | None:
        """The mean over all ranks, (). Called on all ranks together."""
        if self.value is None or trainer.world_size == 1:
            return self.value
        return trainer.strategy.reduce(self.value.clone(), reduce_op="mean")


def log_metrics(trainer: Trainer, metrics: Mapping[str, Tensor | float]) -> None:
    """Gives values to all loggers, under the number of the step that has just ended, counted from 0 as Lightning does.

    Args:
        trainer: Its loggers, which exist on rank 0 alone in effect, are given the values.
        metrics: Values by tag; tensors of one element are read, which waits for their device.
    """
    for logger in trainer.loggers:
        logger.log_metrics({tag: float(value) for tag, value in metrics.items()}, step=logged_steps(trainer) - 1)
