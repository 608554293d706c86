"""Options of Lightning's Trainer: those that bytelm does not accept, and Lightning's errors as errors of one option.

Lightning's errors are in its own words, some of which name the option, some its value, some neither.
"""

import inspect
import math
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    ProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bytelm.callbacks.best_checkpoint import BestCheckpoint, check_names
from bytelm.callbacks.run_limits import ENDS_A_RUN
from bytelm.config.classes import parameters_of
from bytelm.config.flat import keys_of_class
from bytelm.config.suggestions import choices
from bytelm.errors import ConfigError
from bytelm.strategies import ONE_RANK

# Callbacks of Lightning's that would do less in a run than Lightning says.
_UNTIL_RESUMED = "resuming does not restore which weights are {}"
_TRIALS = "its trial steps are not those of a run under a budget"
_NOT_ACCEPTED: dict[type, str] = {
    StochasticWeightAveraging: "it counts from trainer.max_epochs, and the time budget ends a run; accepted: "
    "EMAWeightAveraging, or WeightAveraging",
    GradientAccumulationScheduler: "steps of a run have the same number of batches; accepted: "
    "trainer.accumulate_grad_batches, and schedules.data.batch_size for batches that grow",
    ModelPruning: f"{_UNTIL_RESUMED.format('pruned')}; accepted: torch.nn.utils.prune on a trained model",
    BaseFinetuning: f"{_UNTIL_RESUMED.format('unfrozen')}; accepted: a schedule of schedules.lr.<group> that is 0 "
    "while a group is frozen",
    LearningRateFinder: f"{_TRIALS}; accepted: model.optimizer.lr, and a study of several runs to find it",
    BatchSizeFinder: f"{_TRIALS}; accepted: data.batch_size",
}

_NO_STATE = "a run with it cannot be resumed (it fails to load its state); accepted: the key divergence"

# Of those that name nothing that was given.
_SIGNS = {"compute capability": "precision", "transformer_engine": "precision", "torch_xla": "accelerator"}
BASES = (Callback, Checkpoint, ProgressBar, BasePredictionWriter)  # which do nothing by themselves
RUNS_CHECKPOINTS = ("best", "last")  # files of every run in the folder that is the default of a ModelCheckpoint
NEED_LOGGER = (LearningRateMonitor, DeviceStatsMonitor, ThroughputMonitor)


def trainer_error(error: Exception, given: Mapping[str, Any]) -> ConfigError:
    """Makes an error that names the option of an error of the Trainer's constructor.

    Args:
        error: Lightning's error.
        given: The options of the Trainer.
    """
    reason = " ".join(str(error).split())
    if "interactive environment" in reason:  # it recommends ddp_notebook
        return ConfigError("trainer.strategy", given.get("strategy"), f"{ONE_RANK}; accepted: auto, with 1 device")
    if match := re.match(r"Found more than one stateful callback of type `(\w+)`", reason):
        several = "there are several, whose states have one key in checkpoints; accepted: one, or a state_key for each"
        return ConfigError("trainer.callbacks", match[1], several)
    defaults = inspect.signature(Trainer).parameters
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
    quoted = [key for key, value in given.items() if key in defaults and f"{key}={value!r}" in reason]
    found = [*signs, *quoted, *(key for key in named if key in changed), *texts, *named]
    if not found:
        options = ", ".join(f"{key}={value!r}" for key, value in changed.items())
        return ConfigError("trainer", options, reason)
    if found[0] == "accelerator":
        here = [name for name, entry in AcceleratorRegistry.items() if entry["accelerator"].is_available()]
        reason = re.split(r" Available names are| The following accelerator", reason)[0]  # Lightning's order varies
        reason = f"{reason} Accepted on this machine: auto, {', '.join(here)}"
    if found[0] == "devices":
        reason = f"{reason.rstrip('.')}; accepted: auto, a number of devices from 1, or a list of GPUs such as [0, 1]"
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
        return ConfigError(next(keys_of_class(name, config), "trainer"), name, match[2])
    for made, cause in _objects_behind(error, "__init__"):
        if isinstance(made, Callback | Logger):
            return _rejected(made, cause, config, keys)
    return None


