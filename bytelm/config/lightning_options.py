"""Options of Lightning's Trainer: those that bytelm does not accept, and Lightning's errors as errors of one option.

Lightning's errors are in its own words, some of which name the option, some its value, some neither.
"""

import inspect
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from bytelm.data.epochs import limited
from bytelm.errors import ConfigError

# Of those that name nothing that was given.
_SIGNS = {"Timer(duration=": "max_time", "compute capability": "precision"}


def trainer_error(error: Exception, given: Mapping[str, Any]) -> ConfigError:
    """Makes an error that names the option of an error of the Trainer's constructor.

    Args:
        error: Lightning's error.
        given: The options of the Trainer.
    """
    reason = " ".join(str(error).split())
    defaults = inspect.signature(Trainer.__init__).parameters
    changed = {
        key: value for key, value in given.items() if key in defaults and value not in (None, defaults[key].default)
    }
    named = [key for key in defaults if re.search(rf"\b{key}\b", reason)]
    named.sort(key=lambda key: (key not in changed, reason.find(key)))
    texts = [
        key
        for key, value in changed.items()
        if isinstance(value, str) and re.search(rf"\b{re.escape(value)}\b", reason)
    ]
    signs = [key for sign, key in _SIGNS.items() if sign in reason]
    found = [*signs, *(key for key in named if key in changed), *texts, *named]
    if not found:
        options = ", ".join(f"{key}={value!r}" for key, value in changed.items())
        return ConfigError("trainer", options, reason)
    if found[0] == "accelerator":
        here = [name for name, entry in AcceleratorRegistry.items() if entry["accelerator"].is_available()]
        reason = f"{reason} Accepted on this machine: auto, {', '.join(here)}"
    return ConfigError(f"trainer.{found[0]}", given.get(found[0]), reason)


def constructor_error(error: Exception, config: Mapping[str, Any], keys: Mapping[str, type]) -> ConfigError | None:
    """Makes an error that names the key of a callback or logger whose constructor rejected its options.

    Args:
        error: Lightning's error, or jsonargparse's about one.
        config: The config, as plain values.
        keys: Classes of the top-level keys of a config.

    Returns:
        The error; None if this one is another.
    """
    if match := re.search(r"Problem with given class_path '([\w.]+)': (.*?)(?= - |$)", " ".join(str(error).split())):
        name = match[1].rpartition(".")[2]
        return ConfigError(next(_keys_of(name, config), "trainer"), name, match[2])
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            made = frame.f_locals.get("self")
            if frame.f_code.co_name == "__init__" and isinstance(made, Callback | Logger):
                name = type(made).__name__
                key = next((key for key, cls in keys.items() if isinstance(made, cls)), "trainer")
                return ConfigError(next(_keys_of(name, config), key), name, " ".join(str(cause).split()))
        cause = cause.__cause__ or cause.__context__
    return None


def _keys_of(name: str, value: Any, key: str = "") -> Iterator[str]:
    """The keys of a config at which a class is named."""
    if isinstance(value, Mapping):
        if str(value.get("class_path")).rpartition(".")[2] == name:
            yield key
        for inner, content in value.items():
            yield from _keys_of(name, content, key if inner == "init_args" else f"{key}.{inner}" if key else inner)
    elif isinstance(value, list):
        for content in value:
            yield from _keys_of(name, content, key)


def check_options(given: Mapping[str, Any]) -> None:
    """Checks options of the Trainer that Lightning would reject for what bytelm sets.

    Args:
        given: The options of the Trainer.

    Raises:
        ConfigError: One that is not accepted.
    """
    if given.get("barebones"):
        less = "--trainer.logger false --trainer.enable_checkpointing false --trainer.enable_progress_bar false"
        raise ConfigError(
            "trainer.barebones", True, f"a run logs its score and its record; accepted: false, with {less}"
        )


