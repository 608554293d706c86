"""The order of callbacks is the order of one list, whatever callbacks a config adds."""

from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary

from bytelm import callbacks
from bytelm.callbacks.order import ORDER, arrange
from bytelm.cli import build

MINE = "from lightning.pytorch import Callback\n\nclass A(Callback): pass\n\nclass B(Callback): pass\n"
TINY = ("--config", "tiny.yaml")


def names(trainer):
    return [type(callback).__name__ for callback in trainer.callbacks]


def test_a_run_has_its_callbacks_in_order(folder):
    assert names(build(TINY, run=False).trainer) == [
        *("Signals", "ClaimFolder", "TrainedWeights", "KeepTrainedWeights", "Header", "TimeBudget", "Schedules"),
        "Divergence",
        *(
            "Throughput",
            "BudgetBar",
            "TrainLog",
            "ValidationLog",
            "Validations",
            "Samples",
            "Resume",
            "RankWatch",
            "KeepOnDataError",
        ),
        *("RunRecord", "Summary", "CorpusWatch", "Interruption", "RunConfig", "BestCheckpoint", "LastCheckpoint"),
    ]


def test_the_users_callbacks_come_before_the_budget_in_the_order_of_the_config(folder):
    Path("my_callbacks.py").write_text(MINE)
    added = ["my_callbacks.B", "ModelCheckpoint", "LearningRateMonitor", "my_callbacks.A"]
    added[1] = "{class_path: ModelCheckpoint, init_args: {monitor: val/loss}}"
    cli = build([*TINY, *(f"--trainer.callbacks+={each}" for each in added)], run=False)
    first = ["Signals", "ClaimFolder", "TrainedWeights", "B", "A", "KeepTrainedWeights", "Header", "TimeBudget"]
    assert names(cli.trainer)[:10] == [*first, "Schedules", "LearningRateMonitor"]
    assert names(cli.trainer)[-3:] == ["ModelCheckpoint", "BestCheckpoint", "LastCheckpoint"]
    assert [callback.monitor for callback in cli.trainer.callbacks[-3:-1]] == ["val/loss", "val/bpb"]


def test_any_order_is_arranged_and_equals_keep_theirs():
    signals = callbacks.Signals()
    made = [
        callbacks.Schedules({}),
        callbacks.Interruption(signals),
        callbacks.Divergence(),
        signals,
        callbacks.TrainLog(),
    ]
    mine = [ModelSummary(), Callback(), ModelSummary(), ModelCheckpoint(), callbacks.LastCheckpoint()]
    arranged = arrange([mine[3], *reversed(made), *mine[:3], mine[4]])
    assert arranged == [signals, *mine[:3], made[0], made[2], made[4], made[1], *mine[3:]]
    assert arrange(arranged) == arranged


@pytest.mark.parametrize("name", [name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), Callback)])
def test_every_callback_of_bytelm_has_a_place_of_its_own(name):
    kind = getattr(callbacks, name)
    assert issubclass(kind, ORDER)
