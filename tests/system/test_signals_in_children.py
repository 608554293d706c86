"""Processes that a library forks from the program end by a signal as any process does."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from lightning.pytorch import Callback

from bytelm.program import interruptible

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def status_after(signum):
    """Exit status of a process that is forked here and gets a signal; negative where the signal ended it."""
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"!")
        time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signum)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_a_forked_process_and_is_still_handled_here(signum):
    with interruptible():
        before = signal.getsignal(signum)
        assert status_after(signum) == -signum
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(status_after, signum).result() == -signum
        assert signal.getsignal(signum) is before


def test_handlers_of_others_and_ignored_signals_stay_as_they_are():
    def own(signum, frame):
        os._exit(7)

    with interruptible():
        before = [signal.signal(signal.SIGINT, own), signal.signal(signal.SIGTERM, signal.SIG_IGN)]
        try:
            assert status_after(signal.SIGINT) == 7
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(5)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        finally:
            for signum, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(signum, handler)


class Pool(Callback):
    """Ends a pool of working processes during training."""

    seconds = 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            began = time.monotonic()
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map_async(time.sleep, [30, 30])
                time.sleep(0.2)
            Pool.seconds = time.monotonic() - began


def test_a_pool_that_a_callback_makes_while_training_ends_at_once_and_in_silence(run, capfd):
    assert threading.current_thread() is threading.main_thread()
    run("--trainer.callbacks+", "test_signals_in_children.Pool")
    assert 0.2 < Pool.seconds < 25
    assert "Traceback" not in capfd.readouterr().err
