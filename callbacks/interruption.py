"""Interruption: on SIGTERM, SIGINT or SIGHUP the step is finished, a checkpoint written, and the run ended.

The exit status is 128 and the signal's number: 143, 130, 129.

A signal may reach one process of a distributed run alone. So a process that gets one only makes a note of it, and all
look at each other's notes when they meet to read the budget's clock, a second apart at most. A second signal, or one
that comes where there is nothing to finish (while the network compiles, say), ends the process at once: what was there
to be kept is kept.

Lightning's own way is to broadcast a flag and read it back before every batch, which makes the program wait for the
device: on two H200s that was 10% of the throughput of GPT-2 124M in micro-batches of 12. It is switched off here.
"""

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.last_checkpoint import LastCheckpoint
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.errors import Interrupted
from bytelm.system.process import ending_signals

SAME_SECONDS = 1.0  # a launcher passes on what the terminal has sent to every process: that is one signal, not two
ENDING_SECONDS = 10.0  # what a process has to end in, without being disturbed


class Signals(Callback):
    """Takes note of signals. First among the callbacks, so that it does so while the network compiles.

    Attributes:
        received: The signal that asks the run to end; 0 if none has.
        deferred: Whether there is a step or a validation to be finished first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        self.deferred = False
        self._received_at = 0.0
        self._deaf_seconds = SAME_SECONDS
        self._launcher: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self._launcher = trainer.strategy.launcher
        if threading.current_thread() is threading.main_thread():  # Python refuses elsewhere, as Lightning knows
            for signum in ending_signals():  # in place of Lightning's, which puts back in the end what was there before
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and now - self._received_at < self._deaf_seconds:
            return
        again, self.received, self._received_at = self.received, signum, now
        if again or not self.deferred:
            self._deaf_seconds = ENDING_SECONDS
            if self._launcher is not None:
                self._launcher.kill(signum)  # the ranks that this process has started
            raise Interrupted(signum)


class Interruption(Callback):
    """Ends a run that was asked to end, with nothing lost.

    Args:
        signals: Where signals are noted.
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
        asked = self.signals.received
        if trainer.world_size > 1:
            asked_any = torch.tensor(asked, device=trainer.strategy.root_device)
            asked = int(trainer.strategy.reduce(asked_any, reduce_op="max"))
        if not asked:
            return
        last = LastCheckpoint.of(trainer)
        kept = last is not None and last.save(trainer)
        after = f"after step {TimeBudget.of(trainer).steps}"
        if kept:
            after += f", which is in {last.path}; --ckpt_path last goes on from there"  # type: ignore[union-attr]
        raise Interrupted(asked, after, on_all_ranks=True)
