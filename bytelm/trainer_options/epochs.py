"""Options of Lightning's Trainer that count epochs or their batches, or that say when a run is validated."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import DeviceStatsMonitor, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy

from bytelm.callbacks.best_checkpoint import BestCheckpoint
from bytelm.callbacks.run_limits import check_trainers_limits
from bytelm.callbacks.validations import NEVER, Validations
from bytelm.data.epochs import limited
from bytelm.errors import ConfigError
from bytelm.units import Duration

AUTO = "auto"  # trainer.val_check_interval: every tenth of the budget, where that is cheap
AUTO_EVERY = Duration(0.1, "fraction")
DURATIONS = "a share of the run (10%), 500 steps, 300 Mtok, a training time (10m), or a number of batches"
VALIDATIONS = "trainer.check_val_every_n_epoch or trainer.val_check_interval (such as 10%)"


def validation_times(given: Mapping[str, Any], scope: str) -> tuple[dict[str, Any], Validations | None]:
    """Returns what makes a trainer validate before the end of a run.

    Args:
        given: The options of the Trainer. `val_check_interval` is a duration, which the callback Validations measures;
            `auto`, which is 10% of the run, or null where the run's epochs or its clock decide; or one of Lightning's
            values. With `check_val_every_n_epoch: null`, the default, an integer counts the batches of the run, and
            null means validation only at the end. A share is a share of each epoch.
        scope: `time_budget.scope`. In `run`, the clock does not stop for validations.

    Returns:
        The options that differ from the given ones, and the callback; None: Lightning's options alone decide.

    Raises:
        ConfigError: `val_check_interval` is not accepted.
    """
    every, epochs = given.get("val_check_interval"), given.get("check_val_every_n_epoch")
    if given.get("fast_dev_run"):  # Lightning validates once, at its end
        if isinstance(every, str) and every != AUTO and ":" not in every:
            _duration(every)
        return {"val_check_interval": None}, None
    if every == AUTO:
        if epochs is not None:
            return {"val_check_interval": None}, None
        return {"val_check_interval": NEVER}, Validations(AUTO_EVERY, bounded=True) if scope == "training" else None
    if isinstance(every, str) and ":" not in every:
        duration = _duration(every)
        if epochs is not None:
            accepted = f"accepted: with trainer.check_val_every_n_epoch null; it is {epochs}"
            raise ConfigError("trainer.val_check_interval", every, accepted)
        return {"val_check_interval": NEVER}, Validations(duration)
    if epochs is not None:
        return {}, None
    if every is None:
        return {"val_check_interval": NEVER}, None
    return ({"check_val_every_n_epoch": 1} if isinstance(every, float) else {}), None


def _duration(text: str) -> Duration:
    try:
        duration = Duration.parse(text)
    except ValueError as error:
        raise ConfigError("trainer.val_check_interval", text, f"accepted: {AUTO}, {DURATIONS}") from error
    if duration.value == 0:
        raise ConfigError("trainer.val_check_interval", text, "accepted: more than 0")
    return duration


def check_ends(given: Mapping[str, Any]) -> None:
    """Rejects the Trainer's own limits beside `fast_dev_run`, which replaces them: TimeBudget would not see them.

    Args:
        given: The options of the Trainer.

    Raises:
        ConfigError: One is set.
    """
    if given.get("fast_dev_run"):  # otherwise TimeBudget checks them, in any Trainer
        check_trainers_limits(given)


def check_counts(given: Mapping[str, Any]) -> None:
    """Checks that options that count steps, epochs or batches leave something to train.

    Args:
        given: The options of the Trainer.

    Raises:
        ConfigError: An option leaves nothing to train.
    """
    for key in ("max_steps", "max_epochs"):
        if given.get(key) == 0:
            raise ConfigError(f"trainer.{key}", 0, "nothing would be trained; time_budget.limit ends a run")
    if given.get("limit_train_batches") == 0:
        raise ConfigError("trainer.limit_train_batches", 0, "nothing would be trained; accepted: more than 0")
    if (every := given.get("check_val_every_n_epoch")) is not None and every < 1:
        raise ConfigError("trainer.check_val_every_n_epoch", every, "accepted: epochs from 1, or null")


def check_epochs(trainer: Any, data: Any) -> None:
    """Checks options that count the batches of an epoch, after the data are set up.

    Args:
        trainer: The Trainer.
        data: The trainer's TokenData.

    Raises:
        ConfigError: An option leaves no batch, or a part of a step, or has no meaning with such data.
    """
    if every := trainer.reload_dataloaders_every_n_epochs:
        reason = "batches are cut from the text when they are due, and there is nothing to reload; accepted: 0"
        raise ConfigError("trainer.reload_dataloaders_every_n_epochs", every, reason)
    if trainer.fast_dev_run:
        return
    epoch, per_step = data.epoch_batches(), trainer.accumulate_grad_batches
    key = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
    value = getattr(trainer, key)
    n_batches = limited(epoch, value)
    if n_batches == 0:
        reason = f"an epoch has {epoch} batches; accepted: a number, or from {_share(per_step, epoch)}"
        raise ConfigError(f"trainer.{key}", value, reason)
    if n_batches % per_step:
        fitting = max(n_batches // per_step, 1) * per_step
        reason = f"it is {n_batches} of {epoch} batches, and steps have {per_step} (trainer.accumulate_grad_batches)"
        raise ConfigError(f"trainer.{key}", value, f"{reason}; accepted: such as {fitting}")
    every = trainer.val_check_interval
    if every is None and trainer.world_size > 1:
        reason = "each rank would validate by its own clock; accepted: a number of batches, or a share of an epoch"
        raise ConfigError("trainer.val_check_interval", "a time", reason)
    if trainer.check_val_every_n_epoch is not None and isinstance(every, int) and every > n_batches:
        reason = f"an epoch has {n_batches} batches; accepted: up to {n_batches}, or check_val_every_n_epoch null"
        raise ConfigError("trainer.val_check_interval", every, reason)
    check_share(trainer, data, "validate")


def check_limit(options: Mapping[str, Any], command: str) -> None:
    """Rejects a command that would score no batches.

    Args:
        options: The given options of the Trainer.
        command: validate, test or predict.

    Raises:
        ConfigError: Its limit is 0.
    """
    option = f"limit_{_short(command)}_batches"
    if (value := options.get(option)) is not None and not value:
        raise ConfigError(
            f"trainer.{option}", value, f"{command} would read nothing; accepted: above 0, or 1.0 for all"
        )


def check_share(trainer: Any, data: Any, command: str) -> None:
    """Checks that the share of the batches that a command scores or predicts is not less than one batch.

    Args:
        trainer: The Trainer.
        data: The trainer's TokenData.
        command: The command.

    Raises:
        ConfigError: It is less.
    """
    short = _short(command)
    key = f"limit_{short}_batches"
    share = getattr(trainer, key)
    if not isinstance(share, float) or not 0 < share < 1:
        return
    if limited(n := len(getattr(data, f"{short}_dataloader")()), share) == 0:
        key = "overfit_batches" if trainer.overfit_batches else key
        of = {"validate": "validation", "predict": "prediction"}.get(command, command)
        reason = f"it leaves none of {n} batches of {of}; accepted: a number, or from {_share(1, n)}"
        raise ConfigError(f"trainer.{key}", share, reason)


def _short(command: str) -> str:
    """Returns a command's name in Lightning's options and hooks."""
    return "val" if command == "validate" else command


def _missing(callback: Callback, trainer: Any) -> str | None:
    """Returns the requirement of a Lightning callback that is not met; None if all are."""
    if isinstance(callback, WeightAveraging) and isinstance(trainer.strategy, ModelParallelStrategy):
        return "it cannot average weights that are split over ranks; accepted: with trainer.strategy ddp"
    if trainer.fast_dev_run:
        return None
    # On a CPU it logs nothing else, and only there it requires the package.
    if isinstance(callback, DeviceStatsMonitor) and trainer.strategy.root_device.type == "cpu":
        return None if find_spec("psutil") else "on a CPU it needs a package; accepted: with `pip install psutil`"
    is_other = not isinstance(callback, BestCheckpoint)  # every run has that
    monitors = str(callback.monitor) if isinstance(callback, EarlyStopping | ModelCheckpoint) and is_other else ""
    if monitors.startswith("val") and trainer.limit_val_batches == 0:
        return f"{monitors} is never known with trainer.limit_val_batches 0; accepted: more than 0"
    if isinstance(callback, EarlyStopping) and monitors.startswith("val"):
        if _may_validate_once(trainer):
            return f"{callback.monitor} may be known at the end of the run alone; accepted: with {VALIDATIONS}"
        if callback._check_on_train_epoch_end and callback.strict and trainer.check_val_every_n_epoch != 1:
            reason = f"{callback.monitor} may not be known at an epoch's end (check_on_train_epoch_end)"
            return f"{reason}; accepted: with trainer.check_val_every_n_epoch 1, or strict false"
    return None


def _may_validate_once(trainer: Any) -> bool:
    """Returns whether the only validation of a run may be the final one, as in a short run with `auto`."""
    if trainer.check_val_every_n_epoch is not None or trainer.val_check_interval != NEVER:
        return False
    return all(callback.bounded for callback in trainer.callbacks if isinstance(callback, Validations))


def _share(part: int, whole: int) -> float:
    """Returns the smallest share, in a few digits, that leaves this many batches."""
    return math.ceil(1e6 * part / whole) / 1e6


def check_needs(trainer: Any, config: Mapping[str, Any]) -> None:
    """Checks the requirements of callbacks: whole weights, packages, validations, epochs that end with one.

    Args:
        trainer: The Trainer.
        config: The config, as plain values.

    Raises:
        ConfigError: A requirement is not met.
    """
    for callback in trainer.callbacks:
        if (reason := _missing(callback, trainer)) is not None:
            raise ConfigError("trainer.callbacks", type(callback).__name__, reason)
    if trainer.fast_dev_run or trainer.check_val_every_n_epoch is not None:
        return
    may_validate_once = _may_validate_once(trainer)
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
        if every and not at_end and may_validate_once:
            reason = "it saves after a validation, and the only one may be at the end of the run; accepted: with "
            if values.get("monitor") is None:
                reason += "save_on_train_epoch_end true, "
            raise ConfigError(f"{key}.every_n_epochs", every, f"{reason}{VALIDATIONS}")
