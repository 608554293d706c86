"""SignalWatch: the end of a process whose main thread does not react to a second signal."""

import signal
import threading

import pytest

from bytelm.system import signal_watch
from bytelm.system.signal_watch import SignalWatch

SIGUSR1 = getattr(signal, "SIGUSR1", None)
pytestmark = pytest.mark.skipif(SIGUSR1 is None, reason="a signal of POSIX systems")


@pytest.fixture(autouse=True)
def _no_effect():
    before = signal.signal(SIGUSR1, lambda *_: None)
    yield
    signal.signal(SIGUSR1, before)


def watch_thread():
    (thread,) = [each for each in threading.enumerate() if each.name == "signal-watch"]
    return thread


def test_the_second_signal_ends_the_process_if_nothing_reacts_to_it(monkeypatch):
    monkeypatch.setattr(signal_watch, "GRACE_SECONDS", 0)
    ended, called = threading.Event(), []
    watch = SignalWatch({SIGUSR1}, 0.0, lambda number: (called.append(number), ended.set()))
    thread = watch_thread()
    signal.raise_signal(SIGUSR1)
    signal.raise_signal(SIGUSR1)
    assert ended.wait(60)
    thread.join(60)
    watch.close()
    assert called == [SIGUSR1]


@pytest.mark.parametrize(("watched", "apart"), [({SIGUSR1}, 0.0), ({SIGUSR1}, 1e9), ({signal.SIGINT}, 0.0)])
def test_nothing_is_ended_after_a_reaction_a_repetition_or_other_signals(monkeypatch, watched, apart):
    monkeypatch.setattr(signal_watch, "GRACE_SECONDS", 60)
    called = []
    before = signal.set_wakeup_fd(-1)
    watch = SignalWatch(watched, apart, called.append)
    thread = watch_thread()
    signal.raise_signal(SIGUSR1)
    signal.raise_signal(SIGUSR1)
    watch.close()
    watch.close()
    thread.join(60)
    assert not thread.is_alive()
    assert called == []
    assert signal.set_wakeup_fd(before) == -1
