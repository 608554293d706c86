"""Callbacks that tests/test_ranks.py names in `trainer.callbacks`: they run in the ranks, as a user's callbacks do."""

import json
import os
import random
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.distributed import distributed_c10d

from bytelm import clock
from bytelm.callbacks import TimeBudget, time_budget

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "monitored_barrier",
    "recv",
    "reduce",
    "reduce_scatter",
    "scatter",
    "send",
)


def rank():
    """Number of this rank, also before the trainer knows it: Lightning's launcher and torchrun both set it."""
    return int(os.environ.get("LOCAL_RANK", 0))


class Report(Callback):
    """Records the events of this rank, a line of JSON each, in rank0.jsonl and rank1.jsonl.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str = "."):
        self.path = Path(folder, f"rank{rank()}.jsonl")

    def write(self, event, **values):
        with self.path.open("a") as file:  # one write, so that a test never reads half a line
            file.write(json.dumps({"event": event, **values}) + "\n")

    def setup(self, trainer, pl_module, stage):
        self.write("setup", pid=os.getpid())

    def on_train_start(self, trainer, pl_module):
        groups = [(group["name"], group["weight_decay"]) for group in trainer.optimizers[0].param_groups]
        self.write("start", groups=groups)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.fraction = TimeBudget.of(trainer).progress.fraction

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.write("step", step=trainer.global_step, lr=self.rates, fraction=self.fraction, at=time.perf_counter())

    def on_train_end(self, trainer, pl_module):
        budget = TimeBudget.of(trainer)
        self.write("end", steps=budget.steps, tokens=budget.tokens, fraction=budget.progress.fraction)

    def on_validation_end(self, trainer, pl_module):
        self.write("scores", **{name: float(value) for name, value in trainer.callback_metrics.items()})


class OwnBuffers(Callback):
    """Gives rank 1 other buffers than rank 0 has, and records their first and last values.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str = "."):
        self.report = Report(folder)

    def on_train_start(self, trainer, pl_module):
        if rank() == 1:
            pl_module.gpt.position.cos.mul_(0.5)
        self.first = pl_module.gpt.position.cos.sum().item()

    def on_train_end(self, trainer, pl_module):
        self.report.write("buffers", first=self.first, last=pl_module.gpt.position.cos.sum().item())


class Skew(Callback):
    """Gives one rank a different clock.

    Args:
        skewed: The rank.
        factor: How much faster its clock runs.
        offset: How much ahead it is, in seconds.
    """

    def __init__(self, skewed: int = 1, factor: float = 1.5, offset: float = 100.0):
        if rank() != skewed:
            return
        age = time_budget.process_age

        class Clock:
            def perf_counter():
                return factor * time.perf_counter() + offset

        clock.time = Clock
        time_budget.process_age = lambda: factor * age() + offset


class Slow(Callback):
    """Makes steps slow, before the backward pass, in which ranks wait for each other.

    Args:
        seconds: By how much, on each rank.
        jitter: By up to how much more, at random and differently on each rank.
        at_start: Whether the first forward pass, which is in the warm-up, takes a minute.
    """

    def __init__(self, seconds: list[float] = [0.0, 0.0], jitter: float = 0.0, at_start: bool = False):  # noqa: B006
        self.seconds = seconds[rank()]
        self.jitter = jitter
        self.random = random.Random(rank())
        self.at_start = at_start

    def on_train_start(self, trainer, pl_module):
        if self.at_start:
            pl_module.gpt.register_forward_pre_hook(self._first_forward)

    def _first_forward(self, module, inputs):
        Path(f"compiling{rank()}").touch()
        time.sleep(60)

    def on_before_backward(self, trainer, pl_module, loss):
        time.sleep(self.seconds + self.jitter * self.random.random())


class CountCollectives(Callback):
    """Records after how many steps each collective was called, in collectives0.json and collectives1.json."""

    def on_train_start(self, trainer, pl_module):
        self.trainer = trainer
        self.calls = []
        for name in COLLECTIVES:
            counted = self._counted(name, getattr(distributed_c10d, name))
            for module in (distributed_c10d, torch.distributed):
                setattr(module, name, counted)

    def _counted(self, name, function):
        def counted(*args, **kwargs):
            self.calls.append((self.trainer.global_step, name))
            return function(*args, **kwargs)

        return counted

    def on_train_end(self, trainer, pl_module):
        Path(f"collectives{rank()}.json").write_text(json.dumps(self.calls))


class Fail(Callback):
    """Makes one rank raise an ordinary exception in a step.

    Args:
        failing: The rank.
        step: Counted from 1.
    """

    def __init__(self, failing: int = 1, step: int = 5):
        self.failing = failing
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if rank() == self.failing and trainer.global_step + 1 == self.step:
            raise ValueError("no such thing")


class NotANumber(Callback):
    """Makes the loss of one rank NaN in a step.

    Args:
        failing: The rank.
        step: Counted from 1.
    """

    def __init__(self, failing: int = 1, step: int = 5):
        self.failing = failing
        self.step = step

    def on_train_start(self, trainer, pl_module):
        def spoil(module, inputs, loss):
            return loss * float("nan") if trainer.global_step + 1 == self.step else loss

        if rank() == self.failing:
            pl_module.loss.register_forward_hook(spoil)
