"""Callbacks: one behaviour a file. Yours go into any file of yours, named by import path in `trainer.callbacks`."""

from callbacks.lr_schedule import Constant, Cosine, FromFunction, Linear, LRSchedule, WarmupStableDecay
from callbacks.prediction_writer import PredictionWriter
from callbacks.progress_bar import BudgetBar
from callbacks.run_record import RunRecord
from callbacks.throughput import Throughput
from callbacks.time_budget import TimeBudget

__all__ = [
    "BudgetBar",
    "Constant",
    "Cosine",
    "FromFunction",
    "LRSchedule",
    "Linear",
    "PredictionWriter",
    "RunRecord",
    "Throughput",
    "TimeBudget",
    "WarmupStableDecay",
]
