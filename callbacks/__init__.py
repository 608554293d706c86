"""Callbacks: one behaviour a file. Yours go into any file of yours, named by import path in `trainer.callbacks`."""

from bytelm.callbacks.corpus_watch import CorpusWatch, KeepOnDataError
from bytelm.callbacks.divergence import Divergence
from bytelm.callbacks.interruption import Interruption, Signals
from bytelm.callbacks.last_checkpoint import LastCheckpoint
from bytelm.callbacks.lr_schedule import Constant, Cosine, FromFunction, Linear, LRSchedule, WarmupStableDecay
from bytelm.callbacks.prediction_writer import PredictionWriter
from bytelm.callbacks.progress_bar import BudgetBar
from bytelm.callbacks.rank_watch import RankWatch
from bytelm.callbacks.resume import Resume
from bytelm.callbacks.run_record import RunRecord
from bytelm.callbacks.throughput import Throughput
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.callbacks.train_log import TrainLog

__all__ = [
    "BudgetBar",
    "Constant",
    "CorpusWatch",
    "Cosine",
    "Divergence",
    "FromFunction",
    "Interruption",
    "KeepOnDataError",
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
