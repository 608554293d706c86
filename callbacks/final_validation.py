"""FinalValidation: validates the final weights of a run; its score is always theirs, whatever ended the run."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.time_budget import TimeBudget


class FinalValidation(Callback):
    """Validates at the end of a run, unless the last validation was of the final weights.

    It was of others if `check_val_every_n_epoch` skips the last epoch, if a callback stopped the run at the end of an
    epoch, or if a callback changed the weights at the end of the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._validated_step = -1
        self._validated_weights: list[float] | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._validated_weights = fingerprint(pl_module)  # an average may have replaced the trained ones

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated_step = TimeBudget.of(trainer).steps

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        same = self._validated_step == TimeBudget.of(trainer).steps
        same = same and self._validated_weights == fingerprint(pl_module)
        if trainer.enable_validation and not trainer.strategy.reduce_boolean_decision(same):
            counts = trainer.fit_loop.epoch_loop
            counts._batches_that_stepped -= 1  # its score is logged under the last step, as in Lightning's loop
            validate(trainer)
            counts._batches_that_stepped += 1


def validate(trainer: Trainer) -> None:
    """Runs Lightning's validation, outside its loop over batches."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def fingerprint(pl_module: LightningModule) -> list[float]:
    """Returns sums that distinguish weights. For a weight that is split over ranks, they are of this rank's share."""
    with torch.no_grad():
        shares: Any = (each.to_local() if hasattr(each, "to_local") else each for each in pl_module.parameters())
        weights = [share.float() for share in shares]
        return torch.stack([total for each in weights for total in (each.sum(), each.square().sum())]).tolist()
