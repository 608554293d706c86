"""Training of objects: a model, data and callbacks that Python code has made, as `fit` takes them (train.py).

The command line checks a config key by key, and then makes its objects. Here the objects are there, and are checked as
far as the command would check them; messages name the arguments of `fit`.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden

from bytelm import run_trainer
from bytelm.callbacks import (
    BestCheckpoint,
    BudgetBar,
    Divergence,
    LastCheckpoint,
    Samples,
    Schedules,
    Throughput,
    TimeBudget,
)
from bytelm.callbacks.best_checkpoint import BestOfAnyModule
from bytelm.config.checks import check_experiment
from bytelm.config.messages import note
from bytelm.config.unused import of_class, of_object, without_effect
from bytelm.data.base import TokenData
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.lightning_output import quieten
from bytelm.parts.contract import class_of
from bytelm.run_callbacks import ADDED_CALLBACKS, added_callbacks, as_list, monitored, shown_by_lightning
from bytelm.runs import logger as loggers
from bytelm.runs.folder import RunFolder, runs_root
from bytelm.runs.logger import TensorBoardLogger
from bytelm.runs.score import score_for
from bytelm.schedules import Schedule, merged
from bytelm.strategies import FSDP
from bytelm.system.process import is_rank_zero
from bytelm.trainer_options.checks import check_callbacks, check_monitors, check_new_run
from bytelm.trainer_options.epochs import check_epochs, check_needs, validation_times
from bytelm.trainer_options.plugins import check_plugins

Run = tuple[RunFolder | None, LightningModule, Trainer]
REPLACED = (BestCheckpoint, BudgetBar)  # of the callbacks that every run has, those that the user's replace
ACCEPTED = {
    "model": "a bytelm.gpt.GPT, or a LightningModule",
    "data": "a LightningDataModule, such as LightningDataModule.from_datasets(train, val, batch_size=…)",
}


def fit_objects(
    model: GPT | LightningModule | None,
    data: LightningDataModule | None,
    limit: str | list[str] | None,
    lr_schedule: Schedule | None,
    schedules: Mapping[str, Schedule] | None,
    callbacks: Callback | Sequence[Callback] | None,
    experiment: str | None,
    seed: int | None,
    trainer: dict[str, Any],
) -> Run:
    """Trains a model; the arguments are those of `fit`, and `trainer` has the options of Lightning's Trainer.

    Returns:
        The run's folder, if it has one, the trained module and the Trainer.

    Raises:
        ConfigError: An argument cannot be used.
    """
    if model is None or data is None:
        missing = "model" if model is None else "data"
        raise ConfigError(missing, None, "accepted: configs, or a model and data")
    if "ckpt_path" in trainer:
        reason = 'accepted with configs: fit("my.yaml", {"ckpt_path": "last"}) resumes a run'
        raise ConfigError("ckpt_path", trainer["ckpt_path"], reason)
    for key in trainer.keys() - inspect.signature(Trainer).parameters.keys():
        raise ConfigError(key, trainer[key], "accepted: arguments of fit, and options of Lightning's Trainer")
    for key, value, kind in (("model", model, GPT | LightningModule), ("data", data, LightningDataModule)):
        if not isinstance(value, kind):
            raise ConfigError(key, value, f"accepted: {ACCEPTED[key]}")
    for key, schedule in {"lr_schedule": lr_schedule, **(schedules or {})}.items():
        if schedule is not None and not isinstance(schedule, Schedule):
            raise ConfigError(key, schedule, "accepted: a schedule, such as bytelm.callbacks.Cosine()")
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise ConfigError("seed", seed, "accepted: a whole number from 0 to 2**32 - 1")
    made = LanguageModel(model) if isinstance(model, GPT) else model
    own = [callbacks] if isinstance(callbacks, Callback) else [*(callbacks or ())]
    with _keys_as_arguments(), _callbacks_configured(made, own) as own:
        _check_callbacks(own, trainer)
        all_schedules = merged(lr_schedule, schedules or {})
        seed_everything(42 if seed is None else seed, workers=True, verbose=False)
        own = [TimeBudget("180s" if limit is None else limit), *own]  # type: ignore[arg-type]
        return _fit(made, data, own, all_schedules, experiment or "python", trainer)


@contextmanager
def _callbacks_configured(module: LightningModule, given: list[Callback]) -> Iterator[list[Callback]]:
    """Context in which a module's `configure_callbacks` returns nothing, with its callbacks in the list, as Lightning.

    Lightning would add them when the run begins: unchecked, and after bytelm's callbacks.

    Args:
        module: The module.
        given: The callbacks that are given beside it. Of these, the module's replace those of the same class, or of a
            base of it.
    """
    made = module.configure_callbacks()
    own = [made] if isinstance(made, Callback) else [*made]
    kept = [each for each in given if type(each) is Callback or not any(isinstance(one, type(each)) for one in own)]
    module.configure_callbacks = list  # type: ignore[method-assign]
    try:
        yield [*kept, *own]
    finally:
        del module.configure_callbacks


def _check_callbacks(callbacks: list[Callback], options: Mapping[str, Any]) -> None:
    """Checks the callbacks of the second form, as those of `trainer.callbacks` are checked.

    Raises:
        ConfigError: One is not accepted.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError("callbacks", callback, "accepted: objects of subclasses of lightning.pytorch.Callback")
        if isinstance(callback, Schedules):
            raise ConfigError("callbacks", "Schedules", "every run has one; accepted: the argument schedules")
    for cls in (*REPLACED, Divergence, LastCheckpoint, Samples, Throughput):
        if sum(isinstance(callback, cls) for callback in callbacks) > 1:
            raise ConfigError("callbacks", cls.__name__, "there are several; accepted: one")
    others = tuple(cls for cls in ADDED_CALLBACKS if cls not in REPLACED)
    logs = options.get("logger") not in (False, [])
    check_callbacks(callbacks, {"limit": TimeBudget}, others, logs, keys_are="the argument")


