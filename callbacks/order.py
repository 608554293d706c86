"""The order of callbacks. Lightning calls each hook of all callbacks in the order of this list."""

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor
from lightning.pytorch.cli import SaveConfigCallback

from bytelm.callbacks.averages import KeepTrainedWeights, TrainedWeights
from bytelm.callbacks.corpus_watch import CorpusWatch, KeepOnDataError
from bytelm.callbacks.divergence import Divergence
from bytelm.callbacks.final_validation import FinalValidation
from bytelm.callbacks.header import Header
from bytelm.callbacks.interruption import Interruption, Signals
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


class Yours:
    """Stands for all callbacks that are not in the list: the user's, and those that Lightning adds."""


# Each callback follows those above it, for the reason beside it; several at one place keep their relative order.
ORDER: tuple[type, ...] = (
    Signals,  # notes signals from the first hook on, also while the network compiles
    ClaimFolder,  # makes the run's folder in setup, which all below may ask for
    TrainedWeights,  # keeps the trained weights, before WeightAveraging puts the average in their place
    Yours,  # in the order of the config; before the budget, whose clock counts their time in the step
    KeepTrainedWeights,  # puts them into checkpoints, after WeightAveraging has put the average there
    MemoryLimit,  # rejects a limit that is too small, before the budget's warm-up takes the memory
    Header,  # prints what is trained, before the budget's warm-up, which may take minutes
    TimeBudget,  # reads the clock when a step has ended; those below use its progress
    Schedules,  # sets learning rates and all else that is scheduled by the progress at a step's beginning
    LearningRateMonitor,  # after Schedules, whose rates of the step it logs
    Divergence,  # ends the run, or takes it back, before anything is logged or saved of a loss that is not finite
    Throughput,  # logs what the budget has just read
    BudgetBar,  # before RunRecord: the bar is closed when the scores are printed
    TrainLog,  # before checkpoints: one that is written after a step is written after its logs
    ValidationLog,  # after the budget, whose progress it writes down
    Validations,  # after the budget, whose progress it reads; before checkpoints, which store what is due
    Samples,  # after the budget, which stops its clock for them
    Resume,  # after the budget, which says at which step the run is, and after all that may change its weights
    FinalValidation,  # where there is no Resume, which is one; after all that may change the weights
    RankWatch,  # before RunRecord: in on_exception it finds out which rank was lost
    KeepOnDataError,  # before RunRecord: in on_exception it writes the checkpoint that the record names
    RunRecord,  # after all that may change what came of the run
    Summary,  # after RunRecord: it compares the score that the record has printed
    CorpusWatch,  # ends a run whose corpus has changed, after RunRecord has seen the step
    Interruption,  # ends a run that was asked to end, after all others are done with the step
    PredictionWriter,  # writes the predictions, which none of the others reads
    SaveConfigCallback,  # writes the config, after the setups that may reject the run
    Checkpoint,  # last, as in Lightning: it saves the state that the others have reached
)
YOURS = ORDER.index(Yours)


def arrange(callbacks: Iterable[Callback]) -> list[Callback]:
    """Returns callbacks in the order of the list; callbacks at the same place keep their relative order.

    Args:
        callbacks: Callbacks of a trainer.
    """
    return sorted(callbacks, key=_place)


def _place(callback: Callback) -> int:
    return next((number for number, kind in enumerate(ORDER) if isinstance(callback, kind)), YOURS)
