"""PredictionWriter: keeps what `predict` found out, as predictions.pt in the folder of the checkpoint's run.

`predict` makes no run: there is no new version_N. With a checkpoint that lies in no run's folder, or with none, the
file is in `trainer.default_root_dir`, which is the working directory by default. A file is never overwritten; the
second is predictions-1.pt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from bytelm.runs.folder import run_of


class PredictionWriter(BasePredictionWriter):
    """Writes `targets` and the `bits` that each cost, both (rows, T), to predictions.pt.

    Of several ranks each writes a file: predictions-rank0.pt, …
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

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
    """Where the predictions of a trainer are kept."""
    run = run_of(Path(trainer.ckpt_path)) if trainer.ckpt_path else None
    return run or Path(trainer.default_root_dir)


def free_path(folder: Path) -> Path:
    """The first of predictions.pt, predictions-1.pt, … that no prediction has, of one rank or of several."""
    number = 0
    while True:
        name = f"predictions-{number}" if number else "predictions"
        if not (folder / f"{name}.pt").exists() and not (folder / f"{name}-rank0.pt").exists():
            return folder / f"{name}.pt"
        number += 1
