"""ClaimFolder: makes the run's folder before training, tells all ranks, and sends checkpoints there.

The folder does not depend on the loggers. `trainer.log_dir` does: for loggers other than TensorBoard's and CSV's it is
their save_dir, often the working directory with the user's own files.
"""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bytelm.runs.folder import CHECKPOINTS, RunFolder


class ClaimFolder(Callback):
    """Claims the run's folder for the time of a fit.

    Every ModelCheckpoint without a `dirpath`, the user's included, keeps its checkpoints in the folder.

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
    """The folder of the run that a trainer trains. Called on all ranks, in `setup` or later.

    A trainer without ClaimFolder, one that was not made by the command line, has the folder of its first logger.

    Args:
        trainer: A trainer that has been set up.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ClaimFolder):
            return callback.folder.path
    folder = trainer.log_dir  # a broadcast
    return None if folder is None else Path(folder)
