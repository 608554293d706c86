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


def batch_loss(trainer: Trainer, outputs: Any) -> Tensor:
    """The training loss of a batch, out of what Lightning hands to `on_train_batch_end`.

    Lightning has divided it by the number of batches that are accumulated into a step.
    """
    return outputs["loss"] * trainer.accumulate_grad_batches


def log_metrics(trainer: Trainer, metrics: Mapping[str, Tensor | float]) -> None:
    """Gives values to all loggers, under the number of the step that has just ended, counted from 0 as Lightning does.

    Args:
        trainer: Its loggers, which exist on rank 0 alone in effect, are given the values.
        metrics: Values by tag; tensors of one element are read, which waits for their device.
    """
    for logger in trainer.loggers:
        logger.log_metrics({tag: float(value) for tag, value in metrics.items()}, step=logged_steps(trainer) - 1)