def check_callbacks(callbacks: Sequence[Callback], keys: Mapping[str, type], others: tuple[type, ...]) -> None:
    """Checks that `trainer.callbacks` has no second instance of a callback that every run has once.

    Args:
        callbacks: Those of `trainer.callbacks`.
        keys: Classes of the callbacks that are top-level keys of a config.
        others: Classes of the callbacks that bytelm adds by itself.

    Raises:
        ConfigError: It has one.
    """
    for callback in callbacks:
        name = type(callback).__name__
        for key, cls in keys.items():
            if isinstance(callback, cls):
                raise ConfigError("trainer.callbacks", name, f"every run has one; accepted: the key {key}")
        if isinstance(callback, others):
            raise ConfigError("trainer.callbacks", name, "every run has one; leave it out")
        for cls, reason in _NOT_ACCEPTED.items():
            if isinstance(callback, cls):
                raise ConfigError("trainer.callbacks", name, reason)
    averaging = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    if len(averaging) > 1:
        raise ConfigError("trainer.callbacks", averaging, "accepted: one of them; a run has one average of its weights")


# Epochs, and when a run is validated

AT_THE_END = 10**12  # batches between validations, of a run that is validated at its end alone
_UNTIL_RESUMED = "a run that is resumed would not know what it has {}"
_NOT_ACCEPTED: dict[type, str] = {
    StochasticWeightAveraging: "it counts from trainer.max_epochs, and the time budget ends a run; accepted: "
    "EMAWeightAveraging, or WeightAveraging",
    GradientAccumulationScheduler: "steps of a run have the same number of batches; accepted: "
    "trainer.accumulate_grad_batches, and schedules.data.batch_size for batches that grow",
    ModelPruning: f"{_UNTIL_RESUMED.format('pruned')}; accepted: torch.nn.utils.prune on a trained model",
    BaseFinetuning: f"{_UNTIL_RESUMED.format('unfrozen')}; accepted: a schedule of schedules.lr.<group> that is 0 while "
    "a group is frozen",
    LearningRateFinder: "its trial steps are not those of a run under a budget; accepted: model.optimizer.lr, and a study "
    "of several runs to find it",
    BatchSizeFinder: "its trial steps are not those of a run under a budget; accepted: data.batch_size",
}


