"""Interruption: SIGTERM, SIGINT or SIGHUP ends the run after the current step, with a checkpoint.

The exit status is 128 plus the signal's number: 143, 130, 129.

A signal may reach only one process of a distributed run. Therefore a process that receives one only makes a note of it,
and all ranks compare their notes when they read the budget's clock together, at most one second apart. A second signal
ends the process at once, and so does a signal that arrives when there is nothing to finish (for example while the
network compiles). Files that were already written are kept. A launcher of several processes may repeat a signal: there
the second one counts from one second after the first. Python notices a signal only when an operator has ended, which
may be seconds later; then system/signal_watch.py ends the process, and the run leaves no record.

Lightning broadcasts a flag and reads it back before every batch, which makes the program wait for the device: on two
H200s this cost 10% of the throughput of GPT-2 124M in micro-batches of 12. It is switched off here.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.last_checkpoint import LastCheckpoint
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.errors import Interrupted
from bytelm.system.process import default_signals_in_children, ending_signals
from bytelm.system.signal_watch import SignalWatch

REPEATED_SECONDS = 0.1  # `timeout` sends a signal to a process and then to its group: that is one signal
LAUNCHED_SECONDS = 1.0  # torchrun repeats a signal that the terminal has sent to every process
ENDING_SECONDS = 10.0  # time for a process to end undisturbed


class Signals(Callback):
    """Notes signals. First among the callbacks, because it must do so while the network compiles.

    Attributes:
        received: The signal that asks the run to end; 0 if there is none.
        deferred: Whether a step or a validation must be finished first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        self.deferred = False
        self._received_at = 0.0
        self._deaf_seconds = REPEATED_SECONDS
        self._launcher: Any = None
        self._watch: SignalWatch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self._launcher = trainer.strategy.launcher
        if trainer.world_size > 1 or TorchElasticEnvironment.detect() or SLURMEnvironment.detect():
            self._deaf_seconds = LAUNCHED_SECONDS
        if threading.current_thread() is threading.main_thread():  # Python allows it only there, as Lightning knows
            default_signals_in_children()
            for signum in ending_signals():  # replaces Lightning's, which restores the previous handlers at the end
                signal.signal(signum, self._receive)
            self._watch = SignalWatch(ending_signals(), self._deaf_seconds, self._end_now)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_watching()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop_watching()

    def let_end(self) -> None:
        """Ignores signals from now on: the run is ending."""
        self._received_at, self._deaf_seconds = time.monotonic(), ENDING_SECONDS
        self._stop_watching()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and now - self._received_at < self._deaf_seconds:
            return
        again, self.received, self._received_at = self.received, signum, now
        if again or not self.deferred:
            self.let_end()
            self._end_launched(signum)
            raise Interrupted(signum)

    def _end_launched(self, signum: int) -> None:
        if self._launcher is not None:
            self._launcher.kill(signum)  # the ranks that this process has started

    def _end_now(self, signum: int) -> None:
        """Ends the process, called in another thread while the main thread is in an operator."""
        self._end_launched(signum)
        error = Interrupted(signum)
        print(f"\nbytelm: error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_status)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.close()


class Interruption(Callback):
    """Ends a run after a signal; no finished work is lost.

    Args:
        signals: The callback that notes signals.
    """

    def __init__(self, signals: Signals) -> None:
        super().__init__()
        self.signals = signals

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.deferred = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if TimeBudget.of(trainer).clock_synced:
            self._end_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self.signals.deferred:
            self._end_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.deferred = False

    def _end_if_asked(self, trainer: Trainer) -> None:
        asked = TimeBudget.of(trainer).ranks.largest(self.signals.received)
        if not asked:
            return
        last = LastCheckpoint.of(trainer)
        kept = last is not None and last.save(trainer)
        after = f"after step {TimeBudget.of(trainer).steps}"
        if kept:
            after += f", which is in {last.path}; --ckpt_path last resumes from there"  # type: ignore[union-attr]
        self.signals.let_end()
        raise Interrupted(asked, after, on_all_ranks=True)
