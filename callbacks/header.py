"""Header: four lines on standard error before a run, and a fifth for a run that is resumed.

    model   7,994,752 parameters: 3 layers, d_model 128, vocabulary 256; MuonAdamW
    data    python-3.11, 33,192,301 bytes to train on; 16 rows of 256 a step
    budget  60s; lr Linear
    run     runs/quickstart/version_0 on cpu, 32-true
    resume  after step 1,234, with 22.1s left

Standard output has only results, which other programs read. A notebook shows both streams in one place, and marks
standard error as a failure; there the lines are on standard output.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.parameter import is_lazy
from tqdm import tqdm

from bytelm.callbacks.run_folder import claimed_folder
from bytelm.callbacks.schedules import Schedules
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.data.base import TokenData
from bytelm.system.streams import is_notebook
from bytelm.units import Duration


class Header(Callback):
    """Prints what is trained, with which budget and where, before compilation and the warm-up pass."""

    def __init__(self) -> None:
        super().__init__()
        self._folder: Path | None = None
        self._n_parameters = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._folder = claimed_folder(trainer)
            self._n_parameters = count_parameters(pl_module)  # before a strategy shards them

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._n_parameters = max(self._n_parameters, count_parameters(pl_module))  # some are made in configure_model
        budget = TimeBudget.of(trainer)
        lines = {
            "model": f"{self._n_parameters:,} parameters{_shape(pl_module)}; {_optimizers(trainer)}",
            "data": _data(trainer),
            "budget": _budget(budget, trainer),
            "run": f"{self._folder or 'no folder'} on {_device(trainer)}",
        }
        if budget.steps:
            lines["resume"] = f"after step {budget.steps:,}, with {_left(budget)} left"
        show(f"{key:6}  {text}" for key, text in lines.items())


def count_parameters(module: torch.nn.Module) -> int:
    """Returns the number of parameters, without those of lazy layers that have seen no batch."""
    return sum(each.numel() for each in module.parameters() if not is_lazy(each))


def show(lines: Iterable[str]) -> None:
    """Prints lines beside the results: on standard error; in a notebook, on standard output."""
    sys.stdout.flush()
    stream = sys.stdout if is_notebook(sys.stderr) else sys.stderr
    tqdm.write("\n".join(lines), file=stream)  # moves a progress bar out of the way
    stream.flush()


def _shape(pl_module: Any) -> str:
    gpt = getattr(pl_module, "gpt", None)
    try:
        return f": {len(gpt.blocks)} layers, d_model {gpt.d_model}, vocabulary {gpt.vocab_size:,}"  # type: ignore[union-attr]
    except AttributeError:  # a module of the user's
        return f": {type(pl_module).__name__}"


def _optimizers(trainer: Trainer) -> str:
    return ", ".join(dict.fromkeys(type(each).__name__ for each in trainer.optimizers)) or "no optimizer"


def _data(trainer: Trainer) -> str:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, TokenData):
        return "data loaders" if data is None else type(data).__name__
    rows = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    tokens = "bytes" if are_bytes(data) else "tokens"
    size = f"{data.train_tokens():,} {tokens} to train on"
    return f"{data.corpus_record()['name']}, {size}; {rows:,} rows of {data.seq_len:,} a step{_validation(data)}"


def _validation(data: TokenData) -> str:
    files = data.val_files()
    if not files:
        return ""
    several = f" to {files[-1].name} ({len(files)} files)" if len(files) > 1 else ""
    return f"; validation: {files[0].name}{several}"


def are_bytes(data: TokenData) -> bool:
    """Returns whether each token of the data is a byte."""
    return data.counts_bytes and data.token_bytes is None


def _budget(budget: TimeBudget, trainer: Trainer) -> str:
    limits = " or ".join(str(Duration(limit, unit)) for unit, limit in budget.budget.limits.items())
    schedules = Schedules.of(trainer)
    scheduled = {} if schedules is None else schedules.schedules
    names = (f"{target} {type(schedule).__name__}" for target, schedule in scheduled.items())
    return f"{limits}; {', '.join(names) or 'no schedules'}"


def _left(budget: TimeBudget) -> str:
    left = {unit: max(limit - budget.progress.used[unit], 0.0) for unit, limit in budget.budget.limits.items()}
    return " or ".join(str(Duration(round(amount, 1), unit)) for unit, amount in left.items())


def device_name(device: torch.device) -> str:
    """Returns the name of a GPU, and the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = device_name(device)
    several = f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
    return f"{several}, {getattr(trainer.precision_plugin, 'label', trainer.precision)}"
