"""BudgetBar: a progress bar of the budget, on standard error: steps, loss, tokens per second, time left.

A validation, test or prediction outside training has a plain bar of its batches.
"""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from bytelm.callbacks.time_budget import TimeBudget
from bytelm.errors import Interrupted, run_error
from bytelm.log_steps import StepLoss
from bytelm.system.behind import HostCopy, runs_behind
from bytelm.system.streams import can_redraw
from bytelm.units import clock

TERMINAL_REFRESH_SECONDS = 0.5
FILE_REFRESH_SECONDS = 30.0


class BudgetBar(ProgressBar):
    """Shows the used share of the budget, and the progress of training.

    The bar is redrawn twice a second, because drawing takes time in a fast run. The loss of a GPU is that of the step
    before: waiting for the last one would leave the GPU without work.
    Of several processes, it shows the loss of the first; the record has the mean of all.
    If standard error is neither a terminal nor the output of a notebook, a line is written every half minute. At the
    end of a run that has used up its budget, the bar is full.
    """

    reads_budget = True  # must follow TimeBudget in a trainer's list of callbacks

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm | Lines | None = None
        self._next_refresh = 0.0
        self._status = ""
        self._loss = StepLoss()
        self._copied: HostCopy | None = None  # a device's loss, on the way to the bar
        self._redraws = can_redraw(sys.stderr)
        self._interval = TERMINAL_REFRESH_SECONDS if self._redraws else FILE_REFRESH_SECONDS

    def disable(self) -> None:
        # Lightning calls this on all ranks except the first.
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._budget = TimeBudget.of(trainer)
        self._first = (self._budget.steps, self._budget.tokens, self._budget.training_seconds)
        self._open(100, bar_format="{percentage:3.0f}%|{bar:20}| {desc}", leaves_lines=not self._redraws)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss.add(trainer, outputs, batch_idx)
        seconds = self._budget.training_seconds
        copied, self._copied = self._copied, None
        too_early = copied is None and (seconds < self._next_refresh or self._budget.steps == self._first[0])
        if self._bar is None or (too_early and not trainer.should_stop):
            return
        if copied is None and self._loss.value is not None and not trainer.should_stop:
            copied = HostCopy(self._loss.value)
            if runs_behind(self._loss.value.device):
                self._copied = copied  # shown after the next step
                return
        self._next_refresh = seconds + self._interval
        left = self._read(copied)
        if self._redraws or not trainer.should_stop:  # the end of the run writes the last line
            self._describe(f"{left} left")

    def _read(self, loss: HostCopy | None = None) -> str:
        """Reads the budget and the loss for the next description; returns the time that is left.

        Args:
            loss: A copy of the loss that is shown; default: the last step's, which a device may have to compute.
        """
        assert self._bar is not None, "the bar is open"
        seconds, progress = self._budget.training_seconds, self._budget.progress
        shown = [f"step {self._budget.steps:,}"]
        value = self._loss.value if loss is None else loss.read()
        if value is not None:  # a skipped step has no loss; manual optimization may have none
            shown.append(f"loss {float(value):.3f}")
        shown.append(self._speed(seconds))
        self._bar.n = 100 * progress.fraction
        self._status = " | ".join(shown)
        return clock(seconds * (1 - progress.fraction) / max(progress.fraction, 1e-9))

    def _speed(self, seconds: float) -> str:
        """Tokens per second, or steps per second if tokens are not counted."""
        first_step, first_token, first_second = self._first
        taken = max(seconds - first_second, 1e-9)
        if self._budget.counts.knows("tokens"):
            return f"{(self._budget.tokens - first_token) / taken:,.0f} tok/s"
        return f"{(self._budget.steps - first_step) / taken:,.1f} steps/s"

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None and self._status:
            self._read()  # a validation may have ended the run, as EarlyStopping does
        if self._bar is not None and self._budget.is_used_up:
            self._bar.n = 100  # the last step ends before the limit: there was no time for another
        self._close("done")

    # Validation (also during training), test, prediction

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._open(sum(trainer.num_val_batches), desc="validating")
        elif self._bar is not None and self._redraws:
            self._describe("validating")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == "validate":
            self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(sum(trainer.num_test_batches), desc="testing")

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(sum(trainer.num_predict_batches), desc="predicting")

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        is_asked = isinstance(run_error(exception), Interrupted)  # after an error, reading from a device may fail
        if self._bar is not None and self._status and is_asked:
            self._read()
        self._close("stopped")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close("stopped")  # before the end, if the bar still exists

    def _open(self, total: float, leaves_lines: bool = False, **options: Any) -> None:
        if self._enabled and leaves_lines:
            self._bar = Lines(total)
        elif self._enabled:
            self._bar = tqdm(total=total, file=sys.stderr, dynamic_ncols=True, mininterval=self._interval, **options)

    def _describe(self, state: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(" | ".join(filter(None, (self._status, state))))

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _close(self, state: str | None = None) -> None:
        if self._bar is not None:
            if state is not None:
                self._describe(state)
            self._bar.close()
            self._bar = None


class Lines:
    """Replaces a bar where it cannot be redrawn: each description is a line.

    Attributes:
        n: Finished part of `total`.
        total: The whole.
    """

    def __init__(self, total: float) -> None:
        self.n = 0.0
        self.total = total

    def set_description_str(self, text: str) -> None:
        """Writes a line."""
        print(f"{100 * self.n / self.total:3.0f}% | {text}", file=sys.stderr, flush=True)

    def update(self) -> None:
        """Adds 1 to the finished part."""
        self.n += 1

    def close(self) -> None:
        """Does nothing; a bar would write its end."""
