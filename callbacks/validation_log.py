"""ValidationLog: writes the score of each validation during training to validations.jsonl in the run's folder.

runs/validations.py defines the file. Pruning (`experiments --prune`) and reports read it.
"""

from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.run_folder import claimed_folder
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.runs import validations


class ValidationLog(Callback):
    """Appends a line after each validation of a training run. The budget's clock does not run meanwhile."""

    reads_budget = True  # must follow TimeBudget in a trainer's list of callbacks

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if (folder := claimed_folder(trainer)) is None:
            return  # fast_dev_run, which writes no files
        budget = TimeBudget.of(trainer)
        metrics = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        seconds = budget.training_seconds
        found = validations.of(budget.progress.fraction, budget.steps, budget.tokens, seconds, metrics)
        validations.append(folder, found)
