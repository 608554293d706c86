"""Training from Python: `from bytelm import fit`. It is the command `fit` as a function.

    run = fit("configs/quickstart.yaml", {"time_budget.limit": "30s"})
    run = fit(model=GPT(), data=Shakespeare(), limit="30s", lr_schedule=Cosine())

The first form takes configs; the run is the one that the command line makes of them. The second form takes objects,
with callbacks and a trainer's options as Lightning's Trainer takes them.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
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
from bytelm.cli import ADDED_CALLBACKS, TRAINER_DEFAULTS, build, monitored
from bytelm.config.checks import check_experiment
from bytelm.config.epoch_options import check_epochs, check_needs, validation_times
from bytelm.config.lightning_options import check_callbacks, check_monitors, run_error_of
from bytelm.config.lightning_plugins import check_plugins
from bytelm.config.messages import note
from bytelm.config.unused import of_class, of_object, without_effect
from bytelm.data.base import TokenData
from bytelm.errors import ConfigError, UsageError, run_error
from bytelm.gpt import GPT
from bytelm.hosts import meeting
from bytelm.inference.model import Model, load
from bytelm.language_model import LanguageModel
from bytelm.lightning_output import quieten
from bytelm.parts.contract import class_of
from bytelm.run_callbacks import added_callbacks, as_list, shown_by_lightning
from bytelm.runs import logger as loggers
from bytelm.runs import record as records
from bytelm.runs.folder import CONFIG, RunFolder, runs_root
from bytelm.runs.logger import TensorBoardLogger
from bytelm.runs.score import score_for
from bytelm.schedules import Schedule, merged
from bytelm.strategies import FSDP
from bytelm.system.process import begin_program, is_rank_zero
from bytelm.system.threads import set_waiting

Config = str | Path | Mapping[str, Any]
REPLACED = (BestCheckpoint, BudgetBar)  # of the callbacks that every run has, those that the user's replace
ACCEPTED = {
    "model": "a bytelm.gpt.GPT, or a LightningModule",
    "data": "a LightningDataModule, such as LightningDataModule.from_datasets(train, val, batch_size=…)",
}


# Keys of configs for the arguments of the second form; its others are options of the trainer.
OF_CONFIGS = {"limit": "time_budget.limit", "seed": "seed_everything"}
OF_CONFIGS |= {key: key for key in ("model", "data", "lr_schedule", "schedules", "ckpt_path", "init_from")}


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        folder: Its folder, runs/<experiment>/version_N; None under `fast_dev_run`, which writes no files.
        record: The contents of its record.json (bytelm/runs/record.py); empty without a folder.
        module: The trained LightningModule.
        trainer: The Trainer.
    """

    folder: Path | None
    record: records.Record = field(repr=False)
    module: LightningModule = field(repr=False)
    trainer: Trainer = field(repr=False)

    @property
    def val_bpb(self) -> float | None:
        """The final score, in bits per byte; None if the data do not count bytes."""
        return self.record.get("val_bpb")

    def load(self, device: str = "auto") -> Model:
        """Loads the run's best model; of a run that was made from configs.

        Args:
            device: See `bytelm.load`.

        Raises:
            ConfigError: The run was made from objects: its checkpoints do not say what network they are of.
        """
        if self.folder is None:
            raise ConfigError("fast_dev_run", True, "accepted by load: runs with a folder")
        if not (config := self.folder / CONFIG).exists():
            accepted = "accepted: run.module, the trained module; or a run that is made from configs"
            raise ConfigError("load", str(self.folder), f"it was made from objects, and has no config; {accepted}")
        return load(self.folder, config, device)


def fit(
    *configs: Config,
    model: GPT | LightningModule | None = None,
    data: LightningDataModule | None = None,
    limit: str | list[str] | None = None,
    lr_schedule: Schedule | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    callbacks: Callback | Sequence[Callback] | None = None,
    experiment: str | None = None,
    seed: int | None = None,
    **trainer: Any,
) -> Fitted:
    """Trains a model.

    Args:
        configs: Config files, or mappings of keys to values as in a config file; later ones take precedence. Keys may
            contain dots: `{"time_budget.limit": "30s"}`. All other arguments but `experiment` are then keys of the
            configs.
        model: A GPT, which AdamW trains, or a LightningModule, such as a LanguageModel with a loss and an optimizer.
        data: The data.
        limit: Limit of the budget, or a list of limits: `30s`, `500 steps`, `300 Mtok`; default `180s`.
        lr_schedule: Schedule of the learning rate; default the optimizer's learning rate throughout.
        schedules: Schedules of other values, by target (docs/schedules.md).
        callbacks: Callbacks of Lightning or bytelm, beside those that every run has; those that the command rejects
            (docs/lightning.md) are rejected here, too.
        experiment: Name of the run's folder in runs/; default the names of the config files, or `python`.
        seed: Seed of the order of the data and of dropout, default 42. The weights are those of the given model.
        trainer: Options of Lightning's Trainer.

    Returns:
        The finished run.

    Raises:
        ConfigError, UsageError: An argument or a value cannot be used; the message names it.
        DataError: The data are missing or too short.
        Diverged: The loss became NaN or infinite.
        Interrupted: A signal ended the run, such as that of an interrupted notebook's kernel.
    """
    begin_program()
    set_waiting()
    with _RunErrors():
        if configs:
            given = {"model": model, "data": data, "limit": limit, "lr_schedule": lr_schedule, "schedules": schedules}
            for key, value in {**given, "callbacks": callbacks, "seed": seed, **trainer}.items():
                if value is not None:
                    name = OF_CONFIGS.get(key, f"trainer.{key}")
                    accepted = f"accepted without configs; with configs: fit(…, {{{name!r}: …}})"
                    raise ConfigError(key, value, accepted)
            return _fit_configs(configs, experiment)
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
        for key, value in {"lr_schedule": lr_schedule, **(schedules or {})}.items():
            if value is not None and not isinstance(value, Schedule):
                raise ConfigError(key, value, "accepted: a schedule, such as bytelm.callbacks.Cosine()")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
            raise ConfigError("seed", seed, "accepted: a whole number from 0 to 2**32 - 1")
        made = LanguageModel(model) if isinstance(model, GPT) else model
        own = [callbacks] if isinstance(callbacks, Callback) else [*(callbacks or ())]
        with _keys_as_arguments(), _callbacks_configured(made, own) as own:
            _check_callbacks(own, trainer)
            all_schedules = merged(lr_schedule, schedules or {})
            seed_everything(42 if seed is None else seed, workers=True, verbose=False)
            own = [TimeBudget("180s" if limit is None else limit), *own]  # type: ignore[arg-type]
            return _fit_objects(made, data, own, all_schedules, experiment or "python", trainer)


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


