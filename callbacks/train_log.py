"""TrainLog: the training loss and the size of the gradients.

| logged | what |
| --- | --- |
| train/loss | cross-entropy in nats per token, or what `model.loss` is |
| grad/norm | norm of the gradients before clipping |
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.log_steps import batch_loss, is_log_step, log_metrics


class TrainLog(Callback):
    """Logs how training goes.

    A callback and not a part of the LanguageModel, whose hooks come after those of the callbacks: a checkpoint that is
    written at the end of a step would come before the step was logged, and if the run is killed its curve had a gap.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_log_step(trainer, batch_idx):
            model: Any = pl_module
            log_metrics(trainer, {"train/loss": batch_loss(trainer, outputs), "grad/norm": model.grad_norm()})
