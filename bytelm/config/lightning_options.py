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
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger

from bytelm.errors import ConfigError

# Callbacks of Lightning's that would do less in a run than Lightning says.
_UNTIL_RESUMED = "a run that is resumed would not know what it has {}"
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
