"""Callbacks: one behaviour a file. Yours go into any file of yours, named by import path in `trainer.callbacks`."""

from callbacks.divergence import Divergence
from callbacks.interruption import Interruption, Signals
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.lr_schedule import Constant, Cosine, FromFunction, Linear, LRSchedule, WarmupStableDecay
from callbacks.prediction_writer import PredictionWriter
from callbacks.progress_bar import BudgetBar
from callbacks.rank_watch import RankWatch
from callbacks.resume import Resume
from callbacks.run_record import RunRecord
from callbacks.throughput import Throughput
from callbacks.time_budget import TimeBudget
from callbacks.train_log import TrainLog

__all__ = [
    "BudgetBar",
    "Constant",
    "Cosine",
    "Divergence",
    "FromFunction",
    "Interruption",
    "LRSchedule",
    "LastCheckpoint",
    "Linear",
    "PredictionWriter",
    "RankWatch",
    "Resume",
    "RunRecord",
    "Signals",
    "Throughput",
    "TimeBudget",
    "TrainLog",
    "WarmupStableDecay",
]