@contextmanager
def _keys_as_arguments() -> Iterator[None]:
    """Context in which errors name arguments of `fit` in place of a config's keys."""

    def renamed(text: str) -> str:
        return text.replace("time_budget.limit", "limit").replace("trainer.", "")

    try:
        yield
    except ConfigError as error:
        if not error.key.startswith(("trainer", "time_budget")):
            raise
        raise type(error)(renamed(error.key), error.value, renamed(error.accepted)) from error


def _fit(
    module: LightningModule,
    data: LightningDataModule,
    callbacks: list[Callback],
    schedules: dict[str, Schedule],
    experiment: str,
    options: dict[str, Any],
) -> Run:
    quieten()
    check_experiment(experiment)
    defaults = dict(run_trainer.DEFAULTS)
    if not isinstance(module, LanguageModel):
        del defaults["num_sanity_val_steps"]  # Lightning's: an error in the user's validation ends a run at its start
    options = {**defaults, **options, "callbacks": callbacks}
    named = _named(options)
    check_plugins(named)
    with run_trainer.errors_of_options(named):  # a value of another type
        run_trainer.check_given(options)
    for each in _without_effect(module, data, callbacks, schedules, named, defaults):
        note(each)
    folder = None
    if not options.get("fast_dev_run"):
        folder = RunFolder(runs_root(options.get("default_root_dir")) / experiment)
        if options.get("logger") in (None, True):
            options["logger"] = TensorBoardLogger()
    times, validations = validation_times(options, scope="training")
    callbacks = [*callbacks, *_with_a_key(module, data, options)]
    kinds = isinstance(module, LanguageModel), isinstance(data, TokenData)
    callbacks += added_callbacks(options, schedules, folder, validations, None, *kinds)
    changed = {**run_trainer.changed_options(options), **times, **shown_by_lightning(options)}
    with run_trainer.errors_of_options(named):
        trainer = Trainer(**{**options, **changed, "callbacks": callbacks})
    run_trainer.complete(trainer, as_list(options.get("plugins")))
    for logger in trainer.loggers:
        if not isinstance(logger, Logger):
            accepted = "accepted: objects of subclasses of lightning.pytorch.loggers.Logger"
            raise ConfigError("logger", options["logger"], accepted)
    loggers.prepare(trainer, folder)
    run_trainer.check_made(trainer, options)
    if isinstance(trainer.strategy, FSDP) and not is_overridden("configure_model", module):
        reason = f"{type(module).__name__} has no method configure_model, which shards it; accepted: ddp"
        raise ConfigError("strategy", "fsdp", reason)
    TimeBudget.of(trainer).check(trainer)
    if isinstance(data, TokenData):
        if isinstance(module, LanguageModel):
            module.check(data, trainer)
            check_monitors(trainer.callbacks, monitored(data))  # type: ignore[attr-defined]
        if is_rank_zero():  # others might search while this one downloads
            data.prepare_data()
            data.setup("fit")  # missing data are an error before the run has a folder
            data.trainer = trainer
            check_epochs(trainer, data)
    check_needs(trainer, {"trainer": {}})
    check_new_run(trainer.callbacks)  # type: ignore[attr-defined]
    with run_trainer.running(trainer, folder, {"trainer": named}, {}):
        trainer.fit(module, datamodule=data)
    return folder, module, trainer


