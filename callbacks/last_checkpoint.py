"""LastCheckpoint: keeps checkpoints/last.ckpt, from which `--ckpt_path last` resumes.

The file is written at intervals, before and after the final validation, and when a signal ends the run. Lightning's
ModelCheckpoint (the key `checkpoint`) keeps best.ckpt beside it. Its own time interval would cost a collective in every
step, and does not accept the budget's units.
"""

from pathlib import Path
from typing import Any, Optional

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from bytelm.callbacks.run_folder import run_folder
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.errors import ConfigError
from bytelm.log_steps import log_waiting
from bytelm.runs.folder import checkpoint_of
from bytelm.runs.plain import plain
from bytelm.units import Duration, read_duration


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt, which contains everything that a run needs to resume.

    Args:
        every: Interval: `10m` of training time, `500 steps`, `300 Mtok`, `2 PFLOP`, or `5%` of the run.
    """

    best_model_path = ""  # Lightning asks the first of a trainer's checkpoint callbacks for `ckpt_path="best"`

    def __init__(self, every: Duration = Duration(600, "seconds")) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.every = read_duration("last_checkpoint.every", every)
        if self.every.value == 0:
            raise ConfigError("last_checkpoint.every", str(self.every), "accepted: more than 0")
        self.path: Path | None = None
        self._written_at = 0.0  # in the unit of `every`

    @staticmethod
    def of(trainer: Trainer) -> Optional["LastCheckpoint"]:
        """Returns the LastCheckpoint of a trainer, if there is one."""
        return next((c for c in trainer.callbacks if isinstance(c, LastCheckpoint)), None)  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and (folder := run_folder(trainer)) is not None:
            self.path = checkpoint_of(folder, "last")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_states(trainer)
        self._written_at = self._used(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (reason := TimeBudget.of(trainer).counts.why_not_in(self.every.unit)) is not None:
            raise ConfigError("last_checkpoint.every", str(self.every), reason)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The budget's figures are the same on all ranks, and change only with the last batch of a step.
        if trainer.should_stop or self._used(trainer) - self._written_at >= self.every.value:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)  # again: it now contains the results of the final validation

    def save(self, trainer: Trainer) -> bool:
        """Writes last.ckpt, on all ranks together; skipped if weights have become NaN or infinite.

        Returns:
            Whether the file now belongs to the last step.

        Raises:
            StorageError: The file could not be written; the previous one is unchanged.
        """
        TimeBudget.of(trainer).pause()
        if self.path is None or not weights_are_finite(trainer):
            return False
        log_waiting(trainer)
        for logger in trainer.loggers:
            logger.save()  # values logged so far are not lost if the run is killed
        trainer.save_checkpoint(self.path)
        self._written_at = self._used(trainer)
        return True

    def _used(self, trainer: Trainer) -> float:
        return TimeBudget.of(trainer).progress.amount(self.every.unit)


def weights_are_finite(trainer: Trainer) -> bool:
    """Returns whether all weights are finite, on all ranks."""
    with torch.no_grad():
        # A sum is finite only if all of its terms are; if it overflows, the weights are unusable too.
        sums = torch.stack([parameter.float().sum() for parameter in trainer.lightning_module.parameters()])
        finite = bool(sums.isfinite().all())
    return trainer.strategy.reduce_boolean_decision(finite)


def check_states(trainer: Trainer) -> None:
    """Rejects, before training, a user's callback whose state a checkpoint cannot store. Called on all ranks.

    Raises:
        CheckpointError: There is such a callback; the message names it and the key.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not type(callback).__module__.startswith("bytelm."):
            plain(callback.state_dict(), f"callbacks.{callback.state_key.partition('{')[0]}")
