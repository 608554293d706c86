"""CorpusWatch and KeepOnDataError: a corpus that changes ends the run, with a checkpoint and exit status 3.

A run's record identifies the training and validation text by a hash. Therefore a file that is truncated or overwritten
while the run reads it ends the run. A shard that ends too early is detected when it is read
(bytelm/data/shard_file.py). Other changes are detected by sizes and times of change. These are compared after the ranks
have read the budget's clock together, and before a score counts.
"""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.last_checkpoint import LastCheckpoint
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.config.messages import note
from bytelm.data.base import token_data
from bytelm.errors import DataError, run_error

SECONDS = 1.0  # between two checks, if the clock is read after every step


class CorpusWatch(Callback):
    """Ends a run whose corpus has changed."""

    def __init__(self) -> None:
        super().__init__()
        self._looked_at = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not TimeBudget.of(trainer).clock_synced:
            return
        if trainer.world_size == 1 and not trainer.should_stop and time.monotonic() - self._looked_at < SECONDS:
            return
        self._look(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        if (data := token_data(trainer)) is None:
            return
        reason = data.changed()
        self._looked_at = time.monotonic()
        if trainer.strategy.reduce_boolean_decision(reason is None):  # on all ranks
            return
        found = reason or "another rank has found so"
        error = DataError("data", data.corpus_record()["name"], f"it has changed since the run began: {found}")
        error.on_all_ranks = True
        raise error


class KeepOnDataError(Callback):
    """Writes last.ckpt when an error of the data ends a run.

    If only one of several ranks meets the error, as in a file that only it reads, the others wait for its gradients.
    Then the last checkpoint is the one that was written before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trains = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trains = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        error = run_error(exception)
        last, budget = LastCheckpoint.of(trainer), TimeBudget.of(trainer)
        if not isinstance(error, DataError) or last is None or not self._trains or not budget.steps:
            return
        if trainer.world_size > 1 and not error.on_all_ranks:
            return
        if last.save(trainer):
            note(f"step {budget.steps} is in {last.path}; --ckpt_path last resumes from there, with the same data")