def validation_times(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the Trainer that say when a run is validated, beside its end.

    Args:
        given: The options of the Trainer. With `check_val_every_n_epoch: null`, which is the default, a
            `val_check_interval` that is a whole number counts the batches of the run, and none is: at the end alone. A
            share is one of each epoch.

    Returns:
        Those that differ from what is given.
    """
    every = given.get("val_check_interval")
    if given.get("check_val_every_n_epoch") is not None:
        return {}
    if every is None:
        return {"val_check_interval": AT_THE_END}
    return {"check_val_every_n_epoch": 1} if isinstance(every, float) else {}


def check_counts(given: Mapping[str, Any]) -> None:
    """Checks that options which count steps, epochs or batches leave something to train.

    Args:
        given: The options of the Trainer.

    Raises:
        ConfigError: One that leaves nothing, or has no meaning here.
    """
    for key in ("max_steps", "max_epochs"):
        if given.get(key) == 0:
            raise ConfigError(f"trainer.{key}", 0, "nothing would be trained; accepted: leave it out, and time_budget.limit")
    if given.get("limit_train_batches") == 0:
        raise ConfigError("trainer.limit_train_batches", 0, "nothing would be trained; accepted: more than 0")
    if given.get("check_val_every_n_epoch") == 0:
        raise ConfigError("trainer.check_val_every_n_epoch", 0, "accepted: epochs from 1, or null")
    if every := given.get("reload_dataloaders_every_n_epochs"):
        reason = "batches are cut from the text when they are due, and there is nothing to reload; accepted: 0"
        raise ConfigError("trainer.reload_dataloaders_every_n_epochs", every, reason)


def check_epochs(trainer: Any, data: Any) -> None:
    """Checks options that count the batches of an epoch, once the data are set up.

    Args:
        trainer: The Trainer.
        data: Its TokenData.

    Raises:
        ConfigError: One that leaves no batch, or a part of a step.
    """
    if trainer.fast_dev_run:
        return
    epoch, per_step = data.epoch_batches(), trainer.accumulate_grad_batches
    key = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
    value = getattr(trainer, key)
    n_batches = limited(epoch, value)
    if n_batches == 0:
        share = f"{per_step / epoch:.2g}"
        raise ConfigError(f"trainer.{key}", value, f"an epoch has {epoch} batches; accepted: a number, or from {share}")
    if n_batches % per_step:
        fitting = max(n_batches // per_step, 1) * per_step
        reason = f"it is {n_batches} of {epoch} batches, and steps have {per_step} (trainer.accumulate_grad_batches)"
        raise ConfigError(f"trainer.{key}", value, f"{reason}; accepted: such as {fitting}")
    every = trainer.val_check_interval
    if every is None and trainer.world_size > 1:
        reason = "ranks would begin to validate by their own clocks; accepted: a number of batches, or a share of an epoch"
        raise ConfigError("trainer.val_check_interval", "a time", reason)
    if trainer.check_val_every_n_epoch is not None and isinstance(every, int) and every > n_batches:
        reason = f"an epoch has {n_batches} batches; accepted: up to {n_batches}, or check_val_every_n_epoch null"
        raise ConfigError("trainer.val_check_interval", every, reason)
    share = trainer.limit_val_batches
    if isinstance(share, float) and share > 0 and limited(n_val := len(data.val_dataloader()), share) == 0:
        key = "overfit_batches" if trainer.overfit_batches else "limit_val_batches"
        reason = f"it leaves none of {n_val} batches of validation; accepted: a number of batches, or from {1 / n_val:.2g}"
        raise ConfigError(f"trainer.{key}", share, reason)


def check_needs(trainer: Any, config: Mapping[str, Any]) -> None:
    """Checks that callbacks get what they need: whole weights, validations, epochs that end with one.

    Args:
        trainer: The Trainer.
        config: The config, as plain values.

    Raises:
        ConfigError: One does not.
    """
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
        for callback in trainer.callbacks:
            if isinstance(callback, WeightAveraging):
                reason = "it cannot average weights that are split over ranks; accepted: with trainer.strategy ddp"
                raise ConfigError("trainer.callbacks", type(callback).__name__, reason)
    if trainer.fast_dev_run or trainer.check_val_every_n_epoch is not None:
        return
    only_at_the_end = trainer.val_check_interval == AT_THE_END
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and str(callback.monitor).startswith("val") and only_at_the_end:
            reason = f"{callback.monitor} is known at the end of the run alone; accepted: with {_VALIDATIONS}"
            raise ConfigError("trainer.callbacks", type(callback).__name__, reason)
    given = config["trainer"].get("callbacks") or []
    options = [("checkpoint", config.get("checkpoint") or {})]
    for each in given if isinstance(given, list) else [given]:
        if str(each.get("class_path")).rpartition(".")[2] == "ModelCheckpoint":
            options.append(("trainer.callbacks.ModelCheckpoint", each.get("init_args") or {}))
    for key, values in options:
        every, at_end = values.get("every_n_epochs"), values.get("save_on_train_epoch_end")
        if at_end and str(values.get("monitor")).startswith("val"):
            reason = f"{values['monitor']} may not be known then; accepted: with trainer.check_val_every_n_epoch 1"
            raise ConfigError(f"{key}.save_on_train_epoch_end", at_end, reason)
        if every and not at_end and only_at_the_end:
            reason = "it saves after a validation, and the only one is at the end of the run; accepted: with "
            if values.get("monitor") is None:
                reason += "save_on_train_epoch_end true, "
            raise ConfigError(f"{key}.every_n_epochs", every, f"{reason}{_VALIDATIONS}")


_VALIDATIONS = "trainer.check_val_every_n_epoch or trainer.val_check_interval"