def with_full_key(error: ConfigError, config: Mapping[str, Any], keys: Mapping[str, type]) -> ConfigError:
    """Returns an error of a constructor with the key as the user writes it: `model.gpt.n_heads` for `n_heads`.

    Args:
        error: The error, with the name of an argument as its key.
        config: The config, as plain values.
        keys: Classes of the top-level keys of a config.
    """
    if error.key.partition(".")[0] in keys:
        return error
    for made, _ in reversed(list(_objects_behind(error, "__init__"))):
        # An argument without a default is one that the network passes to its parts, not an option.
        if error.key in parameters_of(type(made)):
            in_config = keys_of_class(type(made).__name__, config)
            places = [*in_config, *(key for key, cls in keys.items() if cls is type(made))]
            return type(error)(f"{places[0]}.{error.key}", error.value, error.accepted) if places else error
    return error


def _objects_behind(error: BaseException, method: str = "") -> Iterator[tuple[Any, BaseException]]:
    """The objects whose methods raised an error, or what it came from, the innermost last; each with the error.

    Args:
        error: The error.
        method: Of this method only.
    """
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if not method or frame.f_code.co_name == method:
                yield frame.f_locals.get("self"), cause
        cause = cause.__cause__ or cause.__context__


def _rejected(made: Any, error: BaseException, config: Mapping[str, Any], keys: Mapping[str, type]) -> ConfigError:
    name = type(made).__name__
    key = next((key for key, cls in keys.items() if isinstance(made, cls)), "trainer")
    return ConfigError(next(keys_of_class(name, config), key), name, " ".join(str(error).split()))


def check_new_run(callbacks: Iterable[Callback]) -> None:
    """Checks that a run without a checkpoint to resume from is a new one.

    Lightning would resume it from the file of an OnExceptionCheckpoint, whatever run has left that.

    Args:
        callbacks: Callbacks of the trainer.

    Raises:
        ConfigError: There is such a file.
    """
    for callback in callbacks:
        if isinstance(callback, OnExceptionCheckpoint) and Path(path := callback.ckpt_path).exists():
            reason = f"{path} is there, of an earlier run, and Lightning would resume from it"
            accepted = f"accepted: another dirpath, or ckpt_path {path}, which resumes that run"
            raise ConfigError("trainer.callbacks.dirpath", str(callback.dirpath), f"{reason}; {accepted}")


def run_error_of(error: Exception, config: Mapping[str, Any], keys: Mapping[str, type]) -> ConfigError | None:
    """Makes an error that names the option of an error that Lightning raises when a run begins.

    Args:
        error: The error that `Trainer.fit`, `validate`, … have raised.
        config: The config, as plain values.
        keys: Classes of the top-level keys of a config.

    Returns:
        The error; None if this one is about something else.
    """
    reason = " ".join(str(error).split())
    if match := re.match(r"Early stopping conditioned on metric `(.*?)` which is not available", reason):
        logged = reason.rpartition("following: ")[2].replace("`", "")
        return ConfigError("trainer.callbacks.monitor", match[1], f"it is not logged; accepted: {logged}")
    if "your LightningModule has parameters that were not used" in reason:  # a step of any rank, mostly the first
        unused = "some parameters get no gradient; accepted: ddp_find_unused_parameters_true"
        return ConfigError("trainer.strategy", config["trainer"].get("strategy"), unused)
    if match := re.match(r"You called `self.log\((.+?), \.\.\.\)` twice in `(\w+)` with different arguments", reason):
        return ConfigError("self.log", match[1], f"it is logged in {match[2]} already; accepted: another name")
    if not isinstance(error, MisconfigurationException | ModuleNotFoundError):
        return None
    for owner, cause in _objects_behind(error):
        if isinstance(owner, Callback | Logger):
            return _rejected(owner, cause, config, keys)
    return trainer_error(error, config["trainer"]) if isinstance(error, MisconfigurationException) else None


