"""BudgetBar: a progress bar of the budget, on standard error: steps, loss, tokens per second, time left."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from callbacks.time_budget import TimeBudget

REFRESH_SECONDS = 0.5


class BudgetBar(ProgressBar):
    """Shows how much of the budget is used, and how training goes.

    Redrawn twice a second, so that a fast run does not spend its time on drawing (nor a GPU its time on waiting for
    the loss to be read); where standard error is no terminal, every half minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm | None = None
        self._next_refresh = 0.0
        self._status = ""
        self._interval = REFRESH_SECONDS if sys.stderr.isatty() else 30.0

    def disable(self) -> None:
        # Lightning calls this on all ranks but the first.
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._budget = TimeBudget.of(trainer)
        self._first = (self._budget.tokens, self._budget.training_seconds)
        if self._enabled:
            self._bar = tqdm(
                total=100, file=sys.stderr, dynamic_ncols=True, bar_format="{percentage:3.0f}%|{bar:20}| {desc}"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds = self._budget.training_seconds
        if self._bar is None or (seconds < self._next_refresh and not trainer.should_stop):
            return
        self._next_refresh = seconds + self._interval
        progress = self._budget.progress
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        tokens_per_sec = (self._budget.tokens - self._first[0]) / max(seconds - self._first[1], 1e-9)
        left = seconds * (1 - progress.fraction) / max(progress.fraction, 1e-9)
        self._bar.n = 100 * progress.fraction
        self._status = f"step {self._budget.steps:,} | loss {loss:.3f} | {tokens_per_sec:,.0f} tok/s"
        self._bar.set_description_str(f"{self._status} | {_clock(left)} left")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_description_str(f"{self._status} | validating")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(f"{self._status} | done")
            self._bar.close()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
