"""Lightning's WeightAveraging (and EMAWeightAveraging) in resumed runs and in short runs.

A checkpoint of a run with an average has the average as its weights, because the average is scored, and stores the
trained weights separately. Lightning loses the trained weights in two places. At the end of training it overwrites them
with the average; the last checkpoint is written afterwards, and a run that is given more time would continue from the
average. During a validation, the two are swapped; a run that is cut there would resume with the two exchanged.

Torch averages buffers as it averages weights, which damages constants: the average of equal integers is rounded (the
factors of HashedNGrams' hash), and that of minus infinity is NaN (ALiBi's mask). Therefore an average gets from the
module what is no weight: integers, and buffers that checkpoints do not contain.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from bytelm.runs.checkpoints import TRAINED


class TrainedWeights(Callback):
    """Tracks where the trained weights are. Before WeightAveraging in the order of callbacks.

    An average that has not started (`update_starting_at_step`) equals the trained weights. Without this callback,
    Lightning would score and store the initial weights.

    Attributes:
        at_end: The trained weights, after training has ended.
        swapped: Whether the average is in the module, and the trained weights are in the average's place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_end: dict[str, Tensor] | None = None
        self.swapped = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for averaging in averagings(trainer):
            if averaging._device is None:  # created before the module was moved to its device
                _average(averaging).to(pl_module.device)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _follow(trainer, pl_module)
        self.swapped = trainer.state.fn == "fit"

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swapped = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _follow(trainer, pl_module)
        if averagings(trainer):
            self.at_end = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.swapped:
            _follow(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.at_end = None


class KeepTrainedWeights(Callback):
    """Stores the trained weights in checkpoints. After WeightAveraging in the order of callbacks.

    Args:
        trained: The callback that knows where they are.
    """

    def __init__(self, trained: TrainedWeights) -> None:
        super().__init__()
        self.trained = trained

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if TRAINED not in checkpoint:
            return
        if self.trained.at_end is not None:
            checkpoint[TRAINED] = self.trained.at_end
        elif self.trained.swapped:
            checkpoint[TRAINED], checkpoint["state_dict"] = checkpoint["state_dict"], checkpoint[TRAINED]


def averagings(trainer: Trainer) -> list[WeightAveraging]:
    """Returns a trainer's callbacks that average weights, during training."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, WeightAveraging) and c._average_model is not None]


def restore_averages(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Sets averages, and the trained weights, to those of a checkpoint.

    Args:
        trainer: In training; its module has the checkpoint's `state_dict`.
        checkpoint: The loaded checkpoint.
    """
    for averaging in averagings(trainer):
        averaging.on_load_checkpoint(trainer, trainer.lightning_module, checkpoint)


def _average(averaging: WeightAveraging) -> Any:
    return averaging._average_model


def _follow(trainer: Trainer, pl_module: LightningModule) -> None:
    """Sets averages that have not started to the current weights, and constants in all averages to the current ones."""
    for averaging in averagings(trainer):
        average = _average(averaging)
        if int(average.n_averaged) == 0:
            average.module.load_state_dict(pl_module.state_dict())
        saved, current = average.module.state_dict(), dict(pl_module.named_buffers())
        for name, buffer in average.module.named_buffers():
            if name not in saved or not (buffer.is_floating_point() or buffer.is_complex()):
                buffer.copy_(current[name])
