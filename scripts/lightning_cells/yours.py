"""Classes that a user may write: subclasses of Lightning's base classes, which the cells name by import path."""

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    Checkpoint,
    ProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, MixedPrecision, Precision
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn


def say(*args: Any) -> None:
    """Prints that it was called."""
    print("said")


def batch_size(batch: Any) -> int:
    """Rows of a batch."""
    return len(batch[0])


class Hello(Callback):
    """Prints each of a few hooks once, with the number of batches."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.count += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print(f"hello {self.count}")


class Freeze(BaseFinetuning):
    """Freezes the embedding from the start, and trains it from epoch 1 on."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        gpt: Any = pl_module.gpt
        self.freeze(gpt.embedding)
        self.first = [p.clone() for p in gpt.embedding.parameters()]

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        pass

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gpt: Any = pl_module.gpt
        same = all(torch.equal(a, b) for a, b in zip(self.first, gpt.embedding.parameters(), strict=True))
        print(f"frozen {same}")


class Predictions(BasePredictionWriter):
    """Writes the number of predictions of an epoch."""

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        Path("mine.txt").write_text(str(len(predictions)))


class OwnCheckpoint(Checkpoint):
    """Saves a checkpoint at the end of training."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint("own.ckpt")


class Bar(ProgressBar):
    """Prints a dot a batch."""

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        print("dot")


class HalfAverage(WeightAveraging):
    """Averages every second step."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % 2 == 0


class Fail(Callback):
    """Raises in the third batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("the third batch")


class BadGradient(Callback):
    """Makes gradients NaN in the backward pass."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        loss.register_hook(lambda gradient: gradient * float("nan"))


class ListLogger(Logger):
    """Prints its argument."""

    @property
    def name(self) -> str:
        return "list"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        print("logged", step, *sorted(metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        print("hyperparameters", len(params) > 0)


class OwnProfiler(Profiler):
    """Prints the names of actions, in its summary."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: set[str] = set()

    def start(self, action_name: str) -> None:
        self.actions.add(action_name)

    def stop(self, action_name: str) -> None:
        pass

    def summary(self) -> str:
        return f"profiled {'run_training_batch' in self.actions}"


class OwnIO(CheckpointIO):
    """Pickles checkpoints with torch, and prints that it does."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
        print("own io")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=False)

    def remove_checkpoint(self, path: Any) -> None:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


class OwnPrecision(Precision):
    """Prints once that the forward pass runs in it."""

    def pre_backward(self, tensor: torch.Tensor, module: Any) -> torch.Tensor:
        print("own precision")
        return super().pre_backward(tensor, module)


class CpuMixed(MixedPrecision):
    """bfloat16 on the CPU."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")


class OwnSync(LayerSync):
    """Prints that it was applied."""

    def apply(self, model: nn.Module) -> nn.Module:
        print("own sync")
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        return model


class OwnEnvironment(LightningEnvironment):
    """Prints that it gave the port."""

    @property
    def main_port(self) -> int:
        print("own environment", flush=True)
        return super().main_port


class OwnStrategy(SingleDeviceStrategy):
    """Trains on the CPU, and prints that it does."""

    def __init__(self) -> None:
        super().__init__("cpu")

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        print("own strategy")
        return super().training_step(*args, **kwargs)


class WithBatchNorm(nn.Module):
    """A feedforward part with a BatchNorm layer.

    Args:
        d_model: Width.
        d_ff: Width of the hidden layer.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(d_model)
        self.linear = nn.Linear(d_model, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        y: torch.Tensor = self.linear(normed)
        return y