def _fit_configs(configs: Sequence[Config], experiment: str | None) -> Fitted:
    options = []
    for config in configs:
        options += ["--config", _as_text(config) if isinstance(config, Mapping) else str(config)]
    if experiment is None and all(isinstance(config, Mapping) for config in configs):
        named = [config["experiment"] for config in configs if isinstance(config, Mapping) and config.get("experiment")]
        experiment = named[-1] if named else "python"
    if experiment is not None:
        options += ["--experiment", experiment]
    cli = build(["fit", *options])
    return _fitted(cli.folder, cli.model, cli.trainer)


def _as_text(config: Mapping[str, Any]) -> str:
    """A mapping as the text of a config.

    Raises:
        ConfigError: A value is an object, which a config cannot contain.
    """

    def reject(value: Any) -> str:
        if isinstance(value, Path):
            return str(value)
        raise ConfigError("config", value, "accepted in a config: texts, numbers, lists and mappings of these")

    return json.dumps(dict(config), default=reject)


def _fit_objects(
    module: LightningModule,
    data: LightningDataModule,
    callbacks: list[Callback],
    schedules: dict[str, Schedule],
    experiment: str,
    options: dict[str, Any],
) -> Fitted:
    quieten()
    check_experiment(experiment)
    options = {**TRAINER_DEFAULTS, **options, "callbacks": callbacks}
    named = _named(options)
    check_plugins(named)
    with run_trainer.errors_of_options(named):  # a value of another type
        run_trainer.check_given(options)
    for each in _without_effect(module, data, callbacks, schedules, named):
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
    try:
        with meeting(trainer):
            trainer.fit(module, datamodule=data)
    except (MisconfigurationException, ModuleNotFoundError, RuntimeError) as error:
        if run_error(error) is not None or (rejected := run_error_of(error, {"trainer": named}, {})) is None:
            raise
        raise rejected from error
    finally:
        if folder is not None:
            folder.release()
    return _fitted(folder, module, trainer)


def _without_effect(
    module: LightningModule,
    data: LightningDataModule,
    callbacks: list[Callback],
    schedules: Mapping[str, Schedule],
    options: Mapping[str, Any],
) -> Iterator[str]:
    """Yields notes of options without effect, as the command prints them of a config (bytelm/config/unused.py).

    Args:
        module: The module.
        data: The data.
        callbacks: The user's callbacks.
        schedules: Schedules by target.
        options: Options of the Trainer, as `_named` returns them.
    """
    yield from (line.replace("trainer.", "") for line in without_effect({"trainer": options}, TRAINER_DEFAULTS))
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
        made.append(LastCheckpoint())
    given = tuple(type(callback) for callback in options["callbacks"])
    return [callback for callback in made if not any(issubclass(kind, type(callback)) for kind in given)]


def _fitted(folder: RunFolder | None, module: LightningModule, trainer: Trainer) -> Fitted:
    if folder is None:
        return Fitted(None, {}, module, trainer)
    # Rank 0 writes the record, when the others may have ended already; their hosts may not have its disk.
    record = records.read(folder.path) if trainer.is_global_zero else {}
    return Fitted(folder.path, trainer.strategy.broadcast(record), module, trainer)


class _RunErrors:
    """Context in which an error that is equivalent to one of errors.py, such as a lack of memory, is raised as that.

    An invalid value is the caller's: its traceback ends at `fit`, as what lies between says nothing about it. Therefore
    this is no generator: for an exception that passes one, contextlib restores the traceback.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        cause = run_error(error) if isinstance(error, Exception) else None
        if isinstance(cause, ConfigError | UsageError):
            raise cause.with_traceback(None) from None
        if cause is not None and cause is not error:
            raise cause from error
