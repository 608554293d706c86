"""Callbacks: one behaviour per file. Your own callbacks go into your own files; `trainer.callbacks` names them."""

if __name__ == "callbacks":
    # With a checkout on the import path, this folder is also found under the name `callbacks`. That name belongs to the
    # user: it leads to the user's folder, if there is one, and never to bytelm's.
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)[1:]
else:
    from bytelm.callbacks.averages import KeepTrainedWeights, TrainedWeights
    from bytelm.callbacks.best_checkpoint import BestCheckpoint
    from bytelm.callbacks.corpus_watch import CorpusWatch, KeepOnDataError
    from bytelm.callbacks.divergence import Divergence
    from bytelm.callbacks.final_validation import FinalValidation
    from bytelm.callbacks.header import Header
    from bytelm.callbacks.interruption import Interruption, Signals
    from bytelm.callbacks.last_checkpoint import LastCheckpoint
    from bytelm.callbacks.memory_limit import MemoryLimit
    from bytelm.callbacks.prediction_writer import PredictionWriter
    from bytelm.callbacks.progress_bar import BudgetBar
    from bytelm.callbacks.rank_watch import RankWatch
    from bytelm.callbacks.resume import Resume
    from bytelm.callbacks.run_folder import ClaimFolder
    from bytelm.callbacks.run_record import RunRecord
    from bytelm.callbacks.samples import Samples
    from bytelm.callbacks.schedules import Schedules
    from bytelm.callbacks.summary import Summary
    from bytelm.callbacks.throughput import Throughput
    from bytelm.callbacks.time_budget import TimeBudget
    from bytelm.callbacks.train_log import TrainLog
    from bytelm.callbacks.validation_log import ValidationLog
    from bytelm.callbacks.validations import Validations
    from bytelm.schedules import (
        Constant,
        Cosine,
        FromFunction,
        Linear,
        LRSchedule,
        Piecewise,
        Ramp,
        Schedule,
        WarmupStableDecay,
    )

__all__ = [
    "BestCheckpoint",
    "BudgetBar",
    "ClaimFolder",
    "Constant",
    "CorpusWatch",
    "Cosine",
    "Divergence",
    "FinalValidation",
    "FromFunction",
    "Header",
    "Interruption",
    "KeepOnDataError",
    "KeepTrainedWeights",
    "LRSchedule",
    "LastCheckpoint",
    "Linear",
    "MemoryLimit",
    "Piecewise",
    "PredictionWriter",
    "Ramp",
    "RankWatch",
    "Resume",
    "RunRecord",
    "Samples",
    "Schedule",
    "Schedules",
    "Signals",
    "Summary",
    "Throughput",
    "TimeBudget",
    "TrainLog",
    "TrainedWeights",
    "ValidationLog",
    "Validations",
    "WarmupStableDecay",
]
