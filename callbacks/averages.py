"""TrainedWeights: Lightning's WeightAveraging (and EMAWeightAveraging) in runs that are resumed, and in short runs.

A checkpoint of a run with an average has the average as its weights, as that is scored, and the weights that are
trained beside it. At the end of training Lightning puts the average in place of the trained weights. The last
checkpoint is written afterwards; without the trained weights, a run that is given more time would go on from the
average.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class TrainedWeights(Callback):
    """Keeps the trained weights for the last checkpoint. Before WeightAveraging in the order of callbacks.

    An average that has not begun (`update_starting_at_step`) is that of the trained weights. Lightning would score, and
    keep, the weights that the run began with.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[str, Tensor] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for averaging in averagings(trainer):
            if averaging._device is None:  # made before the module was moved to its device
                _average(averaging).to(pl_module.device)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _follow(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _follow(trainer, pl_module)
        if averagings(trainer):
            self._weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._weights is not None:
            checkpoint["state_dict"] = self._weights  # WeightAveraging, which is next, makes it `current_model_state`
        else:
            _follow(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._weights = None


def averagings(trainer: Trainer) -> list[WeightAveraging]:
    """A trainer's callbacks that average weights, in training."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, WeightAveraging) and c._average_model is not None]


def restore_averages(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Makes averages, and the weights that are trained beside them, those of a checkpoint.

    Args:
        trainer: In training; its module has the checkpoint's `state_dict`.
        checkpoint: As it was loaded.
    """
    for averaging in averagings(trainer):
        averaging.on_load_checkpoint(trainer, trainer.lightning_module, checkpoint)


def _average(averaging: WeightAveraging) -> Any:
    return averaging._average_model


def _follow(trainer: Trainer, pl_module: LightningModule) -> None:
    """Makes averages that have not begun those of the current weights."""
    for averaging in averagings(trainer):
        average = _average(averaging)
        if int(average.n_averaged) == 0:
            average.module.load_state_dict(pl_module.state_dict())