def _without_effect(
    module: LightningModule,
    data: LightningDataModule,
    callbacks: list[Callback],
    schedules: Mapping[str, Schedule],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Iterator[str]:
    """Yields notes of options without effect, as the command prints them of a config (bytelm/config/unused.py).

    Args:
        module: The module.
        data: The data.
        callbacks: The user's callbacks.
        schedules: Schedules by target.
        options: Options of the Trainer, as `_named` returns them.
        defaults: Those of its options that differ from Lightning's defaults.
    """
    yield from (line.replace("trainer.", "") for line in without_effect({"trainer": options}, defaults))
    objects = {"data": data, **{type(callback).__name__: callback for callback in callbacks}}
    for key, made in {**objects, **{f"schedules.{target}": each for target, each in schedules.items()}}.items():
        yield from of_object(made, key)
    if isinstance(module, LanguageModel) and isinstance(module.optimizer, partial):
        yield from of_class(class_of(module.optimizer), module.optimizer.keywords, "optimizer")
        yield from module.without_effect()


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the Trainer as a config would state them: classes by their import paths, for messages."""

    def named(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [named(each) for each in value]
        if value is None or isinstance(value, bool | int | float | str | timedelta | dict):
            return value
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}"}

    return {key: named(value) for key, value in options.items()}


def _with_a_key(module: LightningModule, data: LightningDataModule, options: Mapping[str, Any]) -> list[Callback]:
    """The callbacks that have a key in configs, unless the user gives them, with their defaults."""
    made: list[Callback] = [Divergence()]
    if isinstance(module, LanguageModel) and isinstance(data, TokenData):
        made += [Throughput(), Samples()]
    if options.get("enable_checkpointing") is not False and not options.get("fast_dev_run"):
        # In this order: Lightning's `ckpt_path="best"` is the best of the first one.
        if isinstance(module, LanguageModel) and isinstance(data, TokenData):
            made.append(BestCheckpoint(monitor=score_for(data.counts_bytes).tag, filename="best"))
        elif not any(isinstance(callback, BestCheckpoint) for callback in options["callbacks"]):
            made.append(BestOfAnyModule(filename="best"))
        made.append(LastCheckpoint())
    given = tuple(type(callback) for callback in options["callbacks"])
    return [callback for callback in made if not any(issubclass(kind, type(callback)) for kind in given)]
