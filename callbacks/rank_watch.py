"""RankWatch: when one rank of a distributed run dies, the others end within a minute and name it.

Without it, they would wait in their next collective: NCCL waits for ten minutes, and then reports a time-out without a
rank. A thread on every rank increases a counter in a store on rank 0, and checks that the other counters increase.
"""

import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.run_record import RunRecord
from bytelm.errors import DataError, Interrupted, RankLost, RunError, run_error

BEAT_SECONDS = 1.0
PATIENCE = 25  # beats that a rank may miss; counted, not timed: a machine that was asleep has missed none
GRACE_SECONDS = 5.0  # for the program to end by itself, after the lost rank is known
GOODBYE_SECONDS = 10.0  # for the ranks to sign off
EVERY_COLLECTIVE = ("gloo", "nccl")  # in the messages of errors that a dead rank causes on the others


class RankWatch(Callback):
    """Watches the ranks of a distributed run while they train."""

    def __init__(self) -> None:
        super().__init__()
        self._store: dist.TCPStore | None = None
        self._over = threading.Event()  # this rank ends, for any reason
        self._lost: RunError | None = None
        self._known = threading.Event()  # the lost rank is known
        self._rounds = 0  # rounds of the watch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        self._trainer = trainer
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._launched: list[Any] = getattr(trainer.strategy.launcher, "procs", [])  # ranks 1, 2, … of this host
        address = trainer.strategy.cluster_environment.main_address  # type: ignore[attr-defined]
        patience = timedelta(seconds=BEAT_SECONDS * PATIENCE)
        if self._rank == 0:
            self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=patience)
        port = trainer.strategy.broadcast(self._store.port if self._store else 0)
        if self._store is None:
            self._store = dist.TCPStore(address, port, is_master=False, timeout=patience)
        self._store.set(f"name/{self._rank}", f"rank {self._rank} ({socket.gethostname()}, pid {os.getpid()})")
        trainer.strategy.barrier()
        self._names = {rank: self._store.get(f"name/{rank}").decode() for rank in range(self._world_size)}
        _dismiss_lightnings_observer()
        threading.Thread(target=self._watch, args=(self._store,), name="rank-watch", daemon=True).start()
        if self._rank > 0:
            threading.Thread(target=self._watch_store, name="store-watch", daemon=True).start()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._store is None:
            return
        cause = run_error(exception)
        if cause is not None and cause.on_all_ranks:
            self._take_leave(self._store)
        elif any(name in str(exception).lower() for name in EVERY_COLLECTIVE):
            if self._known.wait(BEAT_SECONDS * (PATIENCE + 5)):
                exception.__cause__ = self._lost
        else:
            if isinstance(cause, Interrupted):  # there was no step to finish yet: only this rank knows of it
                self._store.set("signal", str(cause.signum))
            if isinstance(cause, DataError):  # the others would have met it too
                self._store.set("status", str(cause.exit_status))
            self._store.set("lost", f"{self._names[self._rank]} failed: {type(exception).__name__}: {exception}")
            self._over.set()
            time.sleep(2 * BEAT_SECONDS)  # time for the others to read it: the store ends with rank 0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._store is not None:
            self._take_leave(self._store)

    # The watching thread

    def _watch(self, store: dist.TCPStore) -> None:
        counts: dict[int, int] = {}
        missed: dict[int, int] = {}
        while not self._over.wait(BEAT_SECONDS):
            self._rounds += 1
            try:
                store.add(f"beat/{self._rank}", 1)
                if store.check(["lost"]):
                    lost = store.get("lost").decode()
                    if not store.check(["signal"]):
                        error = RankLost(lost)
                        if store.check(["status"]):
                            error.exit_status = int(store.get("status"))
                        return self._end(error)
                    signum = int(store.get("signal"))
                    os.kill(os.getpid(), signum)  # as if it had arrived here
                    return self._end(Interrupted(signum, f"as {lost}"))
                # Rank 0 watches all others; they watch rank 0, which tells them.
                for rank in range(1, self._world_size) if self._rank == 0 else [0]:
                    if store.check([f"goodbye/{rank}"]):
                        continue
                    count = store.add(f"beat/{rank}", 0)
                    missed[rank] = 0 if count != counts.get(rank) else missed[rank] + 1
                    counts[rank] = count
                    if (how := self._how_it_died(rank)) or missed[rank] > PATIENCE:
                        lost = f"{self._names[rank]} {how or 'does not answer any more'}"
                        store.set("lost", lost)
                        return self._end(RankLost(lost))
            except dist.DistError:
                if not self._over.is_set():
                    return self._end(RankLost(f"{self._names[0]} is gone"))

    def _watch_store(self) -> None:
        """Ends the program if rank 0 hangs: its store then does not answer, and `_watch` hangs too."""
        seen, missed = -1, 0
        while not self._over.wait(BEAT_SECONDS) and not self._known.is_set():
            missed = 0 if seen != self._rounds else missed + 1
            seen = self._rounds
            if missed > PATIENCE:
                return self._end(RankLost(f"{self._names[0]} does not answer any more"))

    def _how_it_died(self, rank: int) -> str | None:
        """Returns how a rank that this process has started ended, as the system reports it; None if it runs."""
        process = self._launched[rank - 1] if 0 < rank <= len(self._launched) else None
        status = process and process.poll()
        if status is None:
            return None
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def _end(self, error: RunError) -> None:
        self._lost = error
        self._known.set()
        if self._over.wait(GRACE_SECONDS):
            return
        # The program waits in a collective that will never end.
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunRecord):
                callback.write_failure(self._trainer, error)
        print(f"bytelm: error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_status)

    def _take_leave(self, store: dist.TCPStore) -> None:
        """Ends the watch over this rank. Rank 0 goes last, because the others need its store for this."""
        if self._over.is_set():
            return
        self._over.set()
        try:
            store.set(f"goodbye/{self._rank}", "")
            if self._rank == 0:
                store.wait([f"goodbye/{rank}" for rank in range(self._world_size)], timedelta(seconds=GOODBYE_SECONDS))
        except dist.DistError:
            pass  # the others have ended


def _dismiss_lightnings_observer() -> None:
    """Stops the thread with which Lightning's launcher kills all ranks, without a message, if one fails."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]
