"""PredictionWriter: stores the results of `predict`, as predictions.pt in the folder of the checkpoint's run.

`predict` creates no run, and no version_N. For a checkpoint outside a run's folder, or without a checkpoint, the file
is in `trainer.default_root_dir`, by default the working directory. Files are never overwritten; the second one is
predictions-1.pt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from bytelm.runs.folder import run_of
from bytelm.system.files import check_folder


class PredictionWriter(BasePredictionWriter):
    """Writes `targets` and the cost of each in `bits`, both (rows, T), to predictions.pt.

    With several ranks, each writes a file: predictions-rank0.pt, …

    Raises:
        FolderError: The folder cannot be created or written to.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_folder("trainer.default_root_dir", folder_for(trainer))  # before the work

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        path = Path(trainer.strategy.broadcast(str(free_path(folder_for(trainer)))))
        if trainer.world_size > 1:
            path = path.with_stem(f"{path.stem}-rank{trainer.global_rank}")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({key: torch.cat([batch[key] for batch in predictions]) for key in predictions[0]}, path)
        print(f"predictions: {path}")


def folder_for(trainer: Trainer) -> Path:
    """Returns the folder of a trainer's predictions."""
    run = run_of(Path(trainer.ckpt_path)) if trainer.ckpt_path else None
    return run or Path(trainer.default_root_dir)


def free_path(folder: Path) -> Path:
    """Returns the first unused name of predictions.pt, predictions-1.pt, …, for one rank or several."""
    number = 0
    while True:
        name = f"predictions-{number}" if number else "predictions"
        if not (folder / f"{name}.pt").exists() and not (folder / f"{name}-rank0.pt").exists():
            return folder / f"{name}.pt"
        number += 1
