"""The callbacks that every run has, whether the command `fit` or `bytelm.fit` with objects makes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import SaveConfigCallback

from bytelm.callbacks import (
    BestCheckpoint,
    BudgetBar,
    ClaimFolder,
    CorpusWatch,
    FinalValidation,
    Header,
    Interruption,
    KeepOnDataError,
    KeepTrainedWeights,
    PredictionWriter,
    RankWatch,
    Resume,
    RunRecord,
    Samples,
    Schedules,
    Signals,
    Summary,
    TrainedWeights,
    TrainLog,
    ValidationLog,
    Validations,
)
from bytelm.callbacks.order import arrange
from bytelm.callbacks.train_log import TAGS as TRAIN_TAGS
from bytelm.data.base import TokenData
from bytelm.runs.folder import RunFolder
from bytelm.runs.score import VAL_BPB, VAL_LOSS
from bytelm.schedules import Schedule

# Callbacks that bytelm adds to a run; the user gives none of them.
ADDED_CALLBACKS = (
    *(BestCheckpoint, BudgetBar, ClaimFolder, CorpusWatch, FinalValidation, Header, Interruption, KeepOnDataError),
    *(KeepTrainedWeights, PredictionWriter, RankWatch, Resume, RunRecord, SaveConfigCallback, Schedules, Signals),
    *(Summary, TrainedWeights, TrainLog, ValidationLog, Validations),
)


def added_callbacks(
    options: Mapping[str, Any],
    schedules: Mapping[str, Schedule],
    folder: RunFolder | None,
    validations: Validations | None,
    config: dict[str, Any] | None,
    of_language_model: bool = True,
    of_token_data: bool = True,
) -> list[Callback]:
    """Returns the callbacks of a run that its user does not choose, in addition to those with a key.

    Args:
        options: Options of the Trainer. With a progress bar among its `callbacks`, or `enable_progress_bar: false`,
            bytelm's bar is left out; with `enable_model_summary: false`, the header and the summary.
        schedules: Schedules by target.
        folder: The run's folder; None for a run without one.
        validations: See `validation_times`.
        config: The run's config, as plain values; None for a run that was made from objects.
        of_language_model: Whether the module is a LanguageModel.
        of_token_data: Whether the data are TokenData.
    """
    signals, trained = Signals(), TrainedWeights()
    added: list[Callback] = [signals, Interruption(signals), trained, KeepTrainedWeights(trained)]
    added += [ValidationLog(), RankWatch(), RunRecord(), Schedules(schedules), CorpusWatch(), KeepOnDataError()]
    added.append(Resume(config or {}) if of_language_model and of_token_data else FinalValidation())
    if of_language_model:
        added.append(TrainLog())
    if validations is not None:
        added.append(validations)
    if folder is not None:
        added.append(ClaimFolder(folder))
    has_bar = any(isinstance(callback, ProgressBar) for callback in as_list(options.get("callbacks")))
    if options.get("enable_progress_bar") is not False and not has_bar:
        added.append(BudgetBar())
    if options.get("enable_model_summary") is not False:
        added += [Header(), Summary(config)]
    return added


def shown_by_lightning(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the Trainer for its own summary, a table of the modules, which only `true` shows.

    Args:
        options: Options of the Trainer. `enable_model_summary` is null by default, for bytelm's header and summary.
    """
    return {"enable_model_summary": options.get("enable_model_summary") is True}


def monitored(data: TokenData) -> list[str]:
    """Returns the values that bytelm logs for callbacks that monitor them."""
    scores = [VAL_LOSS.tag, VAL_BPB.tag] if data.counts_bytes else [VAL_LOSS.tag]
    return [*TRAIN_TAGS, *scores]


def connect(trainer: Trainer) -> None:
    """Puts a trainer's callbacks into their order, and gives Samples the function that generates text."""
    trainer.callbacks = arrange(trainer.callbacks)  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Samples):
            callback.continuation = _continuation


def as_list(value: Any) -> Sequence[Any]:
    """Returns a trainer option that may be one value or several, as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _continuation(*args: Any, **options: Any) -> Any:
    from bytelm.inference.generate import continuation  # few milliseconds, which the start of a run does not need

    return continuation(*args, **options)
