"""Logging of training: at every `trainer.log_every_n_steps`-th step, directly to the loggers.

Lightning's own `log()` passes every value through its code for reductions over batches and ranks, which takes about
half a millisecond of CPU time per call: 7 values every 10 steps cost 0.9 ms per step. Training values do not need this.
Validation scores do use `log()`, and checkpoints and other callbacks can therefore monitor them.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from torch import Tensor, distributed

from bytelm.system.behind import HostCopy, runs_behind


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Returns whether a batch is the last of those that are accumulated into a step.

    Lightning also takes a step at an epoch's last batch. Epochs of bytelm's data are whole steps; those of other data
    may not be.
    """
    n_batches = batch_idx + 1
    return n_batches % trainer.accumulate_grad_batches == 0 or n_batches == trainer.num_training_batches


def is_log_step(trainer: Trainer, batch_idx: int) -> bool:
    """Returns whether a step that is logged has just ended."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and ends_step(trainer, batch_idx) and logged_steps(trainer) % every == 0  # 0: never


def logged_steps(trainer: Trainer) -> int:
    """Returns the number of steps for loggers, at the end of a step.

    With several optimizers, `trainer.global_step` counts the steps of each of them, and Lightning logs under the number
    of batches that took a step.
    """
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # increased only after the batch's hooks


class StepLoss:
    """The training loss of the last step: the mean over the batches that were accumulated into it.

    Attributes:
        value: The mean over this rank's batches, (); None before the first step. It stays on the device.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._sum: Tensor | None = None
        self._batches = 0

    def add(self, trainer: Trainer, outputs: Any, batch_idx: int) -> None:
        """Adds the loss of a batch, from the outputs that Lightning passes to `on_train_batch_end`.

        Args:
            trainer: The trainer.
            outputs: The batch's outputs. Lightning has divided the loss by `accumulate_grad_batches`. A batch may have
                none.
            batch_idx: Number of the batch.
        """
        if "loss" in outputs:
            self._sum = outputs["loss"] if self._sum is None else self._sum + outputs["loss"]
            self._batches += 1
        if ends_step(trainer, batch_idx) and self._sum is not None:
            # No multiplication by 1: on a device, it would launch a kernel in every step.
            share = trainer.accumulate_grad_batches / self._batches
            self.value = self._sum if share == 1 else self._sum * share
            self._sum, self._batches = None, 0

    def of_all_ranks(self, trainer: Trainer) -> Tensor | None:
        """Returns the mean over all ranks, (). Called on all ranks together."""
        if self.value is None or trainer.world_size == 1:
            return self.value
        total = self.value.clone()
        distributed.all_reduce(total)  # Lightning's `reduce` waits until all ranks and their devices have come here
        return total.div_(trainer.world_size)


# Values of a step that are on their way from a device to the loggers: the step, and the values by tag.
_waiting: WeakKeyDictionary[Trainer, tuple[int, dict[str, HostCopy | float]]] = WeakKeyDictionary()


def log_metrics(trainer: Trainer, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
    """Passes values to all loggers, under the number of the last step, counted from 0 as Lightning does.

    In training, values of a device that runs behind the program are not waited for: `log_waiting` passes them on.

    Args:
        trainer: The trainer whose loggers receive the values; only those of rank 0 write them.
        metrics: Values by tag; a tensor has one element.
        step: The number of another step.
    """
    log_waiting(trainer)
    step = logged_steps(trainer) - 1 if step is None else step
    tensors = [value for value in metrics.values() if isinstance(value, Tensor)]
    if trainer.training and any(runs_behind(tensor.device) for tensor in tensors):
        copied = {tag: HostCopy(value) if isinstance(value, Tensor) else value for tag, value in metrics.items()}
        _waiting[trainer] = step, copied
        return
    _pass_on(trainer, {tag: float(value) for tag, value in metrics.items()}, step)


def log_waiting(trainer: Trainer) -> None:
    """Passes on the values that a device had not yet computed. Called after the next step, and at the end."""
    if trainer in _waiting:
        step, values = _waiting.pop(trainer)
        read = {tag: float(v.read()) if isinstance(v, HostCopy) else v for tag, v in values.items()}
        _pass_on(trainer, read, step)


def _pass_on(trainer: Trainer, metrics: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)
