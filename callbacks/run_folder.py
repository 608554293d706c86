"""ClaimFolder: creates the run's folder before training, tells all ranks its path, and puts checkpoints there.

The folder does not depend on the loggers. `trainer.log_dir` does: for loggers other than TensorBoard's and CSV's, it is
their save_dir, often the working directory with the user's own files.
"""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bytelm.runs.folder import CHECKPOINTS, RunFolder


class ClaimFolder(Callback):
    """Claims the run's folder for the duration of a fit.

    Every ModelCheckpoint without a `dirpath`, including the user's, writes its checkpoints to the folder.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.folder.share(trainer.strategy.broadcast)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.folder.path / CHECKPOINTS)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.folder.release()


def run_folder(trainer: Trainer) -> Path | None:
    """Returns the folder of the run that a trainer trains. Called on all ranks, in `setup` or later.

    For a trainer without ClaimFolder, which the command line did not make, the folder is the one in which Lightning's
    ModelCheckpoint would create `checkpoints`: the first logger's, or `default_root_dir`.

    Args:
        trainer: A trainer that has been set up.

    Returns:
        None under `fast_dev_run`, which writes no files.
    """
    if (claimed := claimed_folder(trainer)) is not None:
        return claimed
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = Path(trainer.default_root_dir)
    if trainer.loggers:
        first = trainer.loggers[0]
        version = first.version if isinstance(first.version, str) else f"version_{first.version}"
        folder = Path(first.save_dir or folder, str(first.name), version)
    return Path(trainer.strategy.broadcast(str(folder)))


def claim_of(trainer: Trainer) -> ClaimFolder | None:
    """Returns the ClaimFolder among a trainer's callbacks, if there is one."""
    return next((c for c in trainer.callbacks if isinstance(c, ClaimFolder)), None)  # type: ignore[attr-defined]


def claimed_folder(trainer: Trainer) -> Path | None:
    """Returns the run's folder; None if the trainer has no ClaimFolder. Called in `setup` or later."""
    claim = claim_of(trainer)
    return None if claim is None else claim.folder.path
