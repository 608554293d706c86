"""Signals: which signals are one, and which ends a run at once. Real processes are in test_faults.py."""

import signal
from types import SimpleNamespace

import pytest
from added_callback import added_callback
from lightning.pytorch import Callback

from bytelm.callbacks import interruption
from bytelm.callbacks.interruption import Signals
from bytelm.errors import Interrupted

TIMES = (0.0, 0.05, 0.4, 0.9, 1.2, 1.5)  # seconds at which signals arrive


@pytest.fixture
def trainer(monkeypatch):
    """A trainer of one process, in which handlers and threads stay as they are."""
    monkeypatch.setattr(interruption.threading, "current_thread", lambda: None)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace())
    return SimpleNamespace(fit_loop=loop, strategy=SimpleNamespace(launcher=None), world_size=1)


def ending_times(signals, monkeypatch):
    """Returns the times at which a signal raises an error, in a run with a step to finish."""
    signals.deferred, ending = True, []
    for now in TIMES:
        monkeypatch.setattr(interruption.time, "monotonic", lambda now=now: now)
        try:
            signals._receive(signal.SIGINT, None)
        except Interrupted:
            ending.append(now)
    return ending


@pytest.mark.parametrize(
    ("world_size", "environment", "ending"),
    [
        (1, {}, [0.4]),  # the one at 0.05 is a repetition, and those after 0.4 do not disturb the end
        (2, {}, [1.2]),
        (1, {"TORCHELASTIC_RUN_ID": "1"}, [1.2]),
    ],
)
def test_a_second_signal_ends_a_run_at_once(trainer, monkeypatch, world_size, environment, ending):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    trainer.world_size = world_size
    signals = Signals()
    signals.on_train_start(trainer, None)
    assert ending_times(signals, monkeypatch) == ending


def test_a_run_that_ends_after_a_signal_is_not_disturbed_by_more(trainer, monkeypatch):
    signals = Signals()
    signals.on_train_start(trainer, None)
    signals.received = signal.SIGINT
    monkeypatch.setattr(interruption.time, "monotonic", lambda: 0.0)
    signals.let_end()
    assert ending_times(signals, monkeypatch) == []


def test_the_thread_that_watches_ends_with_the_run(trainer):
    closed = []
    signals = Signals()
    signals._watch = SimpleNamespace(close=lambda: closed.append(True))
    signals.teardown(trainer, None, "fit")
    signals.on_exception(trainer, None, ValueError())
    assert closed == [True, True]


class Asked(Callback):
    """Notes a signal in the third step, as the handler does."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            next(each for each in trainer.callbacks if isinstance(each, Signals)).received = signal.SIGINT


def test_the_last_line_of_an_interrupted_run_shows_its_last_step(run, capsys):
    with added_callback(Asked()), pytest.raises(Interrupted, match="after step 3"):
        run("--time_budget.limit", "100 steps")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.endswith("| stopped")]
    assert line.startswith("  3% | step 3 | loss ")