def check_options(given: Mapping[str, Any]) -> None:
    """Checks options of the Trainer that Lightning would reject for what bytelm sets, or would not act on.

    Args:
        given: The options of the Trainer.

    Raises:
        ConfigError: One that is not accepted.
    """
    clip = given.get("gradient_clip_val")
    if clip is not None and (clip < 0 or not math.isfinite(clip)):  # a negative one would reverse the gradients
        raise ConfigError("trainer.gradient_clip_val", clip, "accepted: a number above 0; 0 or null for no clipping")
    for key, lowest in (("log_every_n_steps", 0), ("num_sanity_val_steps", -1)):
        if (value := given.get(key)) is not None and value < lowest:
            raise ConfigError(f"trainer.{key}", value, f"accepted: a whole number from {lowest}")
    if given.get("max_time") is not None:
        raise ConfigError("trainer.max_time", str(given["max_time"]), ENDS_A_RUN)
    if given.get("model_registry"):
        reason = "nothing is uploaded; accepted: null, and a logger that keeps models, such as WandbLogger"
        raise ConfigError("trainer.model_registry", given["model_registry"], reason)
    if given.get("barebones"):
        less = "--trainer.logger false --trainer.enable_checkpointing false --trainer.enable_progress_bar false"
        raise ConfigError(
            "trainer.barebones", True, f"a run logs its score and its record; accepted: false, with {less}"
        )


def why_not_accepted(cls: type) -> str | None:
    """Returns why a callback of this class is not accepted in any run; None if it is."""
    if cls in BASES:
        return "it is a base of callbacks and does nothing by itself"
    if issubclass(cls, Timer):
        return ENDS_A_RUN
    if issubclass(cls, SpikeDetection) and cls.load_state_dict is SpikeDetection.load_state_dict:
        return _NO_STATE
    return next((reason for base, reason in _NOT_ACCEPTED.items() if issubclass(cls, base)), None)


def check_callbacks(
    callbacks: Sequence[Callback],
    keys: Mapping[str, type],
    others: tuple[type, ...],
    logs: bool = True,
    keys_are: str = "the key",
) -> None:
    """Checks that `trainer.callbacks` has no callback that every run has once, does nothing, or cannot work.

    Args:
        callbacks: Those of `trainer.callbacks`.
        keys: Classes of the callbacks that are top-level keys of a config.
        others: Classes of the callbacks that bytelm adds by itself.
        logs: Whether the trainer has a logger.
        keys_are: The word before a key in messages.

    Raises:
        ConfigError: It has one.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if (reason := why_not_accepted(type(callback))) is not None:
            raise ConfigError("trainer.callbacks", name, reason)
        if isinstance(callback, NEED_LOGGER) and not logs:
            raise ConfigError("trainer.callbacks", name, "it needs a logger; accepted: with trainer.logger true")
        if type(callback) is ModelCheckpoint:
            check_names(callback, "trainer.callbacks", RUNS_CHECKPOINTS)
        for key, cls in keys.items():
            if isinstance(callback, cls):
                raise ConfigError("trainer.callbacks", name, f"every run has one; accepted: {keys_are} {key}")
        if isinstance(callback, others):
            raise ConfigError("trainer.callbacks", name, "every run has one; leave it out")
    for base, why in ((WeightAveraging, "a run has one average of its weights"), (ProgressBar, "a run has one bar")):
        if len(several := [type(callback).__name__ for callback in callbacks if isinstance(callback, base)]) > 1:
            raise ConfigError("trainer.callbacks", several, f"accepted: one of them; {why}")


def check_monitors(callbacks: Sequence[Callback], logged: Sequence[str]) -> None:
    """Checks that callbacks monitor what a run logs, where that is known before it has begun.

    Callbacks and models of the user's may log anything; where there are such, Lightning checks when a score is there.

    Args:
        callbacks: All of a trainer, in which those of bytelm and Lightning log nothing else.
        logged: Names of the values that the run logs for callbacks.

    Raises:
        ConfigError: One monitors something else.
    """
    roots = ("bytelm.", "lightning.")
    if not all(type(callback).__module__.startswith(roots) for callback in callbacks):
        return
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.monitor is None:
            continue
        accepted = [*logged, "step", "epoch"] if isinstance(callback, ModelCheckpoint) else list(logged)
        if callback.monitor not in accepted and getattr(callback, "strict", True):
            key = "checkpoint.monitor" if isinstance(callback, BestCheckpoint) else "trainer.callbacks.monitor"
            raise ConfigError(key, callback.monitor, f"it is not logged; {choices(callback.monitor, accepted)}")
